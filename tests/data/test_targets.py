"""Label images and saliency maps for training: they go where the photo goes, and what is wrong is named."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from wsss_contrast.data import (
    DataError,
    FolderDataModule,
    LabelFolder,
    ShapesDataModule,
    ShapesDataset,
    VOCDataModule,
    WSSSDataModule,
    train_transform,
)

SIZES = {"a": (40, 60), "b": (56, 34), "c": (24, 24)}
CLASSES = {"voc": ["cat", "dog"], "folder": ["cat", "dog"]}
IDS = {"voc": (0, 8, 12), "folder": (0, 1, 2)}
GREYS = (0, 128, 255)  # of the classes


@pytest.fixture(params=["voc", "folder"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def root(kind: str, tmp_path: Path) -> Path:
    """Photos whose grey tells their label, which is of no regular form, and the label images in ``labels``."""
    rng = np.random.default_rng(0)
    photos = tmp_path / {"voc": "JPEGImages", "folder": "images"}[kind]
    for folder in (photos, tmp_path / "labels"):
        folder.mkdir()
    for name, (height, width) in SIZES.items():
        patches = rng.integers(0, 3, (-(-height // 8), -(-width // 8)))
        classes = patches.repeat(8, 0).repeat(8, 1)[:height, :width]
        grey = np.array(GREYS, np.uint8)[classes]
        Image.fromarray(grey).convert("RGB").save(photos / f"{name}.jpg", quality=100)
        Image.fromarray(np.array(IDS[kind], np.uint8)[classes]).save(tmp_path / "labels" / f"{name}.png")
    (tmp_path / "tags.csv").write_text("name,tags\n" + "".join(f"{name},cat dog\n" for name in SIZES))
    if kind == "voc":
        (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
        (tmp_path / "ImageSets/Segmentation/train.txt").write_text("\n".join(SIZES))
        (tmp_path / "SegmentationClassAug").mkdir()
        for name, size in SIZES.items():
            Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / "SegmentationClassAug" / f"{name}.png")
    return tmp_path


def module(kind: str, root: Path, labels: str | None = "labels", **options: object) -> WSSSDataModule:
    sizes = {"crop_size": 48, "resize_long": (30, 80), "batch_size": 3}
    labels = None if labels is None else str(root / labels)
    if kind == "folder":
        return FolderDataModule(str(root), labels=labels, **sizes | options)
    lists = {"train_split": "train", "val_split": "train", "classes": CLASSES["voc"]}
    return VOCDataModule(str(root), labels=labels, **lists | sizes | options)


def away_from_borders(labels: Tensor) -> Tensor:
    """Pixels all of whose neighbours up to two pixels away have the same label: resizing mixes no colours there."""
    values = labels[:, None].float()
    highest, lowest = (sign * F.max_pool2d(sign * values, 5, stride=1, padding=2) for sign in (1, -1))
    return (highest == lowest)[:, 0]


def test_labels_go_where_the_photo_goes(kind: str, root: Path) -> None:
    data = module(kind, root)
    data.setup("fit")
    seen: set[int] = set()
    for _ in range(4):
        for batch in data.train_dataloader():
            images, labels = batch["image"], batch["labels"]
            assert (labels.dtype, labels.shape) == (torch.int64, (3, 48, 48))
            # Outside of the photo, the image is the mean colour to the last bit.
            outside = labels == 255
            assert torch.equal(outside, (images == 0).all(dim=1))
            seen |= set(labels.unique().tolist())
            for image, of_image, inside in zip(images.mean(dim=1), labels, away_from_borders(labels), strict=True):
                # The jitter changes the three greys, but not their order.
                ranges = [image[inside & (of_image == c)] for c in range(3) if (inside & (of_image == c)).sum() > 4]
                assert all(low.max() < high.min() for low, high in pairwise(ranges))
    assert seen == {0, 1, 2, 255}


@pytest.mark.parametrize("resize_long", [(20, 30), (40, 90)])
def test_labels_equal_a_mask_under_the_same_augmentation(resize_long: tuple[int, int], tmp_path: Path) -> None:
    """And they change nothing else of a sample."""
    plain = ShapesDataset("train", 48, 3, transform=train_transform(32, resize_long), with_mask=True)
    for index in range(3):
        Image.fromarray(plain.read(index)[2]).save(tmp_path / f"{plain.image_name(index)}.png")
    labelled = ShapesDataset("train", 48, 3, transform=train_transform(32, resize_long), with_mask=True)
    labelled.labels = LabelFolder(tmp_path, range(7), [plain.image_name(index) for index in range(3)])
    for key in [(epoch, index) for epoch in range(5) for index in range(3)]:
        before, after = plain[key], labelled[key]
        assert "labels" not in before
        assert torch.equal(after["labels"], after["mask"])
        assert all(torch.equal(after[name], before[name]) for name in ("image", "tags", "mask"))


def test_saliency_goes_where_the_labels_go(kind: str, root: Path) -> None:
    """Each class's label image is its saliency as well, in shades: both under one augmentation, and alone."""
    (root / "saliency").mkdir()
    shades = np.array([30, 90, 255], np.uint8)
    for name in SIZES:
        ids = np.asarray(Image.open(root / "labels" / f"{name}.png"))
        grey = shades[np.searchsorted(IDS[kind], ids)]
        picture = np.stack([grey] * 3, axis=2) if name == "b" else grey  # colours count by their mean
        Image.fromarray(picture).save(root / "saliency" / f"{name}.png")
    both, alone = (module(kind, root, labels, saliency=str(root / "saliency")) for labels in ("labels", None))
    for data in (both, alone):
        data.setup("fit")
    values = torch.tensor([*(shades / 255), 0], dtype=torch.float32)
    for _ in range(3):
        for batch, other in zip(both.train_dataloader(), alone.train_dataloader(), strict=True):
            assert "labels" not in other
            assert torch.equal(batch["saliency"], other["saliency"])
            assert torch.equal(batch["image"], other["image"])
            labels = batch["labels"].where(batch["labels"] != 255, 3)  # 0 outside of the photo
            torch.testing.assert_close(batch["saliency"], values[labels][:, None])
    both.setup("predict")
    assert "saliency" not in both.predict_set[0]


def test_bad_saliency_is_named(kind: str, root: Path) -> None:
    folder = root / "saliency"
    with pytest.raises(DataError, match=r"saliency: no such folder of saliency maps; it has NAME.png for each photo"):
        module(kind, root, saliency=str(folder)).setup("fit")
    folder.mkdir()
    for name in "ab":
        Image.fromarray(np.zeros(SIZES[name], np.uint8)).save(folder / f"{name}.png")
    with pytest.raises(DataError, match=r"missing saliency maps: .*c\.png$"):
        module(kind, root, saliency=str(folder)).setup("fit")
    Image.fromarray(np.zeros((8, 20), np.uint8)).save(folder / "c.png")
    data = module(kind, root, saliency=str(folder))
    data.setup("fit")
    with pytest.raises(DataError, match=r"c\.png: the saliency maps are 20x8 pixels, the photo is 24x24"):
        data.train_set[[data.train_set.image_name(i) for i in range(3)].index("c")]
    half = np.repeat(np.array([[0, 255]], np.uint8), 6, axis=1).repeat(12, axis=0)  # of 24 x 24: no error
    Image.fromarray(half).save(folder / "c.png")
    values = data.train_set.saliency("c", SIZES["c"])
    assert values.shape == SIZES["c"]
    assert (values[:, :10].max(), values[:, 14:].min()) == (0, 1)
    Image.fromarray(np.zeros((*SIZES["c"], 4), np.uint8)).save(folder / "c.png")  # as tools that cut objects out write
    with pytest.raises(DataError, match=r"c\.png: a saliency map must be grey or of colours, .* transparent"):
        data.train_set[[data.train_set.image_name(i) for i in range(3)].index("c")]
    (folder / "c.png").write_bytes((folder / "c.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"c\.png: cannot be read as an image"):
        data.train_set[[data.train_set.image_name(i) for i in range(3)].index("c")]
    with pytest.raises(ValueError, match="saliency and unlabeled_batch_size do not go together"):
        module(kind, root, None, saliency=str(folder), unlabeled_batch_size=2)


def test_only_training_images_have_labels(kind: str, root: Path) -> None:
    data = module(kind, root)
    data.setup(None)
    assert "labels" in data.train_set[0]
    assert "labels" not in data.predict_set[0]
    assert all("labels" not in dataset[0] for dataset in data.val_sets.values())
    without = module(kind, root, labels=None)
    without.setup("fit")
    assert "labels" not in without.train_set[0]


def test_shapes(tmp_path: Path) -> None:
    data = ShapesDataModule(train_length=2, val_length=1, size=32, crop_size=32, batch_size=1, labels=str(tmp_path))
    for index in range(2):
        Image.fromarray(np.full((32, 32), 5, np.uint8)).save(tmp_path / f"train_{index:05d}.png")
    data.setup("fit")
    assert 5 in next(iter(data.train_dataloader()))["labels"].unique()
    data = ShapesDataModule(train_length=2, val_length=1, size=32, predict_split="train")
    data.setup("predict")
    assert [name for batch in data.predict_dataloader() for name in batch["name"]] == ["train_00000", "train_00001"]


@pytest.mark.parametrize("kind", ["voc"], indirect=True)
def test_true_masks_serve_as_labels(root: Path, kind: str) -> None:
    """They have all of VOC's classes; the ones that are not used are 255, as in the masks that are scored."""
    ids = np.asarray(Image.open(root / "labels" / "a.png")).copy()
    ids[0, 0] = 5
    for folder in ("labels", "SegmentationClassAug"):
        Image.fromarray(ids).save(root / folder / "a.png")
    of_others, own = (module(kind, root, labels) for labels in ("labels", "SegmentationClassAug"))
    for data in (of_others, own):
        data.setup("fit")
        assert data.train_set.labels is not None
    with pytest.raises(DataError, match=r"labels/a\.png: ids \[5\] are neither those of the data"):
        of_others.train_set.labels("a", SIZES["a"])
    labels = own.train_set.labels("a", SIZES["a"])
    assert labels[0, 0] == 255
    assert set(labels.flat) == {0, 1, 2, 255}


def test_missing_labels_are_named_before_training(kind: str, root: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder of labels; `wsss-contrast predict` makes one"):
        module(kind, root, labels="nowhere").setup("fit")
    (root / "labels" / "b.png").unlink()
    with pytest.raises(DataError, match=r"^missing labels: .*labels/b\.png$"):
        module(kind, root).setup("fit")
    (root / "labels" / "a.png").unlink()
    with pytest.raises(DataError, match=r"^missing labels: .*labels/a\.png \(and 1 more\)$"):
        module(kind, root).setup("fit")
    module(kind, root).setup("predict")  # which needs none


def test_labels_that_are_not_in_order_are_named(kind: str, root: Path) -> None:
    data = module(kind, root)
    data.setup("fit")
    path = root / "labels" / "a.png"

    def first() -> object:
        return data.train_set[0]

    first()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"labels/a\.png: cannot be read as an image"):
        first()
    Image.fromarray(np.zeros((60, 40), np.uint8)).save(path)
    with pytest.raises(DataError, match=r"labels/a\.png: the labels are 40x60 pixels, the photo is 60x40$"):
        first()
    Image.fromarray(np.full((40, 60), 200, np.uint8)).save(path)
    ids = re.escape(str(list(IDS[kind])))
    with pytest.raises(DataError, match=rf"labels/a\.png: ids \[200\] are neither those of the data, {ids}, nor 255"):
        first()
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(path)
    with pytest.raises(DataError, match=r"labels/a\.png: a mask must be an 8-bit palette or grey image"):
        first()


def test_unlabelled_images_beside_labels_are_refused(kind: str, root: Path) -> None:
    with pytest.raises(ValueError, match="labels and unlabeled_batch_size do not go together"):
        module(kind, root, unlabeled_batch_size=2)
