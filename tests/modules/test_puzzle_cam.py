"""Puzzle-CAM's loss, the weight of its reconstruction term, and contrast on it; the rest is as CAM is tested."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from tests.literal import puzzle
from wsss_contrast.callbacks import PrototypeContrastCallback
from wsss_contrast.functional import resize, tile
from wsss_contrast.modules import PuzzleCAM

from .tiny import CLASSES, OPTIONS, batch, loader, puzzle_cam, trainer

TERMS = ("classification", "tiled_classification", "reconstruction")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(num_workers|does not have many workers|no `val_dataloader`).*")
        yield


class Watch(L.Callback):
    """What each step logged, and its loss."""

    def __init__(self) -> None:
        self.terms: list[dict[str, float]] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, *_: Any) -> None:
        names = (*TERMS, "alpha")
        self.terms.append({name: float(trainer.callback_metrics[f"train/{name}"]) for name in names})
        self.losses.append(float(outputs["loss"]))


def step_at(alpha: float, module: PuzzleCAM, data: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The loss of one training step at that weight."""
    monkeypatch.setattr(PuzzleCAM, "current_alpha", alpha)
    module.log = module.log_dict = lambda *args, **kwargs: None
    return module.training_step(data)


@pytest.mark.parametrize("alpha", [0.0, 1.7])
def test_loss_and_gradients_are_those_of_the_equation(alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    module, data = puzzle_cam().eval(), batch()
    parameters = [p for p in module.parameters() if p.requires_grad]
    maps, tiled = module(data["image"]), module(puzzle.tile(data["image"]))
    expected = puzzle.puzzle_cam(maps, tiled, data["tags"], alpha)
    loss = step_at(alpha, module, data, monkeypatch)
    torch.testing.assert_close(loss, expected)
    slopes, wanted = (torch.autograd.grad(x, parameters, allow_unused=True) for x in (loss, expected))
    for slope, want in zip(slopes, wanted, strict=True):
        torch.testing.assert_close(slope, want, rtol=1e-3, atol=1e-6)


def test_gradient_flows_through_both_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the reconstruction term, too."""
    module, data, outputs = puzzle_cam().eval(), batch(), []
    module.classifier.register_forward_hook(lambda _, __, output: outputs.append(output))
    light, heavy = (step_at(alpha, module, data, monkeypatch) for alpha in (0.0, 1.0))
    term = [torch.autograd.grad(heavy, outputs[2:]), torch.autograd.grad(light, outputs[:2])]
    for with_term, without in zip(*term, strict=True):
        assert (with_term - without).abs().max() > 1e-3


def test_the_batch_goes_through_whole_and_then_in_tiles() -> None:
    module, data, seen = puzzle_cam(), batch(), []
    module.log = module.log_dict = lambda *args, **kwargs: None
    module.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module.training_step(data)
    assert len(seen) == 2
    assert torch.equal(seen[0], data["image"])
    assert torch.equal(seen[1], tile(data["image"]))


@pytest.mark.parametrize("accumulated", [1, 2])
def test_alpha_goes_by_the_optimizer_steps_of_the_trainer(tmp_path: Path, accumulated: int) -> None:
    watch = Watch()
    options = {"max_steps": -1, "max_epochs": 2, "accumulate_grad_batches": accumulated, "callbacks": [watch]}
    trainer(tmp_path, **options).fit(puzzle_cam(alpha=3.0), loader(batch_size=1))  # 8 batches
    steps = [index // accumulated for index in range(8)]
    expected = [min(3.0 * step / (4 / accumulated), 3.0) for step in steps]
    assert [terms["alpha"] for terms in watch.terms] == pytest.approx(expected)
    assert all(terms["reconstruction"] > 0 for terms in watch.terms)  # logged without its weight
    sums = [t["classification"] + t["tiled_classification"] + t["alpha"] * t["reconstruction"] for t in watch.terms]
    assert [loss * accumulated for loss in watch.losses] == pytest.approx(sums, rel=1e-5)


def test_a_resumed_run_goes_on_with_its_alpha(tmp_path: Path) -> None:
    short = trainer(tmp_path, max_steps=2)
    short.fit(puzzle_cam(), loader())
    short.save_checkpoint(tmp_path / "short.ckpt")
    watch = Watch()
    longer = trainer(tmp_path, max_steps=-1, max_epochs=4, callbacks=[watch])  # 8 steps
    longer.fit(puzzle_cam(), loader(), ckpt_path=tmp_path / "short.ckpt")
    assert [terms["alpha"] for terms in watch.terms] == [2.0, 3.0, 4.0, 4.0, 4.0, 4.0]


def test_channels_are_not_dropped_unless_that_is_asked_for() -> None:
    assert puzzle_cam().dropout.p == 0
    assert puzzle_cam(dropout=0.25).dropout.p == 0.25
    assert puzzle_cam(alpha=2.5, lr=0.5).hparams["alpha"] == 2.5


@pytest.mark.parametrize("size", [(63, 63), (80, 80), (64, 80), (56, 56), (504, 504)])
def test_images_whose_tiles_do_not_lie_on_their_maps_are_refused(size: tuple[int, int]) -> None:
    """Also of 56 px: 3.5 cells make 4, and 1.75 of a tile make 2, which is 4 merged."""
    module = puzzle_cam()
    module.log = module.log_dict = lambda *args, **kwargs: None
    sides = " x ".join(map(str, size))
    with pytest.raises(ValueError, match=f"multiples of twice the stride of the maps, 32 px, got {sides}"):
        module.training_step({"image": torch.randn(2, 3, *size), "tags": torch.ones(2, CLASSES)})


@pytest.mark.parametrize(
    ("options", "side"), [({"output_stride": 8}, 80), ({"backbone": "test_vit", "output_stride": None}, 96)]
)
def test_sides_go_by_the_stride_of_the_maps(options: dict[str, Any], side: int) -> None:
    module, data = puzzle_cam(**options), {"image": torch.randn(2, 3, side, side), "tags": torch.ones(2, CLASSES)}
    module.log = module.log_dict = lambda *args, **kwargs: None
    assert module.training_step(data) > 0
    with pytest.raises(ValueError, match=f"got {side + 8} x {side}"):
        module.training_step(data | {"image": torch.randn(2, 3, side + 8, side)})


def test_alpha_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="`alpha` must not be negative, got -1"):
        PuzzleCAM(CLASSES, alpha=-1.0, **OPTIONS)


class Views(PrototypeContrastCallback):
    """Keeps the maps that reach the loss."""

    def regularize(self, views: Any, tags: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        self.cams = [view["cams"].detach() for view in views]
        return super().regularize(views, tags, generator)


@pytest.mark.parametrize("taps", [{}, {"features": "dropout", "cams": "classifier"}], ids=["declared", "given"])
def test_contrast_sees_the_whole_image_and_a_view_that_is_made(tmp_path: Path, taps: dict[str, str]) -> None:
    """The tiles are no second view, whether the taps are the module's own or given."""
    seen: list[Tensor] = []
    module = puzzle_cam()
    module.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    callback = Views(view_size=48, **taps)
    trainer(tmp_path, max_steps=1, callbacks=[callback]).fit(module, loader())
    images = batch()["image"]
    assert [len(x) for x in seen] == [2, 8, 2]
    assert torch.equal(seen[0], images)
    assert torch.equal(seen[2], resize(images, (48, 48)))
    assert [tuple(cams.shape) for cams in callback.cams] == [(2, CLASSES, 4, 4), (2, CLASSES, 3, 3)]
