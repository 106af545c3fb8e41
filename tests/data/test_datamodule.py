"""The data modules, alone and under a Trainer."""

import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.cli import LightningArgumentParser
from torch.utils.data import DistributedSampler

from tests.data.test_fuzzed_folders import bomb
from wsss_contrast.data import (
    COCODataModule,
    DataError,
    EpochSampler,
    FolderDataModule,
    ShapesDataModule,
    VOCDataModule,
    WSSSDataModule,
)


def shapes(**kwargs):
    return ShapesDataModule(
        **{"train_length": 10, "val_length": 3, "size": 32, "crop_size": 24, "batch_size": 4, **kwargs}
    )


class Spy(L.LightningModule):
    """Writes down which images came."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.train_batches, self.val_names, self.predicted = [], [], []

    def training_step(self, batch):
        self.train_batches.append((self.current_epoch, batch["name"], batch["image"].clone()))
        return self.layer(batch["image"].mean().view(1)).sum()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.val_names.append((dataloader_idx, batch["name"][0], tuple(batch["mask"].shape)))

    def predict_step(self, batch, batch_idx):
        self.predicted.append((batch["name"][0], set(batch)))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def trainer(**kwargs):
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"num_sanity_val_steps": 0, **kwargs},
    )


def test_under_a_trainer():
    module = Spy()
    trainer(max_epochs=2).fit(module, datamodule=shapes())
    assert [epoch for epoch, _, _ in module.train_batches] == [
        0,
        0,
        1,
        1,
    ]  # 10 images: two whole batches of 4
    assert all(image.shape == (4, 3, 24, 24) for _, _, image in module.train_batches)
    orders = [list(chain(*(names for e, names, _ in module.train_batches if e == epoch))) for epoch in (0, 1)]
    assert orders[0] != orders[1]
    assert all(len(set(order)) == 8 for order in orders)
    one_epoch = module.val_names[:13]
    assert [name for loader, name, _ in one_epoch if loader == 0] == [f"train_{i:05d}" for i in range(10)]
    assert [name for loader, name, _ in one_epoch if loader == 1] == [f"val_{i:05d}" for i in range(3)]
    assert {shape for _, _, shape in one_epoch} == {(1, 32, 32)}  # no crop

    trainer().predict(module, datamodule=shapes())
    assert module.predicted == [(f"val_{i:05d}", {"image", "tags", "name"}) for i in range(3)]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("limit", [1.0, 2])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_resumed_run_sees_the_images_of_an_uninterrupted_one(tmp_path, steps, limit, workers):
    """In the middle of an epoch and at its end, of three batches or of two that the trainer takes."""
    whole, second = Spy(), Spy()
    options = {"max_epochs": 2, "limit_val_batches": 0, "limit_train_batches": limit}

    def data():
        return shapes(train_length=14, num_workers=workers)

    def save(trainer, *_):
        if trainer.global_step == steps:
            trainer.save_checkpoint(tmp_path / "last.ckpt")

    trainer(**options, callbacks=[LambdaCallback(on_train_batch_end=save)]).fit(whole, datamodule=data())
    trainer(**options).fit(second, datamodule=data(), ckpt_path=tmp_path / "last.ckpt")
    rest = whole.train_batches[steps:]
    assert [(e, n) for e, n, _ in rest] == [(e, n) for e, n, _ in second.train_batches]
    assert all(torch.equal(a, b) for (*_, a), (*_, b) in zip(rest, second.train_batches, strict=True))


def test_samplers_follow_the_strategy():
    """Lightning keeps the samplers; rank and number of processes come from its strategy."""
    data = shapes()
    data.setup()

    data.trainer = SimpleNamespace(distributed_sampler_kwargs={"num_replicas": 2, "rank": 1})
    train = data.train_dataloader().sampler
    assert isinstance(train, EpochSampler)
    assert (train.num_replicas, train.rank) == (2, 1)
    for loader in [*data.val_dataloader(), data.predict_dataloader()]:
        assert isinstance(loader.sampler, DistributedSampler)
    threshold, val = data.val_dataloader()
    assert list(threshold.sampler) == [1, 3, 5, 7, 9]
    assert list(val.sampler) == [1]


def test_overfit_batches_still_works():
    module = Spy()
    trainer(max_epochs=2, overfit_batches=1).fit(module, datamodule=shapes())
    assert [names for _, names, _ in module.train_batches] == [[f"train_{i:05d}" for i in range(4)]] * 2


def test_too_few_images():
    data = shapes(train_length=3)
    data.setup("fit")
    with pytest.raises(ValueError, match="'train' has 3 images a process, fewer than one batch of 4"):
        data.train_dataloader()


def test_workers():
    data = shapes(num_workers=1)
    data.setup("fit")
    loader = data.train_dataloader()
    assert loader.persistent_workers
    assert len(list(loader)) == 2


SMALL = {"crop_size": 16, "resize_long": (16, 24), "batch_size": 1, "num_workers": 2}


def voc_data(root: Path, **options: object) -> VOCDataModule:
    return VOCDataModule(str(root), "train", "train", **SMALL, **options)


def folder_data(root: Path) -> FolderDataModule:
    (root / "JPEGImages").rename(root / "images")
    (root / "SegmentationClassAug").rename(root / "masks")
    (root / "tags.csv").write_text("name,tags\na_1,cat\na_2,dog\na_3,cat\n")
    for path in (root / "masks").iterdir():
        path.unlink()
    return FolderDataModule(str(root), **SMALL)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def exploding(path: Path) -> None:
    path.write_bytes(bomb(None, None))


IN_WORKERS: dict[str, tuple[Callable[[Path], WSSSDataModule], str, Callable[[Path], None]]] = {
    "photo of VOC": (voc_data, "JPEGImages/a_2.jpg", cut),
    "bomb": (voc_data, "JPEGImages/a_2.jpg", exploding),
    "mask of VOC": (voc_data, "SegmentationClassAug/a_2.png", emptied),
    "labels": (
        lambda root: voc_data(root, labels=str(root / "SegmentationClassAug")),
        "SegmentationClassAug/a_2.png",
        cut,
    ),
    "saliency": (
        lambda root: voc_data(root, saliency=str(root / "SegmentationClassAug")),
        "SegmentationClassAug/a_2.png",
        emptied,
    ),
    "photo of a folder": (folder_data, "images/a_2.jpg", cut),
}


@pytest.mark.parametrize("case", IN_WORKERS)
def test_a_training_ends_with_the_file_that_a_worker_cannot_read(voc_root, case):
    """The file breaks when the training has begun, so that no check before it helps."""
    make, file, harm = IN_WORKERS[case]
    data = make(voc_root)
    begun = LambdaCallback(on_train_start=lambda *_: harm(voc_root / file))
    with pytest.raises(DataError, match=rf"{file}: cannot be read as an image"):
        trainer(max_epochs=1, callbacks=[begun]).fit(Spy(), datamodule=data)


def test_the_process_of_such_a_training_ends(voc_root):
    """With both workers waiting for the next mask."""
    emptied(voc_root / "SegmentationClassAug" / "a_2.png")
    code = (
        "from pathlib import Path; from tests.data import test_datamodule as of; "
        f"of.trainer(max_epochs=1).fit(of.Spy(), datamodule=of.voc_data(Path({str(voc_root)!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 1
    assert "a_2.png: cannot be read as an image" in done.stderr


def test_a_training_ends_with_the_photo_of_coco_that_a_worker_cannot_read(coco_root):
    data = COCODataModule(str(coco_root), **SMALL)
    begun = LambdaCallback(on_train_start=lambda *_: cut(coco_root / "train2014/COCO_train2014_000000000004.jpg"))
    with pytest.raises(DataError, match=r"COCO_train2014_000000000004\.jpg: cannot be read as an image"):
        trainer(max_epochs=1, limit_val_batches=0, callbacks=[begun]).fit(Spy(), datamodule=data)


def test_voc(voc_root):
    data = VOCDataModule(
        str(voc_root),
        "train",
        "train",
        classes=["dog", "cat"],
        crop_size=16,
        resize_long=(16, 24),
        batch_size=2,
    )
    assert isinstance(data, WSSSDataModule)
    assert data.class_names == ["dog", "cat"]
    assert data.num_classes == 2
    data.setup()
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 3, 16, 16)
    threshold, val = data.val_dataloader()
    for loader in (threshold, val):
        assert [tuple(batch["mask"].shape) for batch in loader] == [(1, 40, 60), (1, 50, 30), (1, 20, 20)]
    assert all("mask" not in batch for batch in data.predict_dataloader())


def test_voc_splits(voc_root):
    for name, image in (("few", "a_1"), ("other", "a_2"), ("third", "a_3")):
        (voc_root / f"ImageSets/Segmentation/{name}.txt").write_text(image)
    data = VOCDataModule(str(voc_root), "train", "few", threshold_split="other", predict_split="third")
    assert data.num_classes == 20
    data.setup()
    threshold, val = data.val_dataloader()
    assert [b["name"] for b in val] == [["a_1"]]
    assert [b["name"] for b in threshold] == [["a_2"]]
    assert [b["name"] for b in data.predict_dataloader()] == [["a_3"]]
    assert len(data.train_set) == 3


def test_what_is_wrong_shows_in_setup(voc_root):
    with pytest.raises(DataError, match=r"val\.txt"):
        VOCDataModule(str(voc_root), "train").setup("fit")


def test_prediction_needs_no_masks(voc_root):
    (voc_root / "SegmentationClassAug").rename(voc_root / "away")
    data = VOCDataModule(str(voc_root), "train", "train")
    data.setup("predict")
    assert len(list(data.predict_dataloader())) == 3


def test_command_line(voc_root):
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(WSSSDataModule, "data", subclass_mode=True)
    config = parser.parse_args(
        [
            "--data=wsss_contrast.data.VOCDataModule",
            f"--data.root={voc_root}",
            "--data.classes=[cat, dog]",
            "--data.resize_long=[256, 512]",
            "--data.threshold_split=train",
        ]
    )
    data = parser.instantiate_classes(config).data
    assert isinstance(data, VOCDataModule)
    assert data.class_names == ["cat", "dog"]
    assert data.resize_long == (256, 512)
    assert data.threshold_split == "train"


def test_classes_and_seed_are_checked_at_once() -> None:
    assert VOCDataModule("root", classes="cat").class_names == ["cat"]
    with pytest.raises(ValueError, match="dragon"):
        VOCDataModule("root", classes=["cat", "dragon"])
    with pytest.raises(ValueError, match="-1"):
        VOCDataModule("root", seed=-1)


def test_masks_are_written_in_the_data_sets_own_ids() -> None:
    assert VOCDataModule("root", classes=["sheep", "cat"]).mask_ids == [0, 17, 8]
    assert ShapesDataModule().mask_ids == [0, 1, 2, 3, 4, 5, 6]
