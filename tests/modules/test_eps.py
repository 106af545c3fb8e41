"""EPS's loss, seeds and taps; the rest is as CAM is tested."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.literal import saliency as literal
from tests.literal.seam import multilabel_soft_margin
from wsss_contrast.callbacks import PrototypeContrastCallback
from wsss_contrast.data import DataError
from wsss_contrast.modules import EPS

from .tiny import batch, eps, loader, trainer


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(num_workers|does not have many workers|no `val_dataloader`).*")
        yield


def step(module: EPS, data: dict[str, Tensor]) -> Tensor:
    module.log = module.log_dict = lambda *args, **kwargs: None
    return module.training_step(data)


@pytest.mark.parametrize("options", [{}, {"overlap_threshold": 0.1, "mixing": 0.9}])
def test_loss_is_that_of_the_equation(options: dict[str, float]) -> None:
    module, data = eps(**options).eval(), batch()
    with torch.no_grad():
        module.classifier.weight.mul_(30)  # sharp maps, so that some pass a half
    cams = module(data["image"])
    assert cams.shape[1] == 4
    small = data["saliency"][:, 0, ::16, ::16]
    settings = (options.get("overlap_threshold", 0.4), options.get("mixing", 0.5), -1)
    expected = multilabel_soft_margin(cams[:, :3].mean(dim=(2, 3)), data["tags"])
    expected = expected + literal.saliency_loss(cams, small, data["tags"], *settings)
    torch.testing.assert_close(step(module, data), expected)


def test_the_background_is_no_class_and_learns_from_saliency() -> None:
    module, data = eps(), batch()
    step(module, data).backward()
    slope = module.classifier.weight.grad
    assert slope[-1].abs().max() > 0
    module.zero_grad()
    module.saliency.forward = lambda *args: args[0].sum() * 0  # type: ignore[method-assign]
    step(module, data).backward()
    assert module.classifier.weight.grad[-1].abs().max() == 0


def test_seeds_are_probabilities_over_their_largest() -> None:
    module, data = eps().eval(), batch()
    with torch.no_grad():
        seeds = module.seeds(data["image"], data["tags"])
        maps = module(data["image"]).softmax(dim=1)[:, :3]
        tags = module.predicted_tags(data["image"])
    large = torch.nn.functional.interpolate(maps, data["image"].shape[-2:], mode="bilinear", align_corners=True)
    large = large * data["tags"][:, :, None, None]
    torch.testing.assert_close(seeds, large / (large.amax(dim=(2, 3), keepdim=True) + 1e-5))
    logits = module(data["image"])[:, :3].mean(dim=(2, 3))
    assert torch.equal(tags, (logits.sigmoid() > 0.5).float())


def test_contrast_takes_the_probabilities(tmp_path: Path) -> None:
    module, seen = eps(), []
    callback = PrototypeContrastCallback(view_size=48)
    real = callback.regularize

    def watched(views: Any, tags: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        seen.append(views[0]["cams"].detach())
        return real(views, tags, generator)

    callback.regularize = watched  # type: ignore[method-assign]
    trainer(tmp_path, callbacks=[callback], max_steps=1).fit(module, loader())
    (maps,) = seen
    assert maps.shape[1] == 4
    torch.testing.assert_close(maps.sum(dim=1), torch.ones_like(maps[:, 0]))


def test_a_batch_without_saliency() -> None:
    data = batch()
    del data["saliency"]
    with pytest.raises(DataError, match="EPS learns from saliency maps, and the batch has none: give the data"):
        step(eps(), data)
