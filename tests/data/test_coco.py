"""COCO: tags and masks of its instances, ids without gaps, crowds, and what is wrong by name."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.coco_fake import OFFICIAL_IDS, SIZES, annotations, box, write
from wsss_contrast.data import COCODataModule, COCODataset, DataError
from wsss_contrast.data.coco import COCO_COUNTS, COCOMasks

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


@pytest.fixture
def of_80_classes(coco_root: Path) -> Path:
    """An image with a square of 2 pixels of each class, from the upper left on; the entries in no order."""
    images = [image for image in json.loads(annotations(coco_root).read_text())["images"] if image["id"] == 4]
    squares = {number: divmod(place, 10) for place, number in enumerate(OFFICIAL_IDS)}
    instances = [
        {"id": number, "image_id": 4, "category_id": number, "area": 4} | {"segmentation": box(x, y, x + 2, y + 2)}
        for number, (x, y) in ((number, (2 * column, 2 * row)) for number, (row, column) in squares.items())
    ]
    categories = [{"id": number, "name": f"class {number}"} for number in OFFICIAL_IDS]
    changed(coco_root, images=images, annotations=instances[::-1], categories=categories[40:] + categories[:40])
    return coco_root


@needs_pycocotools
def test_80_classes_have_ids_without_gaps(of_80_classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COCO_COUNTS, "train2014", 1)
    data = COCODataset(of_80_classes, with_mask=True, official=True)
    assert (len(OFFICIAL_IDS), OFFICIAL_IDS[-1]) == (80, 90)
    assert data.class_names == [f"class {number}" for number in OFFICIAL_IDS]
    assert data[0]["tags"].tolist() == [1] * 80
    expected = torch.zeros(SIZES[4], dtype=torch.int64)
    expected[:16] = torch.arange(1, 81).reshape(8, 10).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(data[0]["mask"], expected)
    module = COCODataModule(str(of_80_classes), official=True)
    assert (module.num_classes, module.mask_ids) == (80, list(range(81)))


def test_official_counts(coco_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has = r"(?s)train2014\.json: has 3 images and 3 categories, COCO 2014 has"
    with pytest.raises(DataError, match=rf"{has} 82783 and 80 .*wget http"):
        COCODataset(coco_root, official=True)
    data = COCODataModule(str(coco_root), official=True)
    with pytest.raises(DataError, match="has 3 images"):
        data.setup("fit")
    monkeypatch.setitem(COCO_COUNTS, "train2014", 3)
    for classes in (None, ["dog"]):
        with pytest.raises(DataError, match=rf"{has} 3 and 80 "):
            COCODataset(coco_root, classes=classes, official=True)
    monkeypatch.delitem(COCO_COUNTS, "train2014")
    with pytest.raises(DataError, match=rf"{has} no such split "):
        COCODataset(coco_root, official=True)


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


@pytest.mark.parametrize(
    ("part", "values", "problem"),
    [
        ("images", {"id": "4"}, "must have a whole number as `id`, got '4'"),
        ("images", {"id": [4]}, r"must have a whole number as `id`, got \[4\]"),
        ("images", {"file_name": None}, "must have a text as `file_name`, got None"),
        ("images", {"height": None}, "must have a whole number as `height`, got None"),
        ("images", {"width": "24"}, "must have a whole number as `width`, got '24'"),
        ("images", {"height": 0}, "must have a size of 1 to 268435456 pixels, got 20x0"),
        ("images", {"width": 10**8}, "must have a size of 1 to 268435456 pixels, got 100000000x20"),
        ("annotations", {"image_id": [9]}, r"must have a whole number as `image_id`, got \[9\]"),
        ("annotations", {"category_id": "17"}, "must have a whole number as `category_id`, got '17'"),
        ("annotations", {"area": None}, "must have a number as `area`, got None"),
        ("annotations", {"area": "16"}, "must have a number as `area`, got '16'"),
        ("annotations", {"area": float("nan")}, "must have a number as `area`, got nan"),
        ("annotations", {"iscrowd": "0"}, "must have 0 or 1 as `iscrowd`, got '0'"),
        ("categories", {"id": None}, "must have a whole number as `id`, got None"),
        ("categories", {"name": 3}, "must have a text as `name`, got 3"),
    ],
)
def test_a_value_of_another_kind_is_named(part: str, values: dict[str, Any], problem: str, coco_root: Path) -> None:
    entries = json.loads(annotations(coco_root).read_text())[part]
    entries[1] |= values
    changed(coco_root, **{part: entries})
    with pytest.raises(DataError, match=rf"instances_train2014\.json: entry 1 of `{part}` {problem}"):
        COCODataset(coco_root)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("images", "id", "9"),
        ("images", "file_name", r"'COCO_train2014_000000000009\.jpg'"),
        ("categories", "id", "18"),
        ("categories", "name", "'dog'"),
    ],
)
def test_what_is_there_twice_is_named(part: str, name: str, value: str, coco_root: Path) -> None:
    entries = json.loads(annotations(coco_root).read_text())[part]
    entries[2][name] = entries[0][name]
    changed(coco_root, **{part: entries})
    with pytest.raises(
        DataError, match=rf"train2014\.json: entries 0 and 2 of `{part}` have the same {name}, {value}$"
    ):
        COCODataset(coco_root)


@needs_pycocotools
def test_a_mask_has_ids_for_254_classes(coco_root: Path) -> None:
    changed(coco_root, annotations=[], categories=[{"id": number, "name": f"class {number}"} for number in range(255)])
    path = annotations(coco_root)
    with pytest.raises(DataError, match=r"train2014\.json: 255 classes, but a mask has ids for 254"):
        COCOMasks(path)
    assert len(COCOMasks(path, [f"class {number}" for number in range(254)]).class_names) == 254


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
    changed(coco_root, annotations=[{"image_id": 4, "category_id": 1, "segmentation": segmentation}])
    with pytest.raises(DataError, match=rf"train2014\.json: annotation without an id \(entry 0\): .*{reason}"):
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
    with pytest.raises(DataError, match=r"4\.jpg: the image is 20x20 pixels, not 20x21 as .*train2014\.json says"):
        COCODataset(coco_root)[0]
