"""COCO: tags and masks of its instances, ids without gaps, crowds, and what is wrong by name."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.coco_fake import SIZES, annotations, write
from wsss_contrast.data import COCODataModule, COCODataset, DataError

needs_pycocotools = pytest.mark.skipif(importlib.util.find_spec("pycocotools") is None, reason="needs pycocotools")


def changed(root: Path, **parts: Any) -> None:
    content = json.loads(annotations(root).read_text())
    write(root, "train2014", content | parts)


def test_images_and_tags(coco_root: Path) -> None:
    data = COCODataset(coco_root)
    assert data.class_names == ["person", "cat", "dog"]  # by COCO's ids
    assert [data.image_name(i)[-2:] for i in range(3)] == ["04", "05", "09"]
    assert [data.image_size(i) for i in range(3)] == [SIZES[4], SIZES[5], SIZES[9]]
    assert [data[i]["tags"].tolist() for i in range(3)] == [[0, 0, 1], [0, 0, 0], [1, 1, 1]]
    assert data[2]["image"].shape == (3, 24, 32)


@needs_pycocotools
def test_masks(coco_root: Path) -> None:
    data = COCODataset(coco_root, "val2014", with_mask=True)
    expected = torch.zeros(SIZES[9], dtype=torch.int64)
    expected[:, :8] = 255  # the crowd
    expected[4:20, 4:20] = 1
    expected[10:14, 10:14] = 2  # the smaller is in front, whatever the order
    assert torch.equal(data[2]["mask"], expected)
    parts = torch.zeros(SIZES[4], dtype=torch.int64)
    parts[:2, :2] = parts[6:8, 6:8] = 3
    assert torch.equal(data[0]["mask"], parts)
    assert not data[1]["mask"].any()


@needs_pycocotools
def test_a_choice_of_classes(coco_root: Path) -> None:
    data = COCODataset(coco_root, classes=["dog", "person"], with_mask=True)
    assert data[2]["tags"].tolist() == [1, 1]
    assert set(data[2]["mask"].unique().tolist()) == {0, 2, 255}
    assert (data[2]["mask"][10:14, 10:14] == 255).all()  # cats are not used
    with pytest.raises(ValueError, match="unknown class 'sheep'"):
        COCODataset(coco_root, classes=["sheep"])


def test_official_counts(coco_root: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)train2014\.json: has 3 images, COCO 2014 has 82783.*wget http"):
        COCODataset(coco_root, official=True)
    data = COCODataModule(str(coco_root), official=True)
    with pytest.raises(DataError, match="has 3 images"):
        data.setup("fit")


@needs_pycocotools
def test_data_module(coco_root: Path) -> None:
    data = COCODataModule(str(coco_root), batch_size=2, crop_size=16, resize_long=(16, 24))
    data.setup(None)
    assert (data.num_classes, data.mask_ids) == (3, [0, 1, 2, 3])
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 16, 16)
    for loader in data.val_dataloader():
        assert {name[-2:] for batch in loader for name in batch["name"]} == {"04", "05", "09"}
    assert "mask" not in next(iter(data.predict_dataloader()))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be read as json"),
        ([], "must have a list `images`"),
        ({"images": [], "annotations": []}, "must have a list `categories`"),
        ({"images": [{"id": 1}], "annotations": [], "categories": []}, "entry 0 of `images` has no file_name, height"),
    ],
)
def test_annotations_that_are_not_in_order(content: Any, reason: str, coco_root: Path) -> None:
    write(coco_root, "train2014", content)
    with pytest.raises(DataError, match=rf"instances_train2014\.json: {reason}"):
        COCODataset(coco_root)


def test_what_is_missing_is_named_with_how_to_get_it(coco_root: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)instances_test2014\.json: no such annotations\..*wget .*unzip"):
        COCODataset(coco_root, "test2014")
    next(path for path in (coco_root / "train2014").iterdir() if path.stem.endswith("09")).unlink()
    with pytest.raises(DataError, match=r"(?s)missing image: .*COCO_train2014_000000000009\.jpg\. Get it:"):
        COCODataset(coco_root)


@needs_pycocotools
@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[1, 2, 3, 4, 5, 6, 7]], "must be polygons, lists of x and y in turn"),
        ([1, 2, 3], "must be polygons, lists of x and y in turn"),
        ({"size": [2, 2], "counts": [4]}, "the mask is 2x2 pixels, its image 20x20"),
        ({"size": [20, 20], "counts": [4]}, "`counts` must be of 400 pixels"),
        ("abc", "must be a dict with `size` and `counts`"),
    ],
)
def test_instances_that_are_not_in_order(segmentation: Any, reason: str, coco_root: Path) -> None:
    changed(coco_root, annotations=[{"id": 7, "image_id": 4, "category_id": 1, "segmentation": segmentation}])
    with pytest.raises(DataError, match=rf"instances_train2014\.json: annotation 7: .*{reason}"):
        COCODataset(coco_root, with_mask=True)[0]


@needs_pycocotools
def test_polygons_without_an_area_are_left_out(coco_root: Path) -> None:
    changed(coco_root, annotations=[{"image_id": 4, "category_id": 1, "segmentation": [[1, 2, 3, 4]]}])
    data = COCODataset(coco_root, with_mask=True)
    assert data[0]["tags"].tolist() == [1, 0, 0]
    assert not data[0]["mask"].any()


def test_masks_without_the_extra(coco_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is missed when the data set is made, not after hours of training."""
    monkeypatch.setattr("wsss_contrast.data.coco.find_spec", lambda _: None)
    COCODataset(coco_root)
    with pytest.raises(ImportError, match=r"masks of COCO need the extra: .*\[coco\]"):
        COCODataset(coco_root, with_mask=True)


def test_annotations_of_what_is_not_there(coco_root: Path) -> None:
    changed(coco_root, annotations=[{"image_id": 44, "category_id": 1, "segmentation": []}])
    with pytest.raises(DataError, match=r"there is no image 44 or category 1 \(annotation 0\)"):
        COCODataset(coco_root)
    content = json.loads(annotations(coco_root).read_text())
    content["images"][1]["height"] = 21
    changed(coco_root, images=content["images"], annotations=[])
    with pytest.raises(DataError, match=r"4\.jpg: the image is 20x20 pixels, not 20x21"):
        COCODataset(coco_root)[0]
