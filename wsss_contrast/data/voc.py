"""Datasets in the layout of PASCAL VOC."""

import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from pathlib import Path

import albumentations as A
import numpy as np
from numpy.typing import NDArray

from wsss_contrast.data.base import (
    DataError,
    Reading,
    TaggedImageDataset,
    check_class_names,
    mask_size_problem,
    read_image,
    read_mask,
    read_tags,
    some,
    stored_size,
)
from wsss_contrast.files import write_atomically
from wsss_contrast.functional import NO_LABEL
from wsss_contrast.pictures import mask_image, png

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""The 20 classes of PASCAL VOC. The one at position ``i`` has the id ``i + 1`` in the masks."""

VOC_COUNTS = {"train_aug": 10582, "train": 1464, "val": 1449, "trainval": 2913, "test": 1456}
"""How many images the field's lists of VOC 2012 have."""

GET_VOC = """Get it:
  wget https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar
  tar xf VOCtrainval_11-May-2012.tar --strip-components=1   # gives VOC2012/
`train_aug` and `SegmentationClassAug` are not in the archive. Make them of it and of SBD (Hariharan et al., ICCV 2011):
  wget https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz
  tar xf benchmark.tgz   # gives benchmark_RELEASE/
  python -c 'from wsss_contrast.data.voc import add_sbd; add_sbd("benchmark_RELEASE", "VOC2012")'"""

GET_VOC_TEST = """VOC's list and photos of `test` are in VOC2012test.tar. The evaluation server gives it to those who
register there, http://host.robots.ox.ac.uk:8080
  tar xf VOC2012test.tar --strip-components=1   # adds to VOC2012/"""

MASK_FOLDERS = ("SegmentationClassAug", "SegmentationClass")


class VOCDataset(TaggedImageDataset):
    """Images of a folder in VOC layout.

    The folder holds ``JPEGImages/NAME.jpg``, ``ImageSets/Segmentation/SPLIT.txt``, the tags, and, where masks
    are needed, ``SegmentationClassAug/NAME.png`` or ``SegmentationClass/NAME.png`` (the first folder that
    exists). Lists, tags and the presence of every file are checked here; the content of images and masks when
    they are read.

    Args:
        root: the folder.
        split: name of a list in ``ImageSets/Segmentation``, or path of a text file with one name a line.
            Lines of the form ``/JPEGImages/NAME.jpg /SegmentationClassAug/NAME.png`` are understood too.
        classes: the VOC classes to use. Others are dropped from the tags and are 255 in the masks.
        tags: where the tags come from. Path of a CSV file with the header ``name,tags``, tags separated by
            spaces, relative to ``root``; or ``"xml"`` for ``Annotations/NAME.xml``; or ``"masks"`` for the
            classes that occur in the mask; or ``"none"``: samples then have no tags.
        transform: an albumentations pipeline; by default :func:`eval_transform`.
        with_mask: whether a sample carries its mask.
        seed: seed of the augmentation.
        official: a list called ``train_aug``, ``train``, ``val``, ``trainval`` or ``test`` must have as many images as
            the field's, wherever it lies. Lists of other names are not checked.

    Raises:
        DataError: on a file that is missing or wrong, with its name; where a folder or list is missing, also how to
            get it.
        ValueError: on classes that are unknown or named twice.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | Path,
        classes: Sequence[str] = VOC_CLASSES,
        tags: str | Path = "tags.csv",
        transform: A.Compose | None = None,
        with_mask: bool = False,
        seed: int = 0,
        official: bool = False,
    ) -> None:
        super().__init__(check_class_names(classes, known=VOC_CLASSES), transform, with_mask, seed)
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder. {GET_VOC}")
        self.names = _read_list(self.root, split)
        found, expected = len(self.names), VOC_COUNTS.get(Path(split).stem, len(self.names))
        if official and found != expected:
            raise DataError(
                f"{self.root}: {split} has {found} images, the field's list {expected} (official=False takes others). "
                f"{_get(split)}"
            )
        self._images = self.root / "JPEGImages"
        _check_files(self._images, self.names, ".jpg", "image")

        self._masks: Path | None = None
        if with_mask or tags == "masks":
            self._masks = next((self.root / f for f in MASK_FOLDERS if (self.root / f).is_dir()), None)
            if self._masks is None:
                raise DataError(f"{self.root}: has no mask folder ({' or '.join(MASK_FOLDERS)}). {GET_VOC}")
            _check_files(self._masks, self.names, ".png", "mask")

        self._tags: list[NDArray[np.float32]] | None = None
        self._of_masks = tags == "masks"
        if tags == "xml":
            folder = self.root / "Annotations"
            _check_files(folder, self.names, ".xml", "annotation")
            self._tags = [self._multi_hot(_read_annotation(folder / f"{name}.xml")) for name in self.names]
        elif tags not in ("masks", "none"):
            path = self.root / tags
            by_name = _read_tags(path)
            missing = [name for name in self.names if name not in by_name]
            if missing:
                raise DataError(f"{path}: has no line for {some(missing)}")
            self._tags = [self._multi_hot(by_name[name]) for name in self.names]

        # From VOC ids to ours. An id that VOC does not have is refused before this table is used.
        self._ids = np.full(256, NO_LABEL, np.uint8)
        self._ids[0] = 0
        for position, name in enumerate(self.class_names):
            self._ids[VOC_CLASSES.index(name) + 1] = position + 1

    def __len__(self) -> int:
        return len(self.names)

    def image_name(self, index: int) -> str:
        return self.names[index]

    def image_size(self, index: int) -> tuple[int, int]:
        return stored_size(self._image(index))

    def _image(self, index: int) -> Path:
        return self._images / f"{self.names[index]}.jpg"

    def read(self, index: int) -> Reading:
        name, path = self.names[index], self._image(index)
        image = read_image(path)
        mask = None
        if self._masks is not None:
            mask = self._read_mask(self._masks / f"{name}.png")
            problem = mask_size_problem(self._masks / f"{name}.png", mask.shape, path, image.shape)
            if problem is not None:
                raise DataError(problem)
        tags = None if self._tags is None else self._tags[index].copy()
        if self._of_masks and mask is not None:
            tags = np.isin(np.arange(1, len(self.class_names) + 1), mask).astype(np.float32)
        return image, tags, mask, name

    def _read_mask(self, path: Path) -> NDArray[np.uint8]:
        mask = read_mask(path)
        wrong = [int(i) for i in np.unique(mask) if len(VOC_CLASSES) < i < NO_LABEL]
        if wrong:
            raise DataError(f"{path}: ids {wrong} are neither 0-{len(VOC_CLASSES)} nor {NO_LABEL}")
        return self._ids[mask]

    def _multi_hot(self, tags: Iterable[str]) -> NDArray[np.float32]:
        return np.isin(self.class_names, list(tags)).astype(np.float32)


def _read_list(root: Path, split: str | Path) -> list[str]:
    lists = root / "ImageSets" / "Segmentation"
    path = lists / f"{split}.txt"
    if not path.is_file():
        path = Path(split)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in lists.glob("*.txt"))) or "none"
        raise DataError(
            f"{lists / f'{split}.txt'}: no such list, and {split} is no file; lists there: {known}. {_get(split)}"
        )
    return read_list(path)


def _get(split: str | Path) -> str:
    return GET_VOC_TEST if Path(split).stem == "test" else GET_VOC


def read_list(path: Path, spaces: bool = False) -> list[str]:
    """Read names, one a line, with ``spaces`` also of several words; of ``/JPEGImages/NAME.jpg ...`` it is ``NAME``."""
    names: dict[str, None] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no UTF-8 text ({error})") from error
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        is_path = fields[0].lower().endswith(".jpg")
        if len(fields) > 1 and not is_path and not spaces:
            raise DataError(f"{path}, line {number}: expected one name, got {line.strip()!r}")
        name = Path(fields[0]).stem if is_path else line.strip()
        if name in names:
            raise DataError(f"{path}, line {number}: {name} is listed twice")
        names[name] = None
    if not names:
        raise DataError(f"{path}: lists no image")
    return list(names)


def _read_tags(path: Path) -> dict[str, list[str]]:
    by_name: dict[str, list[str]] = {}
    for name, tags, where in read_tags(path):
        if name in by_name:
            raise DataError(f"{where}: {name} has a line already")
        by_name[name] = _check_tags(tags, where)
    return by_name


def _read_annotation(path: Path) -> list[str]:
    try:
        tree = ElementTree.parse(path)
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: cannot be read as XML ({error})") from error
    # Children of the root only: the parts of a person (`object/part/name`) are no classes.
    return _check_tags([(node.text or "").strip() for node in tree.findall("object/name")], str(path))


def _check_tags(tags: list[str], where: str) -> list[str]:
    for tag in tags:
        if tag not in VOC_CLASSES:
            raise DataError(f"{where}: {tag!r} is not a VOC class; known classes: {', '.join(VOC_CLASSES)}")
    return tags


def _check_files(folder: Path, names: list[str], suffix: str, kind: str) -> None:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder, all {kind}s are missing. {GET_VOC}")
    there = {path.name for path in folder.iterdir()}
    missing = [str(folder / f"{name}{suffix}") for name in names if f"{name}{suffix}" not in there]
    if missing:
        raise DataError(f"missing {kind}: {some(missing)}")


def add_sbd(sbd: str | Path, root: str | Path) -> None:
    """Add the list ``train_aug`` and the masks of it and of ``val`` to a folder in VOC layout.

    The list has the names of SBD and of VOC's ``train`` that are not in ``val``: 10,582. ``SegmentationClassAug`` has
    VOC's own masks of ``train`` and ``val``, and those of SBD for the others.

    Args:
        sbd: the folder ``benchmark_RELEASE`` of SBD's archive.
        root: the folder ``VOC2012`` of VOC's archive.

    Raises:
        DataError: on a list or mask that is missing or can't be read, with its name. Then there is no ``train_aug``.
    """
    from scipy.io import loadmat  # type: ignore[import-untyped]  # slow to import

    source, root = Path(sbd) / "dataset", Path(root)
    train, val = _read_list(root, "train"), _read_list(root, "val")
    of_sbd: list[str] = []
    for path in (source / "train.txt", source / "val.txt"):
        if not path.is_file():
            raise DataError(f"{path}: no such list. {GET_VOC}")
        of_sbd += read_list(path)
    names = sorted({*train, *of_sbd} - {*val})
    folder, own = root / MASK_FOLDERS[0], root / MASK_FOLDERS[1]
    _check_files(own, [*train, *val], ".png", "mask")
    folder.mkdir(exist_ok=True)
    for name in [*train, *val]:
        shutil.copyfile(own / f"{name}.png", folder / f"{name}.png")
    for name in sorted({*names} - {*train}):
        path = source / "cls" / f"{name}.mat"
        try:
            content = png(mask_image(loadmat(path)["GTcls"]["Segmentation"][0, 0]))
        except Exception as error:  # of many kinds
            raise DataError(f"{path}: cannot be read as a mask of SBD ({error!r})") from error
        write_atomically(content, folder / f"{name}.png")
    write_atomically("\n".join([*names, ""]).encode(), root / "ImageSets" / "Segmentation" / "train_aug.txt")
