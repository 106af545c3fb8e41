"""``wsss-contrast submit``: masks in the form that the PASCAL VOC server takes."""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsss_contrast.data import VOC_CLASSES, DataError
from wsss_contrast.data.base import mask_size_problem, read_mask, some, stored_size
from wsss_contrast.data.voc import GET_VOC_TEST, VOC_COUNTS, read_list
from wsss_contrast.files import write_atomically
from wsss_contrast.pictures import mask_image, png

COMPETITIONS = ("comp5", "comp6")


def pack(masks: Path, photos: Path, names: Sequence[str], competition: str = "comp6") -> bytes:
    """A tar of the masks, gzipped, ``results/VOC2012/Segmentation/comp6_test_cls/NAME.png``, all of them checked.

    Args:
        masks: folder of masks, ``NAME.png``, palette or grey, of VOC's ids.
        photos: folder of the photos, ``NAME.jpg``.
        names: all photos of the split.
        competition: ``"comp6"``, or ``"comp5"`` for networks that have seen VOC's images alone.

    Raises:
        DataError: a mask or photo that is missing or can't be read, a mask of another size than its photo or with other
            ids than 0 to 20 (the server takes no 255); names the file.
    """
    if competition not in COMPETITIONS:
        raise DataError(f"unknown competition {competition!r}; there are {', '.join(COMPETITIONS)}")
    if not names:
        raise DataError("the list names no photos")
    for folder, suffix, what in ((masks, ".png", "mask"), (photos, ".jpg", "photo")):
        missing = [str(folder / f"{name}{suffix}") for name in names if not (folder / f"{name}{suffix}").is_file()]
        if missing:
            raise DataError(f"{some(missing)}: no such {what}")
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name in names:
            path, photo = masks / f"{name}.png", photos / f"{name}.jpg"
            mask = read_mask(path)
            problem = mask_size_problem(path, mask.shape, photo, stored_size(photo))
            if problem is not None:
                raise DataError(problem)
            wrong = sorted(set(np.unique(mask).tolist()) - {*range(len(VOC_CLASSES) + 1)})
            if wrong:
                raise DataError(f"{path}: has the ids {wrong}, the server takes 0 to {len(VOC_CLASSES)}")
            image = png(mask_image(mask))
            entry = tarfile.TarInfo(f"results/VOC2012/Segmentation/{competition}_test_cls/{name}.png")
            entry.size = len(image)
            archive.addfile(entry, io.BytesIO(image))
    return content.getvalue()


def _names(path: Path) -> list[str]:
    """The photos of a list. Another list than ``test`` may have any number: a practice."""
    how = f" {GET_VOC_TEST}" if path.stem == "test" else ""
    if not path.is_file():
        raise DataError(f"{path}: no such list.{how}")
    names = read_list(path)
    if path.stem == "test" and len(names) != VOC_COUNTS["test"]:
        raise DataError(f"{path}: lists {len(names)} photos, the server wants {VOC_COUNTS['test']}.{how}")
    return names


def main(args: Sequence[str] | None = None) -> None:
    """Check the masks and write the archive."""
    parser = argparse.ArgumentParser(
        prog="wsss-contrast submit", description="Pack masks of VOC 2012's test split for its evaluation server."
    )
    parser.add_argument("masks", type=Path, help="folder of masks, NAME.png, of VOC's ids")
    parser.add_argument("root", type=Path, help="the folder VOC2012: JPEGImages and ImageSets/Segmentation/SPLIT.txt")
    parser.add_argument(
        "--split",
        default="test",
        help="list of the photos, in ImageSets/Segmentation; the server takes the whole of test",
    )
    parser.add_argument("--competition", choices=COMPETITIONS, default="comp6")
    parser.add_argument("--out", type=Path, default=Path("runs/results.tgz"), help="the archive")
    options = parser.parse_args(args)
    try:
        names = _names(options.root / "ImageSets/Segmentation" / f"{options.split}.txt")
        write_atomically(pack(options.masks, options.root / "JPEGImages", names, options.competition), options.out)
    except (DataError, OSError) as error:
        sys.exit(f"wsss-contrast: {error}")
    print(f"{len(names)} masks. Written: {options.out}")
