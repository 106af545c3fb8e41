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

COCO_CATEGORIES = 80
"""How many categories their annotations have, with ids from 1 to 90."""

GET_COCO = """Get it:
  wget http://images.cocodataset.org/zips/train2014.zip http://images.cocodataset.org/zips/val2014.zip
  wget http://images.cocodataset.org/annotations/annotations_trainval2014.zip
  unzip each of them in the folder"""

_FIELDS: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "annotations": {"image_id": int, "category_id": int, "segmentation": object},
    "categories": {"id": int, "name": str},
}

_MOST_PIXELS = 2**28  # more than are read of an image; a wrong size could ask for more than the memory


class _Split(NamedTuple):
    """What is kept of an annotation file: without Python objects for each instance, which workers would copy."""

    classes: list[str]
    images: list[tuple[str, int, int]]  # file name, height, width; in the order of COCO's ids
    tags: NDArray[np.bool_]  # (images, classes)
    instances: list[bytes]  # of each image, json: class from 0, area, whether a crowd, segmentation, entry


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
        official: the split must have as many images as COCO's, and the 80 categories.

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
        names = check_class_names(content.classes if classes is None else classes, known=content.classes)
        super().__init__(names, transform, with_mask, seed)
        self._masks = COCOMasks(self.path, names) if with_mask else None
        self._images = content.images
        found, expected = (len(self._images), len(content.classes)), (COCO_COUNTS.get(split), COCO_CATEGORIES)
        if official and found != expected:
            wanted = f"{expected[0]} and {expected[1]}" if split in COCO_COUNTS else "no such split"
            raise DataError(
                f"{self.path}: has {found[0]} images and {found[1]} categories, COCO 2014 has {wanted} (official=False "
                f"takes others). {GET_COCO}"
            )
        self._folder = self.root / split
        there = {path.name for path in self._folder.iterdir()} if self._folder.is_dir() else set()
        missing = [str(self._folder / name) for name, *_ in self._images if name not in there]
        if missing:
            raise DataError(f"missing image: {some(missing)}. {GET_COCO}")
        used = [content.classes.index(name) for name in names]
        self._tags = content.tags[:, used].astype(np.float32)

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
            found = f"{image.shape[1]}x{image.shape[0]}"
            raise DataError(f"{path}: the image is {found} pixels, not {width}x{height} as {self.path} says")
        mask = None if self._masks is None else self._masks.read(index)
        return image, self._tags[index].copy(), mask, self.image_name(index)


class COCOMasks:
    """Masks (H, W) of an annotation file, made of the instances when they are asked for: see :class:`COCODataset`.

    Args:
        path: the file, ``instances_SPLIT.json``.
        classes: the classes to use, by default all. They have the ids 1, 2, ... in this order; others are 255.

    Raises:
        DataError: on a file that is missing or wrong, with its name.
        ImportError: without the extra ``coco``.
        ValueError: on classes that are unknown or named twice.
    """

    def __init__(self, path: Path, classes: Sequence[str] | None = None) -> None:
        if find_spec("pycocotools") is None:
            raise ImportError('masks of COCO need the extra: pip install "wsss-contrast[coco]"')
        content = _read(path)
        self.path = path
        self.class_names = check_class_names(content.classes if classes is None else classes, known=content.classes)
        if len(self.class_names) >= NO_LABEL:
            raise DataError(f"{path}: {len(self.class_names)} classes, but a mask has ids for {NO_LABEL - 1}")
        self._images = content.images
        self._places = {Path(name).stem: place for place, (name, *_) in enumerate(content.images)}
        self._instances = content.instances
        # From a class of the file to ours, 255 for one that is not used.
        self._ids = np.full(len(content.classes), NO_LABEL, np.uint8)
        self._ids[[content.classes.index(name) for name in self.class_names]] = range(1, len(self.class_names) + 1)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def read_named(self, name: str) -> NDArray[np.uint8]:
        """The mask of an image, by its name without the suffix."""
        return self.read(self._places[name])

    def read(self, index: int) -> NDArray[np.uint8]:
        """The mask of an image, in the order of COCO's ids."""
        _, height, width = self._images[index]
        mask = np.zeros((height, width), np.uint8)
        instances = json.loads(self._instances[index])
        for category, _, is_crowd, segmentation, entry in sorted(instances, key=lambda i: (not i[2], -i[1])):
            try:
                region = _region(segmentation, (height, width))
            except RLEError as error:
                raise DataError(f"{self.path}: annotation {entry}: {error}") from error
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
    for part, fields in _FIELDS.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise DataError(f"{path}: must have a list `{part}`")
        for number, entry in enumerate(entries):
            problem = _problem(entry, fields)
            if problem is not None:
                raise DataError(f"{path}: entry {number} of `{part}` {problem}")
    for part, name in (("images", "id"), ("images", "file_name"), ("categories", "id"), ("categories", "name")):
        seen: dict[Any, int] = {}
        for number, entry in enumerate(content[part]):
            first = seen.setdefault(entry[name], number)
            if first != number:
                raise DataError(
                    f"{path}: entries {first} and {number} of `{part}` have the same {name}, {entry[name]!r}"
                )
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
        entry = found.get("id", f"without an id (entry {number})")
        about = [place, found.get("area", 0.0), bool(found.get("iscrowd")), found["segmentation"], entry]
        instances[of_image[image]].append(about)
    return _Split(
        [category["name"] for category in categories],
        [(image["file_name"], image["height"], image["width"]) for image in images],
        tags,
        [json.dumps(of).encode() for of in instances],
    )


def _problem(entry: Any, fields: dict[str, type]) -> str | None:
    """What is wrong with an image, an annotation or a category."""
    absent = [name for name in fields if not isinstance(entry, dict) or name not in entry]
    if absent:
        return f"has no {', '.join(absent)}"
    for name, kind in fields.items():
        if kind is not object and type(entry[name]) is not kind:
            return f"must have a {'whole number' if kind is int else 'text'} as `{name}`, got {entry[name]!r}"
    if "height" in fields:
        height, width = entry["height"], entry["width"]
        if not (height > 0 and width > 0 and height * width <= _MOST_PIXELS):
            return f"must have a size of 1 to {_MOST_PIXELS} pixels, got {width}x{height}"
    area, is_crowd = entry.get("area", 0), entry.get("iscrowd")
    if type(area) not in (int, float) or not area >= 0:
        return f"must have a number as `area`, got {area!r}"
    if is_crowd not in (None, 0, 1):
        return f"must have 0 or 1 as `iscrowd`, got {is_crowd!r}"
    return None


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
