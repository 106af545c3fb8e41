"""The projector is one convolution and a ReLU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from wsss_contrast.nn import Projector


def test_is_a_linear_map_of_each_pixel_and_a_relu() -> None:
    projector, features = Projector(5, 3), torch.randn(2, 5, 4, 6)
    (weight,) = projector.parameters()
    expected = torch.einsum("oi,nihw->nohw", weight[:, :, 0, 0], features).clamp_min(0)
    torch.testing.assert_close(projector(features), expected)


@pytest.mark.parametrize(("width", "shape"), [({}, (128, 7, 1, 1)), ({"out_channels": 16}, (16, 7, 1, 1))])
def test_width_and_no_bias(width: dict[str, int], shape: tuple[int, ...]) -> None:
    projector = Projector(7, **width)
    assert {name: tuple(p.shape) for name, p in projector.named_parameters()} == {"0.weight": shape}
    assert projector.in_channels == 7


def test_is_xavier_uniform() -> None:
    torch.manual_seed(0)
    weight = next(Projector(300, 100).parameters())
    bound = (6 / 400) ** 0.5
    assert weight.abs().max() <= bound
    assert float(weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.02)


def test_gradient_reaches_weights_and_features() -> None:
    projector, features = Projector(5, 3), torch.randn(2, 5, 4, 6, requires_grad=True)
    projector(features).sum().backward()
    expected = (F.conv2d(features, projector[0].weight) > 0).float()
    assert features.grad is not None
    torch.testing.assert_close(features.grad, torch.einsum("oi,nohw->nihw", projector[0].weight[:, :, 0, 0], expected))
    assert projector[0].weight.grad is not None
