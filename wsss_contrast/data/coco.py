"""MS COCO 2014, with tags and semantic masks made of its instances."""

import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import albumentations as A
import numpy as np
from numpy.typing import NDArray

from wsss_contrast.data.base import (
    DataError,
    Reading,
    TaggedImageDataset,
    check_class_names,
    read_image,
    some,
)
from wsss_contrast.data.rle import RLEError, decode_rle
from wsss_contrast.functional import NO_LABEL

COCO_COUNTS = {"train2014": 82783, "val2014": 40504}
"""How many images the official splits have."""

GET_COCO = """Get it:
  wget http://images.cocodataset.org/zips/train2014.zip http://images.cocodataset.org/zips/val2014.zip
  wget http://images.cocodataset.org/annotations/annotations_trainval2014.zip
  unzip each of them in the folder"""


class _Split(NamedTuple):
    """What is kept of an annotation file: without Python objects for each instance, which workers would copy."""

    classes: list[str]
    images: list[tuple[str, int, int]]  # file name, height, width; in the order of COCO's ids
    tags: NDArray[np.bool_]  # (images, classes)
    instances: list[bytes]  # of each image, json: class from 0, area, whether a crowd, segmentation, id


def coco_classes(root: Path, split: str) -> list[str]:
    """The names of the classes that a split's annotations have, in the order of COCO's ids."""
    return list(_read(root / "annotations" / f"instances_{split}.json").classes)


class COCODataset(TaggedImageDataset):
    """Images of a folder in the layout of MS COCO 2014.

    The folder holds ``annotations/instances_SPLIT.json`` and the images ``SPLIT/FILE_NAME``. Tags are the categories of
    an image's instances. Masks are made of the instances when they are asked for: where these overlap, the smaller is
    in front. A region that is a crowd is tagged, and 255 in the mask where no instance lies. Classes have the ids 1 to
    80 in the order of COCO's own ids, which have gaps.

    The json and the presence of every image are checked here; the content of images when they are read.

    Args:
        root: the folder.
        split: ``"train2014"`` or ``"val2014"``, or what else there is.
        classes: the classes to use, by default all. Others are dropped from the tags and are 255 in the masks.
        transform: an albumentations pipeline; by default :func:`eval_transform`.
        with_mask: whether a sample carries its mask. Polygons need the extra ``coco``.
        seed: seed of the augmentation.
        official: the split must have as many images as COCO's.

    Raises:
        DataError: on a file that is missing or wrong, with its name; where something is missing, also how to get it.
        ImportError: masks without the extra ``coco``.
        ValueError: on classes that are unknown or named twice.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train2014",
        classes: Sequence[str] | None = None,
        transform: A.Compose | None = None,
        with_mask: bool = False,
        seed: int = 0,
        official: bool = False,
    ) -> None:
        self.root = Path(root)
        self.path = self.root / "annotations" / f"instances_{split}.json"
        content = _read(self.path)
        super().__init__(
            check_class_names(content.classes if classes is None else classes, known=content.classes),
            transform,
            with_mask,
            seed,
        )
        if with_mask and find_spec("pycocotools") is None:
            raise ImportError('masks of COCO need the extra: pip install "wsss-contrast[coco]"')
        self._images = content.images
        if official and len(self._images) != COCO_COUNTS.get(split):
            found, expected = len(self._images), COCO_COUNTS.get(split, "no such split")
            raise DataError(
                f"{self.path}: has {found} images, COCO 2014 has {expected} (official=False takes others). {GET_COCO}"
            )
        self._folder = self.root / split
        there = {path.name for path in self._folder.iterdir()} if self._folder.is_dir() else set()
        missing = [str(self._folder / name) for name, *_ in self._images if name not in there]
        if missing:
            raise DataError(f"missing image: {some(missing)}. {GET_COCO}")
        used = [content.classes.index(name) for name in self.class_names]
        self._tags = content.tags[:, used].astype(np.float32)
        self._instances = content.instances
        # From a class of the file to ours, 255 for one that is not used.
        self._ids = np.full(len(content.classes), NO_LABEL, np.uint8)
        self._ids[used] = np.arange(1, len(used) + 1)

    def __len__(self) -> int:
        return len(self._images)

    def image_name(self, index: int) -> str:
        return Path(self._images[index][0]).stem

    def image_size(self, index: int) -> tuple[int, int]:
        return self._images[index][1:]

    def read(self, index: int) -> Reading:
        path = self._folder / self._images[index][0]
        image = read_image(path)
        if image.shape[:2] != self.image_size(index):
            height, width = self.image_size(index)
            raise DataError(f"{path}: the image is {image.shape[1]}x{image.shape[0]} pixels, not {width}x{height}")
        mask = self._mask(index) if self.with_mask else None
        return image, self._tags[index].copy(), mask, self.image_name(index)

    def _mask(self, index: int) -> NDArray[np.uint8]:
        size = self.image_size(index)
        mask = np.zeros(size, np.uint8)
        instances = json.loads(self._instances[index])
        for category, _, is_crowd, segmentation, number in sorted(instances, key=lambda i: (not i[2], -i[1])):
            try:
                region = _region(segmentation, size)
            except RLEError as error:
                raise DataError(f"{self.path}: annotation {number}: {error}") from error
            mask[region] = NO_LABEL if is_crowd else self._ids[category]
        return mask


def _read(path: Path) -> _Split:
    """What an annotation file holds."""
    if not path.is_file():
        raise DataError(f"{path}: no such annotations. {GET_COCO}")
    return _parsed(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)  # of train and val: a file has 300 MB, and several data sets read it
def _parsed(path: Path, _changed: int) -> _Split:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as json ({error})") from error
    fields = {
        "images": ("id", "file_name", "height", "width"),
        "annotations": ("image_id", "category_id", "segmentation"),
        "categories": ("id", "name"),
    }
    for part, names in fields.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise DataError(f"{path}: must have a list `{part}`")
        for number, entry in enumerate(entries):
            absent = [name for name in names if not isinstance(entry, dict) or name not in entry]
            if absent:
                raise DataError(f"{path}: entry {number} of `{part}` has no {', '.join(absent)}")
    categories = sorted(content["categories"], key=lambda category: category["id"])
    images = sorted(content["images"], key=lambda image: image["id"])
    of_category = {category["id"]: place for place, category in enumerate(categories)}
    of_image = {image["id"]: place for place, image in enumerate(images)}
    tags = np.zeros((len(images), len(categories)), bool)
    instances: list[list[Any]] = [[] for _ in images]
    for number, found in enumerate(content["annotations"]):
        image, category = found["image_id"], found["category_id"]
        if image not in of_image or category not in of_category:
            raise DataError(f"{path}: there is no image {image} or category {category} (annotation {number})")
        place = of_category[category]
        tags[of_image[image], place] = True
        about = [place, found.get("area", 0.0), bool(found.get("iscrowd")), found["segmentation"], found.get("id")]
        instances[of_image[image]].append(about)
    return _Split(
        [str(category["name"]) for category in categories],
        [(str(image["file_name"]), int(image["height"]), int(image["width"])) for image in images],
        tags,
        [json.dumps(of).encode() for of in instances],
    )


def _region(segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels (H, W) of an instance: of polygons, or of run lengths."""
    if isinstance(segmentation, list):
        from pycocotools import mask as coco_mask

        if not all(isinstance(polygon, list) and len(polygon) % 2 == 0 for polygon in segmentation):
            raise RLEError("`segmentation` must be polygons, lists of x and y in turn")
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]  # of fewer points, it has no area
        if not polygons:
            return np.zeros(size, bool)
        farthest = 10 * max(size)  # a point without end, or NaN, would end the process
        for place in (place for polygon in polygons for place in polygon):
            if not isinstance(place, int | float) or not abs(place) <= farthest:
                raise RLEError(f"`segmentation` must have numbers from {-farthest} to {farthest}, got {place!r}")
        encoded = coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
        decoded: NDArray[np.bool_] = coco_mask.decode(encoded).astype(bool)
        return decoded
    region = decode_rle(segmentation)
    if region.shape != size:
        raise RLEError(f"the mask is {region.shape[1]}x{region.shape[0]} pixels, its image {size[1]}x{size[0]}")
    return region
