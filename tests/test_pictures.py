"""Masks as palette images, and the sheet."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss_contrast.files import write_atomically
from wsss_contrast.pictures import mask_image, picture_sheet, png, voc_palette


def test_palette_is_that_of_the_voc_devkit() -> None:
    palette = voc_palette()
    assert len(palette) == 768
    assert palette[15 * 3 : 15 * 3 + 3] == [192, 128, 128]  # person
    assert palette[20 * 3 : 20 * 3 + 3] == [0, 64, 128]  # tv monitor
    assert palette[255 * 3 :] == [224, 224, 192]  # void


def test_mask_image_keeps_ids(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 20], [255, 7, 3]])
    write_atomically(png(mask_image(mask)), tmp_path / "deeper" / "mask.png")
    with Image.open(tmp_path / "deeper" / "mask.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), mask)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half_written(self: Path, content: bytes) -> None:
        with self.open("wb") as file:
            file.write(content[:4])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", half_written)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(b"a whole file", tmp_path / "mask.png")
    assert list(tmp_path.iterdir()) == []


def test_a_file_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under its own name there is nothing, or the file before, until the new one is renamed."""
    path, real, renamed = tmp_path / "mask.png", os.replace, []
    path.write_bytes(b"before")

    def spy(temporary: Path, target: Path) -> None:
        renamed.append((temporary.read_bytes(), target, path.read_bytes()))
        real(temporary, target)

    monkeypatch.setattr(os, "replace", spy)
    write_atomically(b"a whole file", path)
    assert renamed == [(b"a whole file", path, b"before")]
    assert [(file, file.read_bytes()) for file in tmp_path.iterdir()] == [(path, b"a whole file")]


def test_sheet_shows_every_picture() -> None:
    photo = np.full((20, 40, 3), 200, np.uint8)
    mask = np.zeros((20, 40), np.uint8)
    mask[:10], mask[-2:] = 1, 255
    sheet = np.asarray(picture_sheet(["photo", "seed"], [[photo, mask], [photo, mask]], side=40))
    assert sheet.shape == (18 + 2 * 44 + 4, 2 * 44 + 4, 3)
    first, second = sheet[18:38, 4:44], sheet[18:38, 48:88]
    assert (first == 200).all()
    assert second[5, 5].tolist() == [153, 69, 69]  # class 1 is dark red, laid over a light photo
    assert second[14, 5].max() < 120  # the background is dark
    assert second[19, 5].min() > 120  # ignored pixels are light


def test_ids_that_a_palette_image_cannot_hold() -> None:
    with pytest.raises(ValueError, match="256"):
        mask_image(np.array([[0, 256]]))
