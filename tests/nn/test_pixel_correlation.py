"""The pixel correlation module against its dense definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.literal import maps as literal_maps
from tests.literal import seam as literal
from wsss_contrast.nn import PixelCorrelationModule


def inputs() -> tuple[Tensor, Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return normal(2, 3, 4, 5), normal(2, 3, 8, 10), [normal(2, 6, 4, 5), normal(2, 7, 2, 3)]


@pytest.fixture
def module() -> PixelCorrelationModule:
    torch.manual_seed(0)
    return PixelCorrelationModule((6, 7), widths=(4, 5)).double()


def test_equals_literal_definition(module: PixelCorrelationModule) -> None:
    """Sec. 3.3: photo and two reduced maps at the maps' size, embedded; then Eq. 4."""
    cams, images, features = inputs()
    parts = [literal_maps.resize(images, 4, 5)]
    for reduce, maps in zip(module.reduce, features, strict=True):
        weight = reduce.weight[:, :, 0, 0]
        parts.append(torch.einsum("oi,nihw->nohw", weight, literal_maps.resize(maps, 4, 5)).clamp_min(0))
    embedded = torch.einsum("oi,nihw->nohw", module.embed.weight[:, :, 0, 0], torch.cat(parts, dim=1))
    expected = literal.pixel_correlation(literal.correlation_input(cams), embedded)
    torch.testing.assert_close(module(cams, images, features), expected, rtol=1e-9, atol=1e-12)


def test_only_its_own_convolutions_learn(module: PixelCorrelationModule) -> None:
    cams, images, features = inputs()
    for tensor in (cams, *features):
        tensor.requires_grad_()
    module(cams, images, features).square().sum().backward()
    assert cams.grad is None
    assert [maps.grad for maps in features] == [None, None]
    gradients = {name: p.grad for name, p in module.named_parameters()}
    assert set(gradients) == {"reduce.0.weight", "reduce.1.weight", "embed.weight"}
    assert all(g is not None and bool((g != 0).any()) for g in gradients.values())


def test_refined_maps_are_in_range_with_a_background(module: PixelCorrelationModule) -> None:
    refined = module(*inputs()).detach()
    assert refined.shape == (2, 4, 4, 5)
    assert float(refined.min()) >= 0
    assert float(refined.max()) <= 1


def test_default_widths_are_the_papers() -> None:
    module = PixelCorrelationModule((512, 1024))
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert shapes == {
        "reduce.0.weight": (64, 512, 1, 1),
        "reduce.1.weight": (128, 1024, 1, 1),
        "embed.weight": (192, 195, 1, 1),
    }
    bound = 4 * (6 / (192 + 195)) ** 0.5  # xavier-uniform with gain 4
    assert float(module.embed.weight.detach().abs().max()) == pytest.approx(bound, rel=1e-3)
    assert float(module.reduce[0].weight.detach().std()) == pytest.approx((2 / 512) ** 0.5, rel=0.03)  # kaiming-normal


@pytest.mark.parametrize("widths", [(4,), (4, 5, 6)])
def test_widths_that_do_not_go_with_the_channels(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="argument 2"):
        PixelCorrelationModule((6, 7), widths)


def test_number_of_feature_maps(module: PixelCorrelationModule) -> None:
    cams, images, features = inputs()
    with pytest.raises(ValueError, match="argument 2"):
        module(cams, images, features[:1])
