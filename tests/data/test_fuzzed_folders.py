"""Folders of photos with drawn faults: each works, or an error of the library names what is wrong; on any draw."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_contrast.data import DataError, FolderDataModule, VOCDataModule

CASES = 250
"""Of each layout."""
SIDES = (1, 3, 17, 24, 40, 64)

Fault = Callable[[random.Random, tuple[int, int]], bytes]


def pixels(rng: random.Random, size: tuple[int, int], channels: int = 3) -> np.ndarray:
    made = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (*size, channels)).astype(np.uint8)
    return made[..., 0] if channels == 1 else made


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(rng: random.Random, size: tuple[int, int]) -> bytes:
    """Stored on its side or upside down; upright it has the size."""
    orientation = rng.randint(1, 8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = size[::-1] if orientation > 4 else size
    return encoded(Image.fromarray(pixels(rng, stored)), "JPEG", exif=exif)


def palette(rng: random.Random, size: tuple[int, int]) -> bytes:
    return encoded(Image.fromarray(pixels(rng, size)).convert("P"), "PNG")


def bomb(_rng: random.Random, _size: tuple[int, int]) -> bytes:
    """A small file of 40,000 x 40,000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def cut(rng: random.Random, size: tuple[int, int]) -> bytes:
    content = encoded(Image.fromarray(pixels(rng, size)), rng.choice(("JPEG", "PNG")))
    return content[: rng.randint(1, len(content) // 2)]


GOOD: dict[str, Fault] = {
    "jpeg": lambda rng, size: encoded(Image.fromarray(pixels(rng, size)), "JPEG"),
    "progressive": lambda rng, size: encoded(Image.fromarray(pixels(rng, size)), "JPEG", progressive=True),
    "grey": lambda rng, size: encoded(Image.fromarray(pixels(rng, size, 1)), "JPEG"),
    "cmyk": lambda rng, size: encoded(Image.fromarray(pixels(rng, size, 4), "CMYK"), "JPEG"),
    "png": lambda rng, size: encoded(Image.fromarray(pixels(rng, size)), "PNG"),
    "rgba": lambda rng, size: encoded(Image.fromarray(pixels(rng, size, 4), "RGBA"), "PNG"),
    "16 bits": lambda rng, size: encoded(Image.fromarray(pixels(rng, size, 1).astype(np.uint16) * 257), "PNG"),
    "one bit": lambda rng, size: encoded(Image.fromarray(pixels(rng, size, 1)).convert("1"), "PNG"),
    "palette": palette,
    "turned": turned,
    "webp": lambda rng, size: encoded(Image.fromarray(pixels(rng, size)), "WEBP"),
    "tiff": lambda rng, size: encoded(Image.fromarray(pixels(rng, size)), "TIFF"),
    "gif": lambda rng, size: encoded(Image.fromarray(pixels(rng, size)).convert("P"), "GIF"),
}
BAD: dict[str, Fault] = {
    "empty": lambda _rng, _size: b"",
    "text": lambda _rng, _size: b"<html>404</html>",
    "zeros": lambda _rng, _size: bytes(300),
    "cut": cut,
    "bomb": bomb,
    "floating point": lambda rng, size: encoded(Image.fromarray(pixels(rng, size, 1).astype(np.float32) + 0.5), "TIFF"),
}
NAMES = ("photo", "Zürich", "наука", "猫", "with space", "dots.in.it", "100%", "-dash", "x" * 80, "q'uote", "0007")


def mask(rng: random.Random, size: tuple[int, int], ids: tuple[int, ...]) -> bytes:
    values = np.array([rng.choice((*ids, 0, 255)) for _ in range(size[0] * size[1])], np.uint8)
    return encoded(Image.fromarray(values.reshape(size)), "PNG")


BAD_MASKS: dict[str, Fault] = {
    "ids": lambda rng, size: encoded(Image.fromarray(np.full(size, rng.randint(100, 254), np.uint8)), "PNG"),
    "colours": lambda rng, size: encoded(Image.fromarray(pixels(rng, size)), "PNG"),
    "16 bits": lambda rng, size: encoded(Image.fromarray(np.zeros(size, np.uint16)), "PNG"),
    "size": lambda rng, size: mask(rng, (size[0] + 1, size[1]), ()),
    "cut": lambda rng, size: mask(rng, (40, 40), (1,))[:50],
    "empty": lambda _rng, _size: b"",
}


def folder(root: Path, rng: random.Random) -> list[str]:
    """A plain folder; returns what an error must name one of, nothing where all is in order."""
    wrong: list[str] = []
    (root / "images").mkdir()
    masks, lines = rng.random() < 0.4, ["name,tags"]
    for name in rng.sample(NAMES, rng.randint(2, 5)):
        size = (rng.choice(SIDES), rng.choice(SIDES))
        bad = rng.random() < 0.08
        kind = rng.choice(sorted(BAD if bad else GOOD))
        path = root / "images" / f"{name}{rng.choice(('.jpg', '.png', '.JPEG', '.tif'))}"
        path.write_bytes((BAD if bad else GOOD)[kind](rng, size))
        wrong += [path.name] * bad
        tags = rng.choices(("cat", "dog", "cat dog", "dog dog", "", "  cat ", "dog\tcat", "owl"), (5,) * 7 + (1,))[0]
        wrong += ["owl"] * (tags == "owl")
        quoted = rng.random() < 0.2
        form = rng.choices(("line", "none", "twice", "three", "stray"), (40, 1, 1, 1, 1))[0]
        line = f'"{name}","{tags}"' if quoted else f"{name},{tags}"
        lines += {"line": [line], "none": [], "twice": [line] * 2, "three": [line + ",x"], "stray": ['"' + line]}[form]
        # A stray quote swallows the lines below it: what is then wrong is no longer this line alone.
        wrong += [] if form == "line" else ["tags.csv"] if form in ("stray", "three") else [name]
        if masks and rng.random() < 0.7:
            (root / "masks").mkdir(exist_ok=True)
            broken = rng.choice(sorted(BAD_MASKS)) if rng.random() < 0.1 else None
            content = mask(rng, size, (1, 2)) if broken is None else BAD_MASKS[broken](rng, size)
            (root / "masks" / f"{name}.png").write_bytes(content)
            wrong += [] if broken is None else [f"{name}.png"]
    if rng.random() < 0.05:
        lines[0] = rng.choice(("image,tags", "", "name;tags"))
        wrong.append("tags.csv")
    text = "\n".join(lines) + "\n"
    (root / "tags.csv").write_bytes(text.encode(rng.choice(("utf-8", "utf-8-sig"))))
    return wrong


def voc(root: Path, rng: random.Random) -> list[str]:
    """A folder in VOC's layout, likewise."""
    wrong: list[str] = []
    for part in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    names, lines = rng.sample([name for name in NAMES if " " not in name], rng.randint(2, 5)), ["name,tags"]
    for name in names:
        size = (rng.choice(SIDES), rng.choice(SIDES))
        bad, broken = rng.random() < 0.08, rng.random() < 0.08
        # Stored pixels count here: a photo that is turned has its masks' size as it is stored.
        kinds = sorted(BAD) if bad else sorted(GOOD.keys() - {"turned"})
        kind = rng.choice(kinds)
        (root / "JPEGImages" / f"{name}.jpg").write_bytes((BAD if bad else GOOD)[kind](rng, size))
        content = BAD_MASKS[rng.choice(sorted(BAD_MASKS))](rng, size) if broken else mask(rng, size, (5, 8, 12))
        (root / "SegmentationClassAug" / f"{name}.png").write_bytes(content)
        wrong += [name] * (bad or broken)
        tags = rng.choices(("cat", "dog", "cat dog", "bottle", "", "unicorn"), (5, 5, 5, 5, 5, 1))[0]
        wrong += ["unicorn"] * (tags == "unicorn")
        missing = rng.random() < 0.05
        lines += [] if missing else [f"{name},{tags}"]
        wrong += [name] * missing
    if rng.random() < 0.1:
        names.append("not_there")
        wrong.append("not_there")
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (root / "tags.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return wrong


def all_of(data: FolderDataModule | VOCDataModule) -> None:
    """Reads every sample that the data has, in training and as it is."""
    data.setup(None)
    for dataset in (data.train_set, *data.val_sets.values(), data.predict_set):
        for index in range(len(dataset)):
            sample = dataset[index]
            assert torch.isfinite(sample["image"]).all()
            assert sample["image"].shape[0] == 3
            assert set(sample["tags"].unique().tolist()) <= {0.0, 1.0}
            if "mask" in sample:
                assert sample["mask"].shape == sample["image"].shape[1:]
                assert {int(i) for i in sample["mask"].unique()} <= {0, 1, 2, 255}


@pytest.mark.parametrize("layout", ["folder", "voc"])
@pytest.mark.parametrize("block", range(5))
def test_drawn_folders(layout: str, block: int, tmp_path: Path) -> None:
    outcomes = {"works": 0, "refused": 0}
    for case in range(block * CASES // 5, (block + 1) * CASES // 5):
        rng, root = random.Random(f"{layout} {case}"), tmp_path / str(case)
        root.mkdir()
        wrong = folder(root, rng) if layout == "folder" else voc(root, rng)
        sizes = {"crop_size": 16, "resize_long": (12, 24), "batch_size": 1}
        refused = ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if layout == "folder":
                    all_of(FolderDataModule(str(root), classes=["cat", "dog"], **sizes))
                else:
                    lists = {"train_split": "train", "val_split": "train", "tags": "tags.csv"}
                    all_of(VOCDataModule(str(root), classes=["cat", "dog"], **lists, **sizes))
        except DataError as error:
            refused = str(error)
        assert bool(refused) == bool(wrong), f"case {case}: wrong is {wrong}, the error {refused!r}"
        assert not wrong or any(name in refused for name in wrong), (
            f"case {case}: wrong is {wrong}, the error {refused!r}"
        )
        outcomes["refused" if refused else "works"] += 1
    assert min(outcomes.values()) >= CASES // 5 // 5, outcomes
