"""Small files that ask for more memory than there is: refused by name, before the memory is taken."""

from __future__ import annotations

import json
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.coco_fake import annotations
from tests.data.test_fuzzed_folders import encoded
from wsss_contrast.data import COCODataset, DataError, LabelFolder, SaliencyFolder, SegmentFolder, VOCDataset
from wsss_contrast.data.base import open_image, read_image, read_mask, stored_size

SIDE = 60_000
ROOM = 2**27
"""Bytes that a refusal may take; the smallest bomb is of 3.6e9 pixels."""


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """What takes more than ROOM raises a MemoryError."""
    resource, usage = pytest.importorskip("resource"), Path("/proc/self/statm")
    if not usage.exists():
        pytest.skip("needs Linux")
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(usage.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(side: int = SIDE, mode: int = 0, *more: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, mode, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes((side + 1) * side if side < 100 else 10)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + body + chunk(b"IEND", b"")


def jpeg() -> bytes:
    """A real one, whose head says that it is large."""
    content = encoded(Image.fromarray(np.zeros((8, 8, 3), np.uint8)), "JPEG")
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", SIDE, SIDE) + content[at + 4 :]


def bmp() -> bytes:
    content = encoded(Image.fromarray(np.zeros((8, 8), np.uint8)), "BMP")
    return content[:18] + struct.pack("<ii", SIDE, SIDE) + content[26:]


def gif() -> bytes:
    content = encoded(Image.fromarray(np.zeros((8, 8), np.uint8)), "GIF")
    return content[:6] + struct.pack("<HH", SIDE, SIDE) + content[10:]


@cache
def text() -> bytes:
    """A picture of four pixels, with a comment of 256 MiB."""
    packer, zeros = zlib.compressobj(), bytes(2**22)
    packed = b"".join(packer.compress(zeros) for _ in range(2 * ROOM // len(zeros))) + packer.flush()
    return png(2, 0, chunk(b"zTXt", b"Comment\0\0" + packed))


IMAGES: dict[str, Callable[[], bytes]] = {
    "grey PNG": png,
    "colour PNG": lambda: png(mode=2),
    "JPEG": jpeg,
    "BMP": bmp,
    "GIF": gif,
    "text": text,
}
READERS: dict[str, Callable[[Path], object]] = {
    "photo": read_image,
    "upright photo": lambda path: read_image(path, upright=True),
    "mask": read_mask,
    "size": stored_size,
    "image": open_image,
    "labels": lambda path: LabelFolder(path.parent, [0, 1])("a", (2, 2)),
    "saliency": lambda path: SaliencyFolder(path.parent)("a", (2, 2)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", IMAGES)
def test_images(kind: str, reader: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(IMAGES[kind]())
    assert path.stat().st_size < 2**22
    with pytest.raises(DataError, match=r"a\.png: cannot be read as an image"):
        READERS[reader](path)


def test_segments_as_images(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(png())
    with pytest.raises(DataError, match=r"0\.png: cannot be read as an image"):
        SegmentFolder(tmp_path)("a", (2, 2))


@pytest.mark.parametrize("counts", [[SIDE * SIDE // 2] * 2, "0", [1_000_000] * 3600], ids=["two", "text", "many"])
def test_segments_as_run_lengths(counts: list[int] | str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"size": [SIDE, SIDE], "counts": counts}]))
    with pytest.raises(DataError, match=r"a\.json, mask 0: `size` must be of 134217728 pixels at most, got \[60000, "):
        SegmentFolder(tmp_path)("a", (2, 2))


@pytest.mark.skipif(find_spec("pycocotools") is None, reason="needs pycocotools")
@pytest.mark.parametrize("place", [1e9, -1e9, 1e30, float("nan"), float("inf"), 10**40, "1", None])
def test_polygons_far_away(place: object, coco_root: Path) -> None:
    """They would end the process."""
    content = json.loads(annotations(coco_root).read_text())
    content["annotations"] = [
        {"id": 7, "image_id": 4, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4], [0, 0, place, 0, place, place]]}
    ]
    annotations(coco_root).write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"annotation 7: `segmentation` must have numbers from -200 to 200, got"):
        COCODataset(coco_root, with_mask=True)[0]


def test_annotations_that_grow(voc_root: Path) -> None:
    """Entities of entities, of 3^40 characters."""
    entities = "".join(f'<!ENTITY e{n} "&e{n - 1};&e{n - 1};&e{n - 1};">' for n in range(1, 40))
    head = f'<!DOCTYPE annotation [<!ENTITY e0 "cat">{entities}]>'
    (voc_root / "Annotations" / "a_2.xml").write_text(
        f"{head}<annotation><object><name>&e39;</name></object></annotation>"
    )
    with pytest.raises(DataError, match=r"a_2\.xml: cannot be read as XML"):
        VOCDataset(voc_root, "train", tags="xml")


def test_large_photos_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to twice PIL's limit, with its warning."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    for side, fits in ((28, True), (29, False)):
        Image.fromarray(np.zeros((side, side), np.uint8)).save(tmp_path / "a.png")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if fits:
                assert read_image(tmp_path / "a.png").shape == (28, 28, 3)
            else:
                with pytest.raises(DataError, match="exceeds limit"):
                    read_image(tmp_path / "a.png")
