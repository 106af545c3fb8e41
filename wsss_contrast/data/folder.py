"""A plain folder of photos with tags."""

import copy
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import albumentations as A
import cv2
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray

from wsss_contrast.data.base import (
    DataError,
    Reading,
    Sample,
    TaggedImageDataset,
    check_class_names,
    mask_size_problem,
    read_image,
    read_mask,
    read_tags,
    reduced_size,
    some,
)
from wsss_contrast.data.datamodule import WSSSDataModule
from wsss_contrast.data.transforms import train_transform, weak_transform
from wsss_contrast.functional import NO_LABEL

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""The files that count as photos, in small or capital letters."""

OnError = Literal["raise", "skip"]


class Photo(NamedTuple):
    """A photo that was checked. ``size`` is height and width, upright."""

    name: str
    image: Path
    tags: NDArray[np.float32] | None
    mask: Path | None
    size: tuple[int, int]


class FolderDataset(TaggedImageDataset):
    """Photos of a plain folder.

    The folder holds

    - ``images/``: photos, of any colour mode, 8 or 16 bits a channel. A photo's name is its file name without the
      extension. It is turned upright as its EXIF orientation says.
    - ``tags.csv``: the header ``name,tags`` and a line for each photo, tags separated by spaces. A photo of none of the
      classes has a line without tags. Without this file, samples have no ``tags``.
    - ``masks/NAME.png``, for none, some or all of the photos: 8-bit palette or grey, 0 background, 1..K the classes,
      255 ignored; of the size of the upright photo.

    All files are read here once, and everything that is wrong is reported together.

    A sample has, beside what :class:`TaggedImageDataset` says, ``photo_size``: int64 (2,), height and width of
    the upright photo, whatever the transform makes of it.

    Args:
        root: the folder.
        classes: the classes, in the order of their ids; by default the tags in ``tags.csv``, sorted.
        transform: an albumentations pipeline; by default :func:`eval_transform`.
        with_mask: only the photos that have a mask, with it. Without, ``masks/`` is not looked at.
        seed: seed of the augmentation.
        on_error: ``"raise"``, or ``"skip"`` to leave out the photos that are not in order, with a warning that names
            them.
        longest_side: photos with a longer side are reduced to it before the transform, in pixels; by default none.

    Raises:
        DataError: on what is missing or wrong, with the names of the files.
        ValueError: on classes named twice, another ``on_error`` or a ``longest_side`` below 1.
    """

    def __init__(
        self,
        root: str | Path,
        classes: Sequence[str] | None = None,
        transform: A.Compose | None = None,
        with_mask: bool = False,
        seed: int = 0,
        on_error: OnError = "raise",
        longest_side: int | None = None,
    ) -> None:
        if longest_side is not None and longest_side < 1:
            raise ValueError(f"longest_side must be at least 1, got {longest_side}")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        self.root = Path(root)
        self.longest_side = longest_side
        super().__init__(folder_classes(self.root, classes), transform, with_mask, seed)
        self._checked = _check(self.root, self.class_names, with_mask, on_error)
        self.photos = self._of_view(with_mask)
        if not self._checked or (not self.photos and on_error == "raise"):
            raise DataError(f"{self.root}: has no photo" + " with a mask" * with_mask)

    def view(
        self, transform: A.Compose | None = None, with_mask: bool = False, longest_side: int | None = None
    ) -> "FolderDataset":
        """Return the same photos under another transform, without another check.

        Raises:
            ValueError: ``with_mask`` on a data set that was made without it: its masks were not checked.
        """
        if with_mask and not self.with_mask:
            raise ValueError(f"{self.root}: make the data set with `with_mask` to have its masks checked")
        other = copy.copy(self)
        TaggedImageDataset.__init__(other, self.class_names, transform, with_mask, self.seed)
        other.longest_side = longest_side
        other.photos = self._of_view(with_mask)
        return other

    def _of_view(self, with_mask: bool) -> list[Photo]:
        return [photo for photo in self._checked if photo.mask is not None or not with_mask]

    def __len__(self) -> int:
        return len(self.photos)

    def image_name(self, index: int) -> str:
        return self.photos[index].name

    def image_size(self, index: int) -> tuple[int, int]:
        return reduced_size(self.photos[index].size, self.longest_side)

    def read(self, index: int) -> Reading:
        photo = self.photos[index]
        image = read_image(photo.image, upright=True)
        mask = read_mask(photo.mask, upright=True) if self.with_mask and photo.mask is not None else None
        height, width = self.image_size(index)
        if (height, width) != photo.size:
            image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
            if mask is not None:
                mask = np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)
        return image, None if photo.tags is None else photo.tags.copy(), mask, photo.name

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        sample = super().__getitem__(key)
        index = key[1] if isinstance(key, tuple) else key
        return sample | {"photo_size": torch.tensor(self.photos[index].size)}


class FolderDataModule(WSSSDataModule):
    """Data module over a plain folder: see :class:`FolderDataset` for what it holds.

    All photos with a line in ``tags.csv`` are trained on. If some have a mask, validation scores the seeds of these and
    chooses the background threshold on them; as they are training photos, what it logs is called ``train/miou``, and
    there is no ``val/miou``. Without masks there is no validation, and the threshold keeps its default.

    All photos are predicted, with their tags where there is a ``tags.csv``, and else with those of the classifier (see
    :class:`~wsss_contrast.modules.CAM`). Predicted masks have the size of the upright photo.

    Args:
        root: the folder.
        classes: the classes, in the order of their ids; by default the tags in ``tags.csv``, sorted. A folder without
            that file needs them. The command line takes them from the checkpoint.
        crop_size: side of a training crop, in pixels.
        resize_long: smallest and largest longest side of a training photo before the crop, in pixels.
        longest_side: photos with a longer side are reduced to it for validation and prediction, in pixels. Masks are
            scored at that size.
        batch_size: training photos a batch, in each process.
        num_workers: worker processes of each loader.
        seed: seed of order and augmentation.
        on_error: ``"raise"``, or ``"skip"`` to leave out the photos that are not in order, with a warning that names
            them.
        eval_batch_size: most photos a batch in validation and prediction; only photos of one size share a batch.
        unlabeled_batch_size: see :class:`WSSSDataModule`.
        labels: folder of label images for training, see :class:`WSSSDataModule`.
        saliency: folder of saliency maps for training, see :class:`WSSSDataModule`.
    """

    def __init__(
        self,
        root: str,
        classes: list[str] | None = None,
        crop_size: int = 448,
        resize_long: tuple[int, int] = (448, 768),
        longest_side: int = 512,
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        on_error: OnError = "raise",
        eval_batch_size: int = 1,
        unlabeled_batch_size: int = 0,
        labels: str | None = None,
        saliency: str | None = None,
    ) -> None:
        super().__init__(
            class_names=folder_classes(Path(root), classes),
            train_split="images",
            val_split="images",
            threshold_split=None,
            predict_split=None,
            crop_size=crop_size,
            resize_long=resize_long,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            eval_batch_size=eval_batch_size,
            unlabeled_batch_size=unlabeled_batch_size,
            labels=labels,
            saliency=saliency,
        )
        self.root = Path(root)
        self.longest_side = longest_side
        self.on_error: OnError = on_error

    @property
    def mask_options(self) -> dict[str, Any]:
        source = "file" if (self.root / "tags.csv").is_file() else "classifier"
        return {"root": str(self.root.resolve()), "longest_side": self.longest_side, "tags": source}

    def dataset(self, split: str, transform: A.Compose | None = None, with_mask: bool = False) -> FolderDataset:
        return FolderDataset(self.root, self.class_names, transform, with_mask, self.seed, self.on_error)

    def setup(self, stage: str | None = None) -> None:
        tags = self.root / "tags.csv"
        if stage != "predict" and not tags.is_file() and self.labels is None:
            raise DataError(f"{tags}: no such tags file")
        scored = stage != "predict" and bool(_files(self.root / "masks"))
        photos = self.dataset("images", with_mask=scored)
        names = enumerate(self.class_names, start=1)
        rank_zero_info(f"{self.root}: classes by id: " + ", ".join(f"{number} {name}" for number, name in names))
        if stage in ("fit", None):
            self.train_set = photos.view(train_transform(self.crop_size, self.resize_long))
            self._add_targets()
            if self.unlabeled_batch_size:
                self.unlabeled_set = photos.view(weak_transform(self.crop_size, self.resize_long))
        scored = scored and len(photos) > 0  # "skip" may have left out all masks
        if stage == "validate" and not scored:
            raise DataError(f"{self.root / 'masks'}: has no masks, so there is nothing to score")
        self._scored = {"train": photos.view(with_mask=True, longest_side=self.longest_side)} if scored else {}
        if stage in ("predict", None):
            self.predict_set = photos.view(longest_side=self.longest_side)
            if not tags.is_file():
                rank_zero_info(f"{tags}: no such file; the classifier tells the tags")

    @property
    def val_sets(self) -> dict[str, TaggedImageDataset]:
        return dict(self._scored)


def folder_classes(root: Path, classes: Sequence[str] | None) -> list[str]:
    """Return the classes given, or else the tags of the folder's ``tags.csv``, sorted."""
    if classes is None:
        path = root / "tags.csv"
        if not root.is_dir():
            raise DataError(f"{root}: no such folder")
        if not path.is_file():
            raise DataError(f"{path}: no such tags file; without it, `classes` must name the classes")
        counts = Counter(tag for _, tags, _ in read_tags(path) for tag in set(tags))
        if not counts:
            raise DataError(f"{path}: has no tag")
        classes = sorted(counts)
        joined = [tag for tag in classes if any(sign in tag for sign in ',;|"\n')]
        if joined:
            raise DataError(f"{path}: tags are separated by spaces, but there are {some(joined, 10)}")
        rare = [tag for tag in classes if counts[tag] == 1]
        if rare:
            rank_zero_warn(f"{path}: tags of a single photo, are they meant? {some(rare, 10)}")
    names = check_class_names(classes)
    if len(names) >= NO_LABEL:
        raise DataError(f"{root}: there are {len(names)} classes; a mask holds at most {NO_LABEL - 1}")
    return names


def _check(root: Path, classes: Sequence[str], with_mask: bool, on_error: OnError) -> list[Photo]:
    """Return the photos that are in order, by name; raise or warn on all others together."""
    folder = root / "images"
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    images: dict[str, list[Path]] = {}
    others = []
    for path in _files(folder):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            images.setdefault(_key(path.stem), []).append(path)
        else:
            others.append(str(path))
    if others:
        rank_zero_warn(f"left out, as their names do not end in {', '.join(IMAGE_SUFFIXES)}: {some(others, 10)}")
    if not images:
        raise DataError(f"{folder}: has no photo ({', '.join(IMAGE_SUFFIXES)})")

    # Pairs of a photo's key and what is wrong with it.
    problems = [
        (key, f"{' and '.join(map(str, found))}: two photos of one name")
        for key, found in images.items()
        if len(found) > 1
    ]
    csv_path = root / "tags.csv"
    tags, wrong = _tags(csv_path, images, classes) if csv_path.is_file() else ({}, [])
    problems += wrong
    masks, wrong = _masks(root / "masks", images) if with_mask else ({}, [])
    problems += wrong

    def read(key: str) -> Photo | tuple[str, str]:
        image, mask = images[key][0], masks.get(key)
        try:
            shape = read_image(image, upright=True).shape
            if mask is not None:
                _check_mask(mask, image, shape, len(classes))
        except DataError as error:
            return key, str(error)
        return Photo(image.stem, image, tags.get(key), mask, (shape[0], shape[1]))

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 32)) as pool:  # decoding does not hold the interpreter's lock
        results = list(pool.map(read, sorted(images)))
    problems += [result for result in results if not isinstance(result, Photo)]
    if problems:
        found = some([text for _, text in sorted(problems)], 10, separator="\n  ")
        message = f"{root} is not in order:\n  {found}"
        if on_error == "raise":
            raise DataError(message)
        rank_zero_warn(f"{message}\nThese photos are left out.")
    bad = {key for key, _ in problems}
    return [result for result in results if isinstance(result, Photo) and _key(result.name) not in bad]


def _tags(
    path: Path, images: Iterable[str], classes: Sequence[str]
) -> tuple[dict[str, NDArray[np.float32]], list[tuple[str, str]]]:
    by_key: dict[str, NDArray[np.float32]] = {}
    problems = []
    for name, tags, where in read_tags(path):
        key = _key(name)
        unknown = [tag for tag in tags if tag not in classes]
        if key in by_key:
            problems.append((key, f"{where}: {name} has a line already"))
        elif key not in images:
            hint = "; names are without the extension" if _key(Path(name).stem) in images else ""
            problems.append((key, f"{where}: there is no photo {name} in {path.parent / 'images'}{hint}"))
        elif unknown:
            problems.append((key, f"{where}: unknown tags {unknown}; the classes are {', '.join(classes)}"))
        by_key[key] = np.isin(classes, tags).astype(np.float32)
    problems += [(key, f"{path}: has no line for {key}") for key in images if key not in by_key]
    return by_key, problems


def _masks(folder: Path, images: Iterable[str]) -> tuple[dict[str, Path], list[tuple[str, str]]]:
    masks, problems = {}, []
    for path in _files(folder):
        key = _key(path.stem)
        if path.suffix.lower() != ".png":
            problems.append((key, f"{path}: a mask must be a PNG file"))
        elif key not in images:
            problems.append((key, f"{path}: there is no photo of that name in {folder.parent / 'images'}"))
        else:
            masks[key] = path
    return masks, problems


def _check_mask(path: Path, image: Path, shape: tuple[int, ...], num_classes: int) -> None:
    mask = read_mask(path, upright=True)
    problem = mask_size_problem(path, mask.shape, image, shape)
    if problem is not None:
        turned = mask.shape == (shape[1], shape[0])
        raise DataError(problem + " (upright, as its EXIF orientation says)" * turned)
    wrong = [int(i) for i in np.unique(mask) if num_classes < i < NO_LABEL]
    if wrong:
        raise DataError(f"{path}: ids {wrong} are neither 0-{num_classes} nor {NO_LABEL}")


def _files(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without hidden files; nothing where there is no folder."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []


def _key(name: str) -> str:
    """One form of a name: macOS may store letters and accents apart, where a table has them as one."""
    return unicodedata.normalize("NFC", name)
