"""MS COCO 2014, with tags and semantic masks made of its instances."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

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


def coco_classes(root: Path, split: str) -> list[str]:
    """The names of the classes that a split's annotations have, in the order of COCO's ids."""
    content = _read(root / "annotations" / f"instances_{split}.json")
    return [str(category["name"]) for category in sorted(content["categories"], key=lambda c: c["id"])]


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
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.categories = [str(category["name"]) for category in categories]
        super().__init__(
            check_class_names(self.categories if classes is None else classes, known=self.categories),
            transform,
            with_mask,
            seed,
        )
        self._images = sorted(content["images"], key=lambda image: image["id"])
        if official and len(self._images) != COCO_COUNTS.get(split):
            found, expected = len(self._images), COCO_COUNTS.get(split, "no such split")
            raise DataError(f"{self.path}: has {found} images, COCO 2014 has {expected}. {GET_COCO}")
        self._folder = self.root / split
        there = {path.name for path in self._folder.iterdir()} if self._folder.is_dir() else set()
        missing = [str(self._folder / image["file_name"]) for image in self._images if image["file_name"] not in there]
        if missing:
            raise DataError(f"missing image: {some(missing)}. {GET_COCO}")
        # From COCO's ids to ours, 255 for a class that is not used.
        self._ids = {
            category["id"]: self.class_names.index(category["name"]) + 1
            if category["name"] in self.class_names
            else NO_LABEL
            for category in categories
        }
        self._instances: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in self._images}
        for number, instance in enumerate(content["annotations"]):
            image, category = instance["image_id"], instance["category_id"]
            if image not in self._instances or category not in self._ids:
                raise DataError(f"{self.path}: there is no image {image} or category {category} (annotation {number})")
            self._instances[image].append(instance)

    def __len__(self) -> int:
        return len(self._images)

    def image_name(self, index: int) -> str:
        return Path(self._images[index]["file_name"]).stem

    def image_size(self, index: int) -> tuple[int, int]:
        return self._images[index]["height"], self._images[index]["width"]

    def read(self, index: int) -> Reading:
        path = self._folder / self._images[index]["file_name"]
        image = read_image(path)
        if image.shape[:2] != self.image_size(index):
            height, width = self.image_size(index)
            raise DataError(f"{path}: the image is {image.shape[1]}x{image.shape[0]} pixels, not {width}x{height}")
        instances = self._instances[self._images[index]["id"]]
        present = {self._ids[instance["category_id"]] for instance in instances}
        tags = np.isin(np.arange(1, len(self.class_names) + 1), list(present)).astype(np.float32)
        return image, tags, self._mask(index, instances) if self.with_mask else None, self.image_name(index)

    def _mask(self, index: int, instances: Sequence[dict[str, Any]]) -> NDArray[np.uint8]:
        size = self.image_size(index)
        mask = np.zeros(size, np.uint8)
        crowds = [instance for instance in instances if instance.get("iscrowd")]
        others = sorted((i for i in instances if not i.get("iscrowd")), key=lambda i: i.get("area", 0.0), reverse=True)
        for instance in [*crowds, *others]:
            try:
                region = _region(instance["segmentation"], size)
            except RLEError as error:
                raise DataError(f"{self.path}: annotation {instance.get('id')}: {error}") from error
            mask[region] = NO_LABEL if instance.get("iscrowd") else self._ids[instance["category_id"]]
        return mask


def _read(path: Path) -> dict[str, Any]:
    """The content of an annotation file, with the fields that are used."""
    if not path.is_file():
        raise DataError(f"{path}: no such annotations. {GET_COCO}")
    return _parsed(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)  # of train and val: a file has 300 MB, and several data sets read it
def _parsed(path: Path, _changed: int) -> dict[str, Any]:
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
    checked: dict[str, Any] = content
    return checked


def _region(segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels (H, W) of an instance: of polygons, or of run lengths."""
    if isinstance(segmentation, list):
        try:
            from pycocotools import mask as coco_mask
        except ImportError as error:
            raise ImportError('masks of COCO need the extra: pip install "wsss-contrast[coco]"') from error
        if not segmentation or not all(isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 for p in segmentation):
            raise RLEError("`segmentation` must be polygons of at least three points")
        encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
        region: NDArray[np.bool_] = coco_mask.decode(encoded).astype(bool)
        return region
    region = decode_rle(segmentation)
    if region.shape != size:
        raise RLEError(f"the mask is {region.shape[1]}x{region.shape[0]} pixels, its image {size[1]}x{size[0]}")
    return region
