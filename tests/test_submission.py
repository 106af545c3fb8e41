"""The archive for the server of PASCAL VOC: its layout, and what is refused before it is written."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import IMAGES
from wsss_contrast import cli, submission
from wsss_contrast.pictures import voc_palette


@pytest.fixture
def masks(voc_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(submission.VOC_COUNTS, "test", len(IMAGES))
    folder = tmp_path / "masks"
    folder.mkdir()
    for name, (size, ids) in IMAGES.items():
        mask = np.zeros(size, np.uint8)
        mask[2:4] = ids[0]
        Image.fromarray(mask).save(folder / f"{name}.png")
    (voc_root / "ImageSets/Segmentation/test.txt").write_text("\n".join(IMAGES))
    return folder


def submit(masks: Path, root: Path, *more: str) -> Path:
    out = root / "out" / "results.tgz"
    cli.main(["submit", str(masks), str(root), "--out", str(out), *more])
    return out


@pytest.mark.parametrize("competition", ["comp6", "comp5"])
def test_layout(competition: str, masks: Path, voc_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = submit(masks, voc_root, "--competition", competition)
    assert capsys.readouterr().out == f"3 masks. Written: {out}\n"
    with tarfile.open(out) as archive:
        folder = f"results/VOC2012/Segmentation/{competition}_test_cls"
        assert archive.getnames() == [f"{folder}/{name}.png" for name in IMAGES]
        for name in IMAGES:
            file = archive.extractfile(f"{folder}/{name}.png")
            assert file is not None
            with Image.open(io.BytesIO(file.read())) as packed, Image.open(masks / f"{name}.png") as mask:
                assert packed.mode == "P"
                assert packed.getpalette()[:63] == voc_palette()[:63]
                assert np.array_equal(np.asarray(packed), np.asarray(mask))


def test_what_is_refused(masks: Path, voc_root: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(SystemExit, match=f"^wsss-contrast: .*{message}"):
            submit(masks, voc_root)
        assert not (voc_root / "out").exists()

    good = (masks / "a_2.png").read_bytes()
    (masks / "a_2.png").unlink()
    refused(r"masks/a_2\.png: no such mask$")
    for ids, reason in ((255, r"has the ids \[255\], the server takes 0 to 20"), (21, r"has the ids \[21\]")):
        Image.fromarray(np.full(IMAGES["a_2"][0], ids, np.uint8)).save(masks / "a_2.png")
        refused(rf"masks/a_2\.png: {reason}")
    Image.fromarray(np.zeros((30, 50), np.uint8)).save(masks / "a_2.png")
    refused(r"a_2\.png: the mask is 50x30 pixels, its image .*a_2\.jpg is 30x50")
    (masks / "a_2.png").write_bytes(good[:20])
    refused(r"a_2\.png: cannot be read as an image")
    (masks / "a_2.png").write_bytes(good)
    (voc_root / "JPEGImages/a_3.jpg").unlink()
    refused(r"a_3\.jpg: no such photo$")


def test_the_list_of_the_server_is_whole(
    masks: Path, voc_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    how = r"VOC2012test\.tar.*register.* http://host\.robots\.ox\.ac\.uk:8080"
    monkeypatch.undo()
    with pytest.raises(SystemExit, match=rf"(?s)^wsss-contrast: .*test\.txt: lists 3 photos, .* 1456\..*{how}"):
        submit(masks, voc_root)
    lists = voc_root / "ImageSets/Segmentation"
    (lists / "test.txt").rename(lists / "val.txt")
    with pytest.raises(SystemExit, match=rf"(?s)^wsss-contrast: .*Segmentation/test\.txt: no such list\..*{how}"):
        submit(masks, voc_root)
    with pytest.raises(SystemExit, match=r"^wsss-contrast: .*Segmentation/valid\.txt: no such list\.$"):
        submit(masks, voc_root, "--split", "valid")
    assert not (voc_root / "out").exists()
    submit(masks, voc_root, "--split", "val")  # for practice, of any number
    assert capsys.readouterr().out.startswith("3 masks. Written")
