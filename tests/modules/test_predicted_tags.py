"""Photos without tags, validation on training photos only, and the classes in a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from wsss_contrast.metrics import THRESHOLDS, SeedMIoU
from wsss_contrast.modules import CAM

from .tiny import CLASSES, MODULES, RandomPhotos, cam, loader, trainer

each = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)


class Untagged(RandomPhotos):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: value for key, value in super().__getitem__(index).items() if key != "tags"}


class Data(L.LightningDataModule):
    """Names its classes, and of what kind the validation photos are."""

    def __init__(self, class_names: list[str], *kinds: str) -> None:
        super().__init__()
        self.class_names = class_names
        self.val_sets = {kind: RandomPhotos(seed=seed) for seed, kind in enumerate(kinds, start=1)}

    def train_dataloader(self) -> DataLoader:
        return loader()

    def val_dataloader(self) -> list[DataLoader]:
        return [DataLoader(photos, batch_size=2) for photos in self.val_sets.values()]


def with_probabilities(module: CAM, probabilities: list[float]) -> CAM:
    """Make the classifier's pooled logits what they must be for these probabilities, on any photo."""
    background = [0.5] if module.background == -1 else []
    maps = torch.logit(torch.tensor([*probabilities, *background])).view(1, -1, 1, 1)
    ramp = torch.linspace(-1, 1, 4)  # adds nothing to the mean
    module.classifier.register_forward_hook(lambda _, __, out: (out * 0 + maps) + ramp.repeat(out.shape[-1] // 4))
    return module


@each
def test_a_class_is_there_above_the_threshold(make: Any) -> None:
    images = RandomPhotos().images
    module = with_probabilities(make().eval(), [0.45, 0.55, 0.8])
    assert module.predicted_tags(images).tolist() == [[0, 1, 1]] * 4
    assert with_probabilities(make(tag_threshold=0.7).eval(), [0.45, 0.55, 0.8]).predicted_tags(images)[0].sum() == 1


@each
def test_photos_without_tags_get_those_of_the_classifier(make: Any, tmp_path: Path) -> None:
    module = with_probabilities(make().eval(), [0.45, 0.55, 0.8])
    outputs = trainer(tmp_path).predict(module, DataLoader(Untagged(), batch_size=2))
    masks = torch.cat([output["mask"] for output in outputs])
    images = RandomPhotos().images
    tags = torch.tensor([[0.0, 1.0, 1.0]]).expand(4, -1)
    expected = module.masks(images, module.seeds(images, tags), tags)
    assert torch.equal(masks, expected)
    assert set(masks.unique().tolist()) - {0}


def test_a_photo_of_no_class_is_background(tmp_path: Path) -> None:
    module = with_probabilities(cam(), [0.1, 0.2, 0.3])
    (output,) = trainer(tmp_path).predict(module, DataLoader(Untagged(), batch_size=4))
    assert output["mask"].shape == (4, 64, 64)
    assert not output["mask"].any()


def test_given_tags_win(tmp_path: Path) -> None:
    module = with_probabilities(cam(), [0.1, 0.2, 0.3])
    outputs = trainer(tmp_path).predict(module, loader())
    assert any(output["mask"].any() for output in outputs)


def test_threshold_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"tag_threshold.*1\.0"):
        cam(tag_threshold=1.0)


# --- validation


@each
def test_training_photos_alone_choose_the_threshold_and_claim_nothing_of_val(make: Any, tmp_path: Path) -> None:
    module, host = make(), trainer(tmp_path)
    host.fit(module, datamodule=Data(["a", "b", "c"], "train"))
    metric, photos = SeedMIoU(CLASSES), RandomPhotos(seed=1)
    metric.update(module.eval().seeds(photos.images, photos.tags), photos.masks)
    curve = metric.compute()
    assert module.background_threshold == THRESHOLDS[curve.best] != 0.2
    found = {name: float(value) for name, value in host.logged_metrics.items() if not name.startswith("train/loss")}
    found = {name: value for name, value in found.items() if name in ("threshold", "train/miou") or "val" in name}
    assert found == pytest.approx({"train/miou": float(curve.miou.max()), "threshold": THRESHOLDS[curve.best]})


@each
def test_without_validation_the_threshold_stays(make: Any, tmp_path: Path) -> None:
    module, host = make(), trainer(tmp_path)
    host.fit(module, datamodule=Data(["a", "b", "c"]))
    assert module.background_threshold == 0.2
    assert not [name for name in host.logged_metrics if "miou" in name or "threshold" in name]


# --- classes in the checkpoint


def test_checkpoint_is_of_these_classes(tmp_path: Path) -> None:
    host = trainer(tmp_path)
    host.fit(cam(), datamodule=Data(["a", "b", "c"]))
    host.save_checkpoint(tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["class_names"] == ["a", "b", "c"]
    trainer(tmp_path).validate(cam(), datamodule=Data(["a", "b", "c"], "val"), ckpt_path=tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"classes \['a', 'b', 'c'\], the data of \['a', 'c', 'b'\]"):
        trainer(tmp_path).validate(cam(), datamodule=Data(["a", "c", "b"], "val"), ckpt_path=tmp_path / "last.ckpt")
    CAM.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)  # without data there is nothing to compare


@each
def test_loaders_given_after_a_data_module_are_scored_at_the_threshold_kept(make: Any, tmp_path: Path) -> None:
    module, host = make(), trainer(tmp_path)
    host.fit(module, datamodule=Data(["a", "b", "c"], "train"))
    kept = module.background_threshold
    (scores,) = host.validate(module, DataLoader(RandomPhotos(seed=7), batch_size=2), verbose=False)
    assert {"val/miou", "val/miou_oracle"} <= scores.keys()
    assert "train/miou" not in scores
    assert module.background_threshold == kept
