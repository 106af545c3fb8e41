"""Batches of photos of one size, of the data sets and of the data modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import chain
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from wsss_contrast.data import (
    FolderDataModule,
    FolderDataset,
    SameSizeBatches,
    ShapesDataModule,
    ShapesDataset,
    VOCDataModule,
    VOCDataset,
    WSSSDataModule,
)
from wsss_contrast.data.base import Reading, Sample, TaggedImageDataset

Size = tuple[int, int]


class Sized(TaggedImageDataset):
    """Photos of given sizes, in memory. The photo at ``i`` is called ``photo i`` and is grey of level ``i``."""

    def __init__(self, sizes: list[Size]) -> None:
        super().__init__(["cat"])
        self.sizes = sizes
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(self.sizes)

    def read(self, index: int) -> Reading:
        self.reads.append(index)
        image = np.full((*self.sizes[index], 3), index, np.uint8)
        return image, np.array([index % 2], np.float32), None, f"photo {index}"


class Headed(Sized):
    """Knows name and size without reading."""

    def image_name(self, index: int) -> str:
        return f"photo {index}"

    def image_size(self, index: int) -> Size:
        return self.sizes[index]


# --- batches

SIZES = st.lists(st.sampled_from([(4, 6), (6, 4), (5, 5)]), max_size=12)


@given(sizes=SIZES, batch_size=st.integers(1, 4), skip=st.sets(st.integers(0, 14)))
@example(sizes=[(4, 6)] * 5, batch_size=2, skip=set())
@example(sizes=[(4, 6), (5, 5), (4, 6), (5, 5), (4, 6)], batch_size=2, skip={0, 1})
def test_every_photo_once_and_one_size_a_batch(sizes: list[Size], batch_size: int, skip: set[int]) -> None:
    batches = SameSizeBatches(Headed(sizes), batch_size, skip={f"photo {index}" for index in skip})
    found = [batches[number] for number in range(len(batches))]
    names = [[int(name.split()[1]) for name in batch["name"]] for batch in found]
    wanted = [index for index in range(len(sizes)) if index not in skip]
    assert sorted(chain(*names)) == wanted
    for batch, indices in zip(found, names, strict=True):
        assert 1 <= len(indices) <= batch_size
        assert batch["image"].shape == (len(indices), 3, *sizes[indices[0]])
        assert indices == sorted(indices)
        assert batch["tags"][:, 0].tolist() == [index % 2 for index in indices]
    counts = Counter(sizes[index] for index in wanted)
    if batch_size > 1:
        assert len(batches) == sum(ceil(count / batch_size) for count in counts.values())  # no more than needed
    assert [indices[0] for indices in names] == sorted(indices[0] for indices in names)


def test_batches_are_made_without_reading_photos() -> None:
    dataset = Headed([(4, 6), (5, 5), (4, 6)])
    batches = SameSizeBatches(dataset, 2, skip={"photo 1"})
    assert dataset.reads == []
    assert batches[0]["name"] == ["photo 0", "photo 2"]
    assert dataset.reads == [0, 2]


def test_a_data_set_that_must_read_its_photos() -> None:
    """Of one's own, with nothing but `read` and a length."""
    batches = SameSizeBatches(Sized([(4, 6), (5, 5), (4, 6), (4, 6)]), 3, skip={"photo 2"})
    assert [batches[number]["name"] for number in range(len(batches))] == [["photo 0", "photo 3"], ["photo 1"]]


def test_single_photos_need_no_size() -> None:
    dataset = Sized([(4, 6), (5, 5)])
    assert len(SameSizeBatches(dataset, 1)) == 2
    assert dataset.reads == []


@pytest.mark.parametrize("batch_size", [0, -1])
def test_wrong_batch_size(batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        SameSizeBatches(Headed([(4, 6)]), batch_size)


def test_no_batch_of_that_number() -> None:
    with pytest.raises(IndexError):
        SameSizeBatches(Headed([(4, 6)]), 2)[1]


# --- data sets


def save(path: Path, size: Size, orientation: int | None = None) -> None:
    pixels = np.random.default_rng(sum(path.name.encode())).integers(0, 256, (*size, 3)).astype(np.uint8)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


PHOTOS = {"a": (20, 30), "b": (31, 20), "c": (20, 30), "d": (20, 30), "e": (30, 20), "tiny": (1, 40)}
UPRIGHT = {**PHOTOS, "e": (20, 30)}  # turned by a quarter


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos of four stored and three upright sizes, three with masks."""
    root = tmp_path / "folder"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for name, size in PHOTOS.items():
        save(root / "images" / f"{name}.jpg", size, orientation=6 if name == "e" else None)
    for name in ("a", "b", "e"):
        Image.fromarray(np.ones(UPRIGHT[name], np.uint8)).save(root / "masks" / f"{name}.png")
    lines = [f"{name},{'cat' if size[1] == 30 else 'dog'}" for name, size in PHOTOS.items()]
    (root / "tags.csv").write_text("\n".join(["name,tags", *lines]) + "\n")
    return root


@pytest.fixture
def voc(voc_root: Path, mask_writer: Callable[[Path, Size, tuple[int, ...]], None]) -> Path:
    """Two more photos of sizes that are there, one of them with an orientation, which VOC's masks do not follow."""
    for name, size, orientation in (("a_4", (50, 30), None), ("a_5", (40, 60), 6)):
        save(voc_root / "JPEGImages" / f"{name}.jpg", size, orientation)
        mask_writer(voc_root / "SegmentationClassAug" / f"{name}.png", size, (8,))
        for file in ("ImageSets/Segmentation/train.txt", "tags.csv"):
            with (voc_root / file).open("a") as lines:
                lines.write(f"{name},cat\n" if file == "tags.csv" else f"{name}\n")
    return voc_root


def check_heads(dataset: TaggedImageDataset) -> list[Size]:
    sizes = []
    for index in range(len(dataset)):
        image, _, _, name = dataset.read(index)
        assert dataset.image_name(index) == name == dataset[index]["name"]
        assert dataset.image_size(index) == image.shape[:2] == dataset[index]["image"].shape[1:]
        sizes.append(dataset.image_size(index))
    return sizes


def test_names_and_sizes_of_the_voc_layout(voc: Path) -> None:
    assert check_heads(VOCDataset(voc, "train")) == [(40, 60), (50, 30), (20, 20), (50, 30), (40, 60)]


@pytest.mark.parametrize(
    ("longest_side", "expected"),
    [
        (None, list(UPRIGHT.values())),
        (31, [(20, 30), (31, 20), (20, 30), (20, 30), (20, 30), (1, 31)]),
        (17, [(11, 17), (17, 11), (11, 17), (11, 17), (11, 17), (1, 17)]),
    ],
)
def test_names_and_sizes_of_a_folder(folder: Path, longest_side: int | None, expected: list[Size]) -> None:
    assert check_heads(FolderDataset(folder, longest_side=longest_side)) == expected
    of_masks = FolderDataset(folder, with_mask=True, longest_side=longest_side)
    assert check_heads(of_masks) == [expected[0], expected[1], expected[4]]
    assert [sample["mask"].shape for sample in of_masks] == check_heads(of_masks)


@pytest.mark.parametrize("split", ["train", "val"])
def test_names_and_sizes_of_the_drawn_set(split: str) -> None:
    assert check_heads(ShapesDataset(split, size=33, length=3)) == [(33, 33)] * 3


def test_a_photo_that_cannot_be_read_is_named(voc: Path) -> None:
    (voc / "JPEGImages" / "a_2.jpg").write_text("no photo")
    with pytest.raises(ValueError, match=r"a_2\.jpg: cannot be read as an image"):
        SameSizeBatches(VOCDataset(voc, "train"), 2)


def assert_same(samples: dict[str, Sample], batches: list[Sample]) -> None:
    """Each row of the batches is the single sample of its name."""
    names = [name for batch in batches for name in batch["name"]]
    assert sorted(names) == sorted(samples)
    for batch in batches:
        for row, name in enumerate(batch["name"]):
            assert set(batch) == set(samples[name])
            for key, value in samples[name].items():
                if isinstance(value, torch.Tensor):
                    assert batch[key].dtype == value.dtype
                    assert torch.equal(batch[key][row], value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_gives_what_single_photos_are(folder: Path, workers: int) -> None:
    dataset = FolderDataset(folder, with_mask=True, longest_side=25)
    loader = DataLoader(SameSizeBatches(dataset, 2), batch_size=None, num_workers=workers)
    batches = list(loader)
    assert [batch["name"] for batch in batches] == [["a", "e"], ["b"]]
    assert {"image", "tags", "name", "mask", "photo_size"} == set(batches[0])
    assert_same({sample["name"]: sample for sample in dataset}, batches)


# --- data modules


def voc_module(root: Path, **options: Any) -> VOCDataModule:
    return VOCDataModule(str(root), "train", "train", **{"crop_size": 16, "resize_long": (16, 24), **options})


def names_of(loader: DataLoader[Sample]) -> list[list[str]]:
    return [batch["name"] for batch in loader]


def test_batches_of_the_voc_layout(voc: Path) -> None:
    data = voc_module(voc, eval_batch_size=2)
    data.setup()
    for loader in [*data.val_dataloader(), data.predict_dataloader()]:
        assert names_of(loader) == [["a_1", "a_5"], ["a_2", "a_4"], ["a_3"]]
    for loader in data.val_dataloader():
        assert [tuple(batch["mask"].shape) for batch in loader] == [(2, 40, 60), (2, 50, 30), (1, 20, 20)]
        assert_same({sample["name"]: sample for sample in data.val_set}, list(loader))
    assert_same({sample["name"]: sample for sample in data.predict_set}, list(data.predict_dataloader()))


def test_batches_of_a_folder(folder: Path) -> None:
    data = FolderDataModule(
        str(folder), crop_size=16, resize_long=(16, 24), batch_size=2, longest_side=25, eval_batch_size=3
    )
    data.setup()
    (scored,) = data.val_dataloader()
    assert names_of(scored) == [["a", "e"], ["b"]]
    assert names_of(data.predict_dataloader()) == [["a", "c", "d"], ["b"], ["e"], ["tiny"]]
    assert_same({sample["name"]: sample for sample in data.predict_set}, list(data.predict_dataloader()))


def test_batches_of_the_drawn_set() -> None:
    data = ShapesDataModule(train_length=4, val_length=5, size=32, crop_size=24, batch_size=4, eval_batch_size=3)
    data.setup()
    threshold, val = data.val_dataloader()
    assert [tuple(batch["mask"].shape) for batch in threshold] == [(3, 32, 32), (1, 32, 32)]
    assert names_of(val) == names_of(data.predict_dataloader())
    assert names_of(val) == [["val_00000", "val_00001", "val_00002"], ["val_00003", "val_00004"]]
    assert next(iter(data.train_dataloader()))["image"].shape == (4, 3, 24, 24)  # batches of its own size


def test_single_photos_are_the_default(voc: Path, folder: Path) -> None:
    modules: list[WSSSDataModule] = [voc_module(voc), FolderDataModule(str(folder)), ShapesDataModule(size=32)]
    for data in modules:
        data.setup("predict")
        assert {len(names) for names in names_of(data.predict_dataloader())} == {1}


def test_predicted_photos_are_left_out_of_prediction_only(voc: Path) -> None:
    data = voc_module(voc, eval_batch_size=2)
    data.predicted = {"a_1", "a_3", "of another set"}
    data.setup()
    assert names_of(data.predict_dataloader()) == [["a_2", "a_4"], ["a_5"]]
    for loader in data.val_dataloader():
        assert names_of(loader) == [["a_1", "a_5"], ["a_2", "a_4"], ["a_3"]]


@pytest.mark.parametrize("processes", [1, 2])
def test_nothing_is_left_to_predict(voc: Path, processes: int) -> None:
    data = voc_module(voc)
    data.trainer = SimpleNamespace(distributed_sampler_kwargs={"num_replicas": processes, "rank": 0})
    data.setup("predict")
    data.predicted = {f"a_{number}" for number in range(1, 6)}
    loader = data.predict_dataloader()
    assert len(loader) == 0
    assert list(loader) == []


def test_processes_share_the_batches(voc: Path) -> None:
    data = voc_module(voc, eval_batch_size=2)
    data.setup("predict")
    shares = []
    for rank in range(2):
        data.trainer = SimpleNamespace(distributed_sampler_kwargs={"num_replicas": 2, "rank": rank})
        shares.append(names_of(data.predict_dataloader()))
    assert shares == [[["a_1", "a_5"], ["a_3"]], [["a_2", "a_4"]]]


def test_wrong_eval_batch_size(voc: Path, folder: Path) -> None:
    for make in (
        lambda: voc_module(voc, eval_batch_size=0),
        lambda: FolderDataModule(str(folder), eval_batch_size=0),
        lambda: ShapesDataModule(eval_batch_size=0),
    ):
        with pytest.raises(ValueError, match="eval_batch_size must be at least 1, got 0"):
            make()
