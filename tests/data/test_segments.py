"""Masks of photos on disk: both formats, masks of larger photos, and files that are not in order."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from wsss_contrast.data import DataError, SegmentFolder
from wsss_contrast.data.rle import decode_rle

SQUARE = np.zeros((9, 7), bool)
SQUARE[2:7, 1:5] = True
SQUARE[4, 3] = False  # a hole
ROWS = ["11001111011", "01000100110", "11001010110", "01010010000", "10010111010", "10101100001"]
DOTS = np.array([[pixel == "1" for pixel in row] for row in ROWS])
FULL, EMPTY = np.ones((5, 4), bool), np.zeros((5, 4), bool)
# As `pycocotools.mask.encode` 2.0.11 gives them.
RECORDED = [
    (";5400MM033`0", SQUARE),
    ("0110056KL1NO001200O00N20O111NN0030", DOTS),
    ("0d0", FULL),
    ("d0", EMPTY),
]


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Column after column, zeros first."""
    lengths, on = [0], False
    for pixel in mask.T.flatten():
        if pixel != on:
            lengths, on = [*lengths, 0], not on
        lengths[-1] += 1
    return lengths


def compressed(lengths: list[int]) -> str:
    """From the fourth length on, the difference to the one two before; five bits a character."""
    text = ""
    for number, length in enumerate(lengths):
        value = length - lengths[number - 2] if number > 2 else length
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
            if not more:
                break
    return text


def rle(mask: NDArray[np.bool_], compress: bool = False) -> dict[str, Any]:
    lengths = run_lengths(mask)
    return {"size": list(mask.shape), "counts": compressed(lengths) if compress else lengths}


def boxes(seed: int, count: int = 3, size: tuple[int, int] = (12, 15)) -> NDArray[np.bool_]:
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, *size), bool)
    for mask in masks:
        top, left = rng.integers(0, min(size), 2)
        mask[top : top + 6, left : left + 4] = True
    return masks


Writer = Callable[[Path, str, NDArray[np.bool_]], None]


def write_png(folder: Path, name: str, masks: NDArray[np.bool_]) -> None:
    (folder / name).mkdir(parents=True)
    for number, mask in enumerate(masks):
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / name / f"{number:03d}.png")


def write_bits(folder: Path, name: str, masks: NDArray[np.bool_]) -> None:
    (folder / name).mkdir(parents=True)
    for number, mask in enumerate(masks):
        Image.fromarray(mask).save(folder / name / f"{number:03d}.PNG")


def write_palette(folder: Path, name: str, masks: NDArray[np.bool_]) -> None:
    (folder / name).mkdir(parents=True)
    for number, mask in enumerate(masks):
        image = Image.fromarray(mask.astype(np.uint8) * 255)
        image.putpalette([level for level in range(256) for _ in range(3)])
        image.save(folder / name / f"{number:03d}.png")


def write_json(folder: Path, name: str, content: Any) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(content))


WRITERS: dict[str, Writer] = {
    "png": write_png,
    "1 bit": write_bits,
    "palette": write_palette,
    "rle": lambda folder, name, masks: write_json(folder, name, [{"segmentation": rle(m), "area": 1} for m in masks]),
    "compressed": lambda folder, name, masks: write_json(folder, name, [{"segmentation": rle(m, True)} for m in masks]),
    "bare": lambda folder, name, masks: write_json(folder, name, [rle(mask, True) for mask in masks]),
    "annotations": lambda folder, name, masks: write_json(
        folder, name, {"image": {"width": 15}, "annotations": [{"segmentation": rle(mask)} for mask in masks]}
    ),
}


# --- what is read


@pytest.mark.parametrize("name", ["cat", "day.0/cat", "a photo"])
@pytest.mark.parametrize("kind", WRITERS)
def test_masks_are_those_that_were_written(kind: str, name: str, tmp_path: Path) -> None:
    masks = boxes(0)
    WRITERS[kind](tmp_path, name, masks)
    WRITERS[kind](tmp_path, "other", boxes(1))
    found = SegmentFolder(tmp_path)(name, (12, 15))
    assert found.dtype.is_floating_point is False
    np.testing.assert_array_equal(found.numpy(), masks)
    assert found.numpy().dtype == bool


@pytest.mark.parametrize("kind", WRITERS)
def test_a_photo_without_masks(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path, "cat", boxes(0, count=0))
    assert SegmentFolder(tmp_path)("cat", (12, 15)).shape == (0, 12, 15)


def test_other_files_do_not_matter(tmp_path: Path) -> None:
    """`amg.py` writes a table as well, and some systems hidden files."""
    write_png(tmp_path, "cat", boxes(0))
    (tmp_path / "cat" / "metadata.csv").write_text("id,area\n")
    (tmp_path / "cat" / "._000.png").write_bytes(b"hidden")
    assert len(SegmentFolder(tmp_path)("cat", (12, 15))) == 3


@pytest.mark.parametrize(("text", "mask"), RECORDED, ids=["square", "dots", "full", "empty"])
def test_recorded_strings(text: str, mask: NDArray[np.bool_]) -> None:
    np.testing.assert_array_equal(decode_rle({"size": list(mask.shape), "counts": text}), mask)
    assert compressed(run_lengths(mask)) == text  # what other tests encode with is right, too


@given(seed=st.integers(0, 10_000), height=st.integers(1, 90), width=st.integers(1, 90), compress=st.booleans())
def test_what_was_encoded_is_decoded(seed: int, height: int, width: int, compress: bool) -> None:
    rng = np.random.default_rng(seed)
    coarse = rng.random((height // 9 + 1, width // 9 + 1)) < 0.5  # long and short runs
    mask = np.kron(coarse, np.ones((9, 9), bool))[:height, :width] ^ (rng.random((height, width)) < 0.02)
    np.testing.assert_array_equal(decode_rle(rle(mask, compress)), mask)


def test_a_folder_is_known_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert repr(SegmentFolder(".")) == repr(SegmentFolder("link")) == repr(SegmentFolder(tmp_path))
    (tmp_path / "other").mkdir()
    assert repr(SegmentFolder("other")) != repr(SegmentFolder("."))


# --- masks of the photo before it was reduced


@pytest.mark.parametrize("kind", ["png", "compressed"])
def test_masks_of_a_larger_photo_take_the_nearest_pixel(kind: str, tmp_path: Path) -> None:
    masks = boxes(2, size=(40, 61))
    WRITERS[kind](tmp_path, "cat", masks)
    found = SegmentFolder(tmp_path)("cat", (20, 30)).numpy()
    expected = [Image.fromarray(m.astype(np.uint8)).resize((30, 20), Image.Resampling.NEAREST) for m in masks]
    np.testing.assert_array_equal(found, np.stack([np.asarray(mask) for mask in expected]) > 0)
    assert found.any()


@pytest.mark.parametrize("size", [(15, 12), (12, 14), (12, 16), (13, 15), (24, 30), (6, 9), (1, 1)], ids=str)
@pytest.mark.parametrize("kind", ["png", "compressed"])
def test_masks_of_another_size(kind: str, size: tuple[int, int], tmp_path: Path) -> None:
    """Smaller, or of other proportions, by a pixel as well."""
    WRITERS[kind](tmp_path, "cat", boxes(0))
    file = "cat/000.png" if kind == "png" else "cat.json, mask 0"
    message = f"{re.escape(str(tmp_path / file))}: the mask is 15x12 pixels, its photo {size[1]}x{size[0]}"
    if size == (1, 1):  # the only one that a photo of 15x12 px can become
        assert SegmentFolder(tmp_path)("cat", size).shape == (3, 1, 1)
    else:
        with pytest.raises(DataError, match=message):
            SegmentFolder(tmp_path)("cat", size)


# --- files that are not in order


def test_no_such_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("nowhere", "file"):
        with pytest.raises(DataError, match=rf"{name}: no such folder of masks"):
            SegmentFolder(tmp_path / name)


def test_a_photo_that_is_missing_or_there_twice(tmp_path: Path) -> None:
    write_png(tmp_path, "cat", boxes(0))
    with pytest.raises(DataError, match=r"the photo dog must have a folder dog/ or dog\.json; has neither"):
        SegmentFolder(tmp_path)("dog", (12, 15))
    write_json(tmp_path, "cat", [])
    with pytest.raises(DataError, match=r"the photo cat must have a folder cat/ or cat\.json; has both"):
        SegmentFolder(tmp_path)("cat", (12, 15))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((12, 15), 128, np.uint8), "a mask must be 0 or 255, this one has 128"),
        (np.ones((12, 15), np.uint8), "a mask must be 0 or 255, this one has 1"),
        (np.zeros((12, 15, 3), np.uint8), "a mask must have 1 bit, or 8 of grey or palette; this one has mode RGB"),
        (np.zeros((12, 15), np.uint16), "a mask must have 1 bit, or 8 of grey or palette; this one has mode I;16"),
    ],
)
def test_a_png_that_is_no_mask(pixels: NDArray[Any], message: str, tmp_path: Path) -> None:
    write_png(tmp_path, "cat", boxes(0))
    Image.fromarray(pixels).save(tmp_path / "cat" / "001.png")
    with pytest.raises(DataError, match=rf"cat/001\.png: {message}"):
        SegmentFolder(tmp_path)("cat", (12, 15))


def test_a_damaged_png_and_one_of_another_kind(tmp_path: Path) -> None:
    write_png(tmp_path, "cat", boxes(0))
    path = tmp_path / "cat" / "002.png"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=r"cat/002\.png: cannot be read as an image"):
        SegmentFolder(tmp_path)("cat", (12, 15))
    path.rename(path.with_suffix(".jpg"))
    with pytest.raises(DataError, match=r"cat/002\.jpg: a mask must be a PNG"):
        SegmentFolder(tmp_path)("cat", (12, 15))


@pytest.mark.parametrize("content", [b"", b"[", b'[{"size": [12, 15]', b"\xff\xfe[]", b"[" * 100_000], ids=range(5))
def test_what_is_no_json(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "cat.json").write_bytes(content)
    with pytest.raises(DataError, match=r"cat\.json: cannot be read as json"):
        SegmentFolder(tmp_path)("cat", (12, 15))


@pytest.mark.parametrize("content", [{}, {"annotations": {}}, {"segmentation": []}, "text", 3, None], ids=str)
def test_json_that_is_no_list_of_masks(content: Any, tmp_path: Path) -> None:
    write_json(tmp_path, "cat", content)
    with pytest.raises(DataError, match=r"cat\.json: must be a list of masks, or a dict with such a list as `annotat"):
        SegmentFolder(tmp_path)("cat", (12, 15))


SIZE = [12, 15]
NO_STRING, DAMAGED = "`counts` is no compressed string of COCO, or is cut off", "`counts` must be of 180 pixels"
BAD: list[tuple[Any, str]] = [
    (None, "must be a dict with `size` and `counts`"),
    ([1, 2], "must be a dict with `size` and `counts`"),
    ({"size": SIZE}, "must be a dict with `size` and `counts`"),
    ({"segmentation": [[0, 0, 5, 5, 0, 5]]}, "must be a dict with `size` and `counts`"),  # a polygon
    ({"size": [12], "counts": [180]}, r"`size` must be height and width, got \[12\]"),
    ({"size": [12, 15.0], "counts": [180]}, r"`size` must be height and width, got \[12, 15.0\]"),
    ({"size": [-12, -15], "counts": [180]}, "`size` must be height and width"),
    ({"size": [0, 15], "counts": [0]}, "`size` must be height and width"),
    ({"size": "12x15", "counts": [180]}, "`size` must be height and width, got '12x15'"),
    ({"size": SIZE, "counts": None}, "`counts` must be a string or a list of whole numbers"),
    ({"size": SIZE, "counts": [90.0, 90.0]}, "`counts` must be a string or a list of whole numbers"),
    ({"size": SIZE, "counts": [True] * 180}, "`counts` must be a string or a list of whole numbers"),
    ({"size": SIZE, "counts": [2**70]}, "`counts` must be a string or a list of whole numbers"),
    ({"size": SIZE, "counts": []}, DAMAGED),
    ({"size": SIZE, "counts": [100, 79]}, DAMAGED),
    ({"size": SIZE, "counts": [100, 81]}, DAMAGED),
    ({"size": SIZE, "counts": [200, -20]}, DAMAGED),
    ({"size": SIZE, "counts": "0d0"}, DAMAGED),
    ({"size": SIZE, "counts": ""}, NO_STRING),
    ({"size": SIZE, "counts": "12 3"}, NO_STRING),
    ({"size": SIZE, "counts": "0dé0"}, NO_STRING),
    ({"size": SIZE, "counts": "0d"}, NO_STRING),  # more should follow
    ({"size": SIZE, "counts": "o" * 12 + "0"}, "`counts` has a number of 13 characters, 7 are the most"),
]


@pytest.mark.parametrize(("mask", "message"), BAD, ids=range(len(BAD)))
def test_a_mask_that_is_not_in_order(mask: Any, message: str, tmp_path: Path) -> None:
    write_json(tmp_path, "cat", [rle(boxes(0)[0]), mask])
    with pytest.raises(DataError, match=rf"cat\.json, mask 1: {message}"):
        SegmentFolder(tmp_path)("cat", (12, 15))
