"""``wsss-contrast evaluate``: the scores of a folder of masks."""

from __future__ import annotations

import argparse
import csv
import glob
import io
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import multiclass_confusion_matrix

from wsss_contrast.data import VOC_CLASSES, DataError
from wsss_contrast.data.base import check_class_names, mask_size_problem, read_image, read_mask, some
from wsss_contrast.data.coco import COCOMasks
from wsss_contrast.data.folder import IMAGE_SUFFIXES
from wsss_contrast.data.voc import read_list
from wsss_contrast.files import write_atomically
from wsss_contrast.functional import NO_LABEL
from wsss_contrast.metrics import SegmentationScores, segmentation_scores
from wsss_contrast.pictures import picture_sheet, png

_SHOWN = 8  # rows of the sheet


def evaluate(
    masks: Path,
    truth: Path | COCOMasks,
    ids: Sequence[int],
    names: Sequence[str] | None = None,
    count_absent: bool = False,
    uncounted: Iterable[int] = (),
) -> SegmentationScores:
    """Score masks against the truth, over all pixels of all masks.

    Args:
        masks: folder of masks, ``NAME.png``, palette or grey, of class ids.
        truth: folder of true masks with the same names and sizes, or masks of COCO's annotations.
        ids: the ids of background and classes in both, 0 to 254. Pixels that are 255 in the truth are not counted.
        names: which masks; by default all in ``masks``.
        count_absent: count a class that occurs nowhere as IoU 0.
        uncounted: further ids that the truth may have; their pixels are not counted.

    Raises:
        DataError: a folder or file that is missing, a mask or truth of another size, of other ids or that can't be
            read; names the file.
    """
    names = mask_names(masks, truth) if names is None else names
    in_truth = {*ids, *uncounted, NO_LABEL}
    place = np.full(256, NO_LABEL)
    place[list(ids)] = np.arange(len(ids))
    confusion = torch.zeros(len(ids), len(ids), dtype=torch.long)
    for name in names:
        path = masks / f"{name}.png"
        predicted, (true_path, true) = read_mask(path), _true(truth, name)
        problem = mask_size_problem(path, predicted.shape, true_path, true.shape)
        if problem is not None:
            raise DataError(problem)
        for file, mask, known in ((path, predicted, set(ids)), (true_path, true, in_truth)):
            wrong = sorted(set(np.unique(mask).tolist()) - known)
            if wrong:
                raise DataError(f"{file}: has the ids {wrong}, expected only {sorted(known)}")
        confusion += multiclass_confusion_matrix(
            torch.from_numpy(place[predicted]), torch.from_numpy(place[true]), len(ids), ignore_index=NO_LABEL
        )
    if not confusion.any():
        raise DataError(f"{_path(truth)}: no pixel to count, all are 255 or of other ids")
    return segmentation_scores(confusion, count_absent)


def mask_names(masks: Path, truth: Path | COCOMasks, names: Sequence[str] | None = None) -> list[str]:
    """The masks to score; all are there, and so is the truth of each."""
    folders = [masks] if isinstance(truth, COCOMasks) else [masks, truth]
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder")
    chosen = sorted(path.stem for path in masks.glob("*.png")) if names is None else list(names)
    if not chosen:
        raise DataError(f"{masks}: has no masks (NAME.png)")
    for folder in folders:
        missing = [str(folder / f"{name}.png") for name in chosen if not (folder / f"{name}.png").is_file()]
        if missing:
            raise DataError(f"{some(missing)}: no such mask")
    unknown = [name for name in chosen if isinstance(truth, COCOMasks) and name not in truth]
    if unknown:
        raise DataError(f"{_path(truth)}: has no image {some(unknown)}")
    return chosen


def _path(truth: Path | COCOMasks) -> Path:
    return truth.path if isinstance(truth, COCOMasks) else truth


def _true(truth: Path | COCOMasks, name: str) -> tuple[Path, NDArray[np.uint8]]:
    """A true mask, and where it is from."""
    if isinstance(truth, COCOMasks):
        return truth.path / name, truth.read_named(name)
    return truth / f"{name}.png", read_mask(truth / f"{name}.png")


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
    parser.add_argument(
        "truth",
        type=Path,
        help="folder of true masks of the same names and sizes; 255 is not counted. Or annotations of COCO, "
        "instances_*.json (extra `coco`)",
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="the classes with the ids 1, 2, ...; by default the 20 of VOC, or all that the annotations have",
    )
    parser.add_argument(
        "--voc-ids", action="store_true", help="the ids are VOC's, and --classes a choice; others are not counted"
    )
    parser.add_argument(
        "--list", type=Path, help="file with the names of the masks to score, one a line, or a list of VOC"
    )
    parser.add_argument("--photos", type=Path, help="folder of the photos, NAME.jpg, .png, ..., for the sheet")
    parser.add_argument("--count-absent", action="store_true", help="count a class that occurs nowhere as IoU 0")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluate"), help="folder for scores.csv and sheet.png")
    options = parser.parse_args(args)
    try:
        truth, classes, ids = _truth(options)
        if options.out.resolve() in (options.masks.resolve(), options.truth.resolve()):
            raise DataError(f"--out {options.out}: sheet.png would lie among the masks; give another folder")
        listed = None if options.list is None else read_list(options.list, spaces=True)
        names = mask_names(options.masks, truth, listed)
        uncounted = range(len(VOC_CLASSES) + 1) if options.voc_ids else ()
        scores = evaluate(options.masks, truth, ids, names, options.count_absent, uncounted)
        sheet = _sheet(options, truth, names)
        print(as_table(scores, classes))
        absent = [name for name, value in zip(classes, scores.iou.tolist(), strict=True) if math.isnan(value)]
        if absent:
            treated = "counted as 0" if options.count_absent else "left out of the mean"
            print(f"in no mask, and {treated}: {', '.join(absent)}")
        write_atomically(as_csv(scores, classes).encode(), options.out / "scores.csv")
        write_atomically(sheet, options.out / "sheet.png")
        print(f"{len(names)} masks. Written: {options.out / 'scores.csv'}, {options.out / 'sheet.png'}")
    except (DataError, ImportError, OSError) as error:
        sys.exit(f"wsss-contrast: {error}")


def _truth(options: argparse.Namespace) -> tuple[Path | COCOMasks, list[str], list[int]]:
    """True masks, names of background and classes, and their ids."""
    if options.truth.suffix != ".json":
        return options.truth, *_classes(options.classes, options.voc_ids)
    if options.voc_ids:
        raise DataError(f"--voc-ids: {options.truth} has other ids")
    try:
        truth = COCOMasks(options.truth, options.classes)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"--classes: {error}") from error
    return truth, ["background", *truth.class_names], list(range(len(truth.class_names) + 1))


def _classes(names: Sequence[str] | None, voc_ids: bool) -> tuple[list[str], list[int]]:
    """Names of background and classes, and their ids."""
    known = ["background", *VOC_CLASSES]
    try:
        chosen = check_class_names(["background", *(names or VOC_CLASSES)], known if voc_ids else None)
    except ValueError as error:
        raise DataError(f"--classes: {error}") from error
    if len(chosen) > NO_LABEL:
        raise DataError(f"--classes: {len(chosen) - 1} classes, but a mask has ids for {NO_LABEL - 1}")
    return chosen, [known.index(name) for name in chosen] if voc_ids else list(range(len(chosen)))


def _sheet(options: argparse.Namespace, truth: Path | COCOMasks, names: Sequence[str]) -> bytes:
    """Some masks beside the truth, spread evenly over the names."""
    rows = []
    for index in np.linspace(0, len(names) - 1, min(_SHOWN, len(names))).round().astype(int):
        predicted, (true_path, true) = read_mask(options.masks / f"{names[index]}.png"), _true(truth, names[index])
        rows.append([_photo(options.photos, names[index], true_path, true), true, predicted])
    return png(picture_sheet(["photo", "truth", "mask"], rows))


def _photo(folder: Path | None, name: str, mask_path: Path, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if folder is None:
        return np.full((*mask.shape, 3), 128, np.uint8)
    files = folder.glob(f"{glob.escape(name)}.*")
    found = sorted(path for path in files if path.stem == name and path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise DataError(f"{folder}: has no photo {name}")
    for upright in (False, True):  # masks of VOC belong to the stored photo, those of a FolderDataset to the upright
        photo = read_image(found[0], upright)
        problem = mask_size_problem(mask_path, mask.shape, found[0], photo.shape)
        if problem is None:
            return photo
    raise DataError(problem)
