"""A small folder in the layout of MS COCO 2014."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsss_contrast.data.coco import COCO_COUNTS

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 17, "name": "cat"}]
OFFICIAL_IDS = [number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
SIZES = {9: (24, 32), 4: (20, 20), 5: (16, 24)}  # height and width by the image's id


def box(left: int, top: int, right: int, bottom: int) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def rle(mask: np.ndarray) -> dict[str, Any]:
    pixels = np.concatenate([[False], mask.T.ravel()])
    ends = np.append(np.flatnonzero(pixels[1:] != pixels[:-1]), mask.size)
    return {"size": list(mask.shape), "counts": np.diff(ends, prepend=0).tolist()}


def crowd() -> dict[str, Any]:
    mask = np.zeros(SIZES[9], bool)
    mask[:, :8] = True
    return rle(mask)


ANNOTATIONS = [
    {"id": 1, "image_id": 9, "category_id": 17, "area": 16, "segmentation": box(10, 10, 14, 14)},
    {"id": 2, "image_id": 9, "category_id": 1, "area": 256, "segmentation": box(4, 4, 20, 20)},
    {"id": 3, "image_id": 9, "category_id": 18, "area": 192, "iscrowd": 1, "segmentation": crowd()},
    {"id": 4, "image_id": 4, "category_id": 18, "area": 8, "segmentation": [*box(0, 0, 2, 2), *box(6, 6, 8, 8)]},
]


def make_coco(root: Path) -> Path:
    """Three images a split; one has a crowd and instances that overlap, one has none."""
    rng = np.random.default_rng(0)
    for split in COCO_COUNTS:
        (root / split).mkdir()
        images = []
        for number, (height, width) in SIZES.items():
            name = f"COCO_{split}_{number:012d}.jpg"
            Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8)).save(root / split / name)
            images.append({"id": number, "file_name": name, "height": height, "width": width})
        write(root, split, {"images": images, "annotations": ANNOTATIONS, "categories": CATEGORIES})
    return root


def annotations(root: Path, split: str = "train2014") -> Path:
    return root / "annotations" / f"instances_{split}.json"


def write(root: Path, split: str, content: Any) -> None:
    annotations(root, split).parent.mkdir(exist_ok=True)
    annotations(root, split).write_text(content if isinstance(content, str) else json.dumps(content))
