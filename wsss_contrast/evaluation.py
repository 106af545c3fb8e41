"""``wsss-contrast evaluate``: the scores of a folder of masks."""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import multiclass_confusion_matrix

from wsss_contrast.data import VOC_CLASSES, DataError
from wsss_contrast.data.base import mask_size_problem, read_image, read_mask, some
from wsss_contrast.metrics import SegmentationScores, segmentation_scores
from wsss_contrast.pictures import IGNORE, picture_sheet, png, write_atomically

_SHOWN = 8  # rows of the sheet


def evaluate(
    masks: Path, truth: Path, ids: Sequence[int], names: Sequence[str] | None = None, count_absent: bool = False
) -> SegmentationScores:
    """Score masks against the truth, over all pixels of all masks.

    Args:
        masks: folder of masks, ``NAME.png``, palette or grey, of class ids.
        truth: folder of true masks with the same names and sizes.
        ids: the ids of background and classes in both. Other ids in the truth, and 255, are not counted.
        names: which masks; by default all in ``masks``.
        count_absent: count a class that occurs nowhere as IoU 0.

    Raises:
        DataError: a folder or file that is missing, a mask of another size, of other ids or that can't be read; names
            the file.
    """
    names = mask_names(masks, truth, names)
    place = np.full(256, IGNORE)
    place[list(ids)] = np.arange(len(ids))
    confusion = torch.zeros(len(ids), len(ids), dtype=torch.long)
    for name in names:
        path, true_path = masks / f"{name}.png", truth / f"{name}.png"
        predicted, true = read_mask(path), read_mask(true_path)
        problem = mask_size_problem(path, predicted.shape, true_path, true.shape)
        if problem is not None:
            raise DataError(problem)
        wrong = sorted(set(np.unique(predicted).tolist()) - set(ids))
        if wrong:
            raise DataError(f"{path}: has the ids {wrong}, expected only {list(ids)}")
        confusion += multiclass_confusion_matrix(
            torch.from_numpy(place[predicted]), torch.from_numpy(place[true]), len(ids), ignore_index=IGNORE
        )
    if not confusion.any():
        raise DataError(f"{truth}: no pixel to count, all are 255 or of other ids")
    return segmentation_scores(confusion, count_absent)


def mask_names(masks: Path, truth: Path, names: Sequence[str] | None) -> list[str]:
    """The masks to score; all are there, and so is the truth of each."""
    for folder in (masks, truth):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder")
    chosen = sorted(path.stem for path in masks.glob("*.png")) if names is None else list(names)
    if not chosen:
        raise DataError(f"{masks}: has no masks (NAME.png)")
    for folder in (masks, truth):
        missing = [str(folder / f"{name}.png") for name in chosen if not (folder / f"{name}.png").is_file()]
        if missing:
            raise DataError(f"{some(missing)}: no such mask")
    return chosen


def as_csv(scores: SegmentationScores, classes: Sequence[str]) -> str:
    """A line for each class and one for the mean IoU, in percent; empty where there is no score."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["class", "iou", "precision", "recall"])
    columns = (scores.iou, scores.precision, scores.recall)
    for name, *values in zip(classes, *(column.tolist() for column in columns), strict=True):
        writer.writerow([name, *("" if math.isnan(value) else f"{100 * value:.2f}" for value in values)])
    writer.writerow(["mean", f"{100 * scores.miou:.2f}", "", ""])
    return file.getvalue()


def as_table(scores: SegmentationScores, classes: Sequence[str]) -> str:
    """The same for the terminal."""
    width = max(map(len, ["background", *classes]))
    lines = [f"{'':{width}}     IoU  precision  recall"]
    columns = (scores.iou, scores.precision, scores.recall)
    for name, *values in zip(classes, *(column.tolist() for column in columns), strict=True):
        iou, precision, recall = ("-" if math.isnan(value) else f"{100 * value:.1f}" for value in values)
        lines.append(f"{name:{width}}  {iou:>6}  {precision:>9}  {recall:>6}")
    return "\n".join([*lines, f"{'mean IoU':{width}}  {100 * scores.miou:>6.1f}"])


def main(args: Sequence[str] | None = None) -> None:
    """Print the scores, write them to ``scores.csv``, and some masks to ``sheet.png``."""
    parser = argparse.ArgumentParser(prog="wsss-contrast evaluate", description="Score a folder of masks.")
    parser.add_argument("masks", type=Path, help="folder of masks, NAME.png")
    parser.add_argument("truth", type=Path, help="folder of true masks of the same names and sizes; 255 is not counted")
    parser.add_argument(
        "--classes", nargs="+", metavar="NAME", help="the classes with the ids 1, 2, ...; by default the 20 of VOC"
    )
    parser.add_argument(
        "--voc-ids", action="store_true", help="the ids are VOC's, and --classes a choice; others are not counted"
    )
    parser.add_argument("--list", type=Path, help="file with the names of the masks to score, one a line")
    parser.add_argument("--photos", type=Path, help="folder of the photos, NAME.jpg or NAME.png, for the sheet")
    parser.add_argument("--count-absent", action="store_true", help="count a class that occurs nowhere as IoU 0")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluate"), help="folder for scores.csv and sheet.png")
    options = parser.parse_args(args)
    try:
        classes, ids = _classes(options.classes, options.voc_ids)
        names = mask_names(options.masks, options.truth, None if options.list is None else _listed(options.list))
        scores = evaluate(options.masks, options.truth, ids, names, options.count_absent)
        sheet = _sheet(options, names)
    except DataError as error:
        sys.exit(f"wsss-contrast: {error}")
    print(as_table(scores, classes))
    absent = [name for name, value in zip(classes, scores.iou.tolist(), strict=True) if math.isnan(value)]
    if absent:
        treated = "counted as 0" if options.count_absent else "left out of the mean"
        print(f"in no mask, and {treated}: {', '.join(absent)}")
    print(f"{len(names)} masks. Written: {options.out / 'scores.csv'}, {options.out / 'sheet.png'}")
    write_atomically(as_csv(scores, classes).encode(), options.out / "scores.csv")
    write_atomically(sheet, options.out / "sheet.png")


def _classes(names: Sequence[str] | None, voc_ids: bool) -> tuple[list[str], list[int]]:
    """Names of background and classes, and their ids."""
    if names is None:
        return ["background", *VOC_CLASSES], list(range(len(VOC_CLASSES) + 1))
    unknown = [name for name in names if voc_ids and name not in VOC_CLASSES]
    if unknown:
        raise DataError(f"{', '.join(unknown)}: no class of VOC; these are {', '.join(VOC_CLASSES)}")
    if not voc_ids:
        return ["background", *names], list(range(len(names) + 1))
    return ["background", *names], [0, *(VOC_CLASSES.index(name) + 1 for name in names)]


def _listed(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    names = [line.strip() for line in lines if line.strip()]  # a name may have spaces
    if not names:
        raise DataError(f"{path}: lists no mask")
    return names


def _sheet(options: argparse.Namespace, names: Sequence[str]) -> bytes:
    """Some masks beside the truth, spread evenly over the names."""
    rows = []
    for index in np.linspace(0, len(names) - 1, min(_SHOWN, len(names))).round().astype(int):
        predicted, true = (read_mask(folder / f"{names[index]}.png") for folder in (options.masks, options.truth))
        rows.append([_photo(options.photos, options.truth / f"{names[index]}.png", true), true, predicted])
    return png(picture_sheet(["photo", "truth", "mask"], rows))


def _photo(folder: Path | None, mask_path: Path, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if folder is None:
        return np.full((*mask.shape, 3), 128, np.uint8)
    paths = [folder / f"{mask_path.stem}{suffix}" for suffix in (".jpg", ".jpeg", ".png")]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise DataError(f"{paths[0]}: no such photo")
    photo = read_image(found, upright=True)
    problem = mask_size_problem(mask_path, mask.shape, found, photo.shape)
    if problem is not None:
        raise DataError(problem)
    return photo
