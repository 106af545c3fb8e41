"""What every dataset of tagged images shares: the sample, the keyed augmentation, the reading of files."""

import csv
import random
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from wsss_contrast.data.transforms import eval_transform

# All raised by PIL; the last by files of more pixels than it reads, 179 million.
_PIL_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)

Sample = dict[str, Any]
Reading = tuple[NDArray[np.uint8], NDArray[np.float32] | None, NDArray[np.uint8] | None, str]


class DataError(ValueError):
    """The data on disk is not what it should be. The message names the file."""


class TaggedImageDataset(Dataset[Sample], ABC):
    """Images with tags, and masks where asked for.

    A subclass gives :meth:`read` and ``__len__``, and :meth:`image_name` and :meth:`image_size` where it can tell them
    without reading the image. A sample is a dict:

    - ``image``: float32 (3, H, W), normalised with ImageNet mean and standard deviation.
    - ``tags``: float32 (K,), 1 for each class in the image, 0 otherwise. There is no background. Missing where the
      data set has no tags (:class:`FolderDataset` without a tags file, to predict).
    - ``name``: str.
    - ``mask``, with ``with_mask`` only: int64 (H, W); 0 background, 1..K the classes, 255 ignored.
    - ``labels``, where the attribute :attr:`labels` is set: int64 (H, W) likewise; 255 has no label. They are resized,
      mirrored and cropped as the image is, and 255 outside of the photo.
    - ``saliency``, where the attribute :attr:`saliency` is set: float32 (1, H, W), from 0 to 1, moved like the labels;
      0 outside of the photo.

    The key of a sample is an index, or a pair ``(epoch, index)`` as :class:`EpochSampler` yields it. The
    augmentation depends on ``(seed, epoch, index)`` and on nothing else: the number of workers, the order and
    a restart change no pixel. An index alone means epoch 0.

    Args:
        class_names: the K classes, in the order of the tags.
        transform: an albumentations pipeline that normalises; by default :func:`eval_transform`.
        with_mask: whether a sample carries its mask.
        seed: seed of the augmentation.
    """

    labels: Callable[[str, tuple[int, int]], NDArray[np.uint8]] | None
    """Gives a photo's label image from its name and size (H, W), as :class:`LabelFolder` does. None at first."""

    saliency: Callable[[str, tuple[int, int]], NDArray[np.float32]] | None
    """Gives its saliency map, as :class:`SaliencyFolder` does. None at first."""

    def __init__(
        self,
        class_names: Sequence[str],
        transform: A.Compose | None = None,
        with_mask: bool = False,
        seed: int = 0,
    ) -> None:
        self.class_names = check_class_names(class_names)
        self.transform = eval_transform() if transform is None else transform
        self.with_mask = with_mask
        self.seed = seed
        self.labels = None
        self.saliency = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Reading:
        """Return image (uint8 RGB, (H, W, 3)), tags (K,) or None, mask (uint8 (H, W)) or None, and name."""

    def image_name(self, index: int) -> str:
        """Return the name that :meth:`read` gives."""
        return self.read(index)[3]

    def image_size(self, index: int) -> tuple[int, int]:
        """Return height and width of the image that :meth:`read` gives."""
        height, width, _ = self.read(index)[0].shape
        return height, width

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        index %= len(self)
        image, tags, mask, name = self.read(index)

        # One pair of generators for the whole pipeline. `set_random_seed` would start every step of it from
        # the same state: the drawn size, the jitter and the crop would then rise and fall together.
        key_seed = sample_seed(self.seed, epoch, index)
        self.transform.set_random_state(np.random.default_rng(key_seed), random.Random(key_seed))
        targets: dict[str, Any] = {"image": image}
        if self.with_mask:
            if mask is None:
                raise DataError(f"{name}: has no mask")
            targets["mask"] = mask
        size = (image.shape[0], image.shape[1])
        added = {"labels": self.labels, "saliency": self.saliency}
        moved = {target: read(name, size) for target, read in added.items() if read is not None}
        if moved:
            # Albumentations' second target for masks, which needs no change to a pipeline of the user's own. Pixels
            # take the nearest value; outside of the photo they are 255.
            targets["masks"] = list(moved.values())
        out = self.transform(**targets)

        sample: Sample = {
            "image": torch.from_numpy(np.ascontiguousarray(out["image"].transpose(2, 0, 1))),
            "name": name,
        }
        if tags is not None:
            sample["tags"] = torch.from_numpy(tags)
        if self.with_mask:
            sample["mask"] = torch.from_numpy(out["mask"].astype(np.int64))
        for target, values in zip(moved, out.get("masks", ()), strict=True):
            if target == "labels":
                sample[target] = torch.from_numpy(values.astype(np.int64))
            else:
                sample[target] = torch.from_numpy(np.where(values > 1, 0, values).astype(np.float32))[None]
        return sample


def sample_seed(*key: int) -> int:
    """Hash non-negative integers to one 64-bit seed.

    >>> sample_seed(0, 1, 2) == sample_seed(0, 1, 2), sample_seed(0, 1, 2) == sample_seed(0, 2, 1)
    (True, False)
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def check_class_names(names: Sequence[str], known: Sequence[str] | None = None) -> list[str]:
    """Return the class names as a list. Raise ValueError on none, on a duplicate, or on one not ``known``."""
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ValueError("classes must name at least one class")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"class {name!r} is named twice in classes: {names}")
        if known is not None and name not in known:
            raise ValueError(f"unknown class {name!r}; known classes: {', '.join(known)}")
    return names


def read_tags(path: Path) -> list[tuple[str, list[str], str]]:
    """Read a CSV file with the header ``name,tags``, tags separated by spaces.

    Returns:
        for each line: the name, its tags, and where that is (file and line), for errors.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such tags file")
    rows = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != ["name", "tags"]:
                raise DataError(f"{path}: the header must be 'name,tags', it is {reader.fieldnames}")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or row["tags"] is None:
                    raise DataError(f"{where}: expected two columns, name and tags (separated by spaces)")
                rows.append((row["name"], row["tags"].split(), where))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no UTF-8 text ({error})") from error
    except csv.Error as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from error
    return rows


def some(items: Sequence[str], most: int = 1, separator: str = ", ") -> str:
    """Join the first items and count the others.

    >>> some(["a", "b", "c"])
    'a (and 2 more)'
    """
    shown = separator.join(items[:most])
    return shown if len(items) <= most else f"{shown} (and {len(items) - most} more)"


def read_image(path: Path, upright: bool = False) -> NDArray[np.uint8]:
    """Read an image of any colour mode as RGB, uint8 (H, W, 3).

    16 bits a channel are scaled to 8. Transparent pixels lie on white.

    Args:
        path: the file.
        upright: turn it as its EXIF orientation says. Published masks belong to the stored pixels: not for those.
    """
    return np.asarray(open_image(path, upright, rgb=True)).copy()


def stored_size(path: Path) -> tuple[int, int]:
    """Height and width of an image as it is stored, from the head of the file."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except _PIL_ERRORS as error:
        raise DataError(f"{path}: cannot be read as an image ({error})") from error


def reduced_size(size: tuple[int, int], longest_side: int | None) -> tuple[int, int]:
    """Height and width of an image whose longest side was reduced to this, in pixels; of a smaller one its own."""
    scale = 1.0 if longest_side is None else min(longest_side / max(size), 1.0)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def read_mask(path: Path, upright: bool = False) -> NDArray[np.uint8]:
    """Read a palette or grey-level image as its ids, uint8 (H, W); ``upright`` as in :func:`read_image`."""
    image = open_image(path, upright)
    if image.mode not in ("P", "L"):
        raise DataError(f"{path}: a mask must be an 8-bit palette or grey image, this one has mode {image.mode}")
    return np.asarray(image).copy()


def mask_size_problem(mask: Path, mask_shape: Sequence[int], image: Path, image_shape: Sequence[int]) -> str | None:
    """What is wrong where a mask's (H, W) is not its image's; None where it is."""
    if tuple(mask_shape[:2]) == tuple(image_shape[:2]):
        return None
    return (
        f"{mask}: the mask is {mask_shape[1]}x{mask_shape[0]} pixels, "
        f"its image {image} is {image_shape[1]}x{image_shape[0]}"
    )


def open_image(path: Path, upright: bool = False, rgb: bool = False) -> Image.Image:
    """Open an image with its pixels read; ``upright`` as in :func:`read_image`."""
    try:
        with Image.open(path) as image:
            image.load()  # PIL reads the pixels late; a truncated file fails only here
            opened: Image.Image = ImageOps.exif_transpose(image) if upright else image
            return _to_rgb(opened) if rgb else opened
    except _PIL_ERRORS as error:
        raise DataError(f"{path}: cannot be read as an image ({error})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits; PIL's own conversion would clip them to white
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"levels from {levels.min()} to {levels.max()}, expected 8 or 16 bits a channel")
        image = Image.fromarray((levels / 257).round().astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point levels, expected 8 or 16 bits a channel")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
