"""The saliency loss on a plain host: EPS's module and the callback give the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.literal import saliency as literal
from wsss_contrast.callbacks import SaliencyCallback, TapError
from wsss_contrast.functional import split_background
from wsss_contrast.losses import SaliencyLoss

from .hosts import WIDTH, K, OneView, Photos, fit, same, seeded, tag_loss, weights


class WithBackground(OneView):
    """Its maps carry a background."""

    def __init__(self, background: int) -> None:
        super().__init__()
        self.where = background
        with seeded(8):
            self.classifier = nn.Conv2d(WIDTH, K + 1, 1, bias=False)

    def host_loss(self, batch: Any) -> Tensor:
        self.maps = self(batch["image"])
        return tag_loss(split_background(self.maps, self.where), batch["tags"])


class SalientPhotos(Photos):
    def __getitem__(self, index: int) -> Any:
        saliency = (self.images[index].mean(dim=0, keepdim=True) > 0).float()
        return super().__getitem__(index) | {"saliency": saliency}


def photos() -> SalientPhotos:
    return SalientPhotos(4)


@pytest.mark.parametrize("background", [0, -1])
def test_the_term_is_that_of_the_equation_and_trains_the_maps(background: int) -> None:
    host, expected = WithBackground(background), []
    real = host.training_step

    def training_step(batch: Any) -> Any:
        loss = real(batch)
        small = batch["saliency"][:, 0, ::2, ::2]
        term = literal.saliency_loss(host.maps, small, batch["tags"], 0.2, 0.7, background)
        expected.append(float((loss + term).detach()))
        return loss

    host.training_step = training_step  # type: ignore[method-assign]
    callback = SaliencyCallback("classifier", background=background, loss=SaliencyLoss(0.2, 0.7, background))
    spy = fit(host, callback, data=photos())
    assert [float(loss) for loss in spy.losses] == pytest.approx(expected, rel=1e-5)

    plain = WithBackground(background)
    fit(plain, data=photos())
    assert not same(weights(host), weights(plain))


@pytest.mark.parametrize(
    ("callback", "error", "message"),
    [
        (
            lambda: SaliencyCallback("classifier", saliency="depth"),
            ValueError,
            "no 'depth' .*it has: .'image', 'sal",
        ),
        (lambda: SaliencyCallback("head"), TapError, "no submodule `head`"),
    ],
)
def test_what_is_missing_is_named(callback: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit(WithBackground(-1), callback(), data=photos())


def test_backgrounds_must_agree() -> None:
    with pytest.raises(ValueError, match="`background` is 0 here, but -1 of `loss`"):
        SaliencyCallback("classifier", background=0, loss=SaliencyLoss())
    with pytest.raises(ValueError, match="`tags` must be"):  # maps without one have a channel too few
        fit(OneView(), SaliencyCallback("classifier"), data=photos())


def test_a_rank_that_skips_the_step_meets_the_others() -> None:
    callback = SaliencyCallback("classifier")
    callback._maps = torch.rand(2, 1, 4, 4)
    empty = {"cams": torch.zeros(0, K + 1, 1, 1, requires_grad=True)}
    terms = callback.regularize([empty], torch.zeros(0, K), torch.Generator())
    assert float(terms["saliency"].detach()) == 0
    terms["saliency"].backward()
