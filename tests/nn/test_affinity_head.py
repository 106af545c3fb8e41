"""The network of PSA: against convolutions written out, and what a loss on it trains."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_contrast.losses import SemanticAffinity
from wsss_contrast.nn import AffinityHead, AffinityNetwork, TimmBackbone

CHANNELS = (5, 7, 9)


def head() -> AffinityHead:
    torch.manual_seed(0)
    return AffinityHead(CHANNELS, widths=(2, 3, 4)).double()


def maps(*sizes: tuple[int, int]) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, c, *size, dtype=torch.float64) for c, size in zip(CHANNELS, sizes, strict=True)]


def literal(state: dict[str, Tensor], levels: list[Tensor], size: tuple[int, int]) -> Tensor:
    def elu(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, x.exp() - 1)

    reduced = []
    for number, level in enumerate(levels):
        x = elu(F.conv2d(level, state[f"reduce.{number}.weight"]))
        reduced.append(F.interpolate(x, size, mode="bilinear", align_corners=False))
    return elu(F.conv2d(torch.cat(reduced, 1), state["join.weight"]))


@pytest.mark.parametrize("sizes", [[(6, 8), (6, 8), (6, 8)], [(6, 8), (3, 4), (2, 2)], [(12, 15), (6, 8), (1, 1)]])
@torch.no_grad()
def test_equals_literal_reading(sizes: list[tuple[int, int]]) -> None:
    made, levels = head(), maps(*sizes)
    found = made(levels, (6, 8))
    assert found.shape == (2, 9, 6, 8)
    torch.testing.assert_close(found, literal(made.state_dict(), levels, (6, 8)))


def test_widths_of_the_paper() -> None:
    made = AffinityHead((512, 1024, 4096))
    assert [tuple(value.shape[:2]) for value in made.state_dict().values()] == [
        *((64, 512), (128, 1024), (256, 4096), (448, 448))
    ]
    # Xavier: the bound of a uniform distribution is gain * sqrt(6 / (fan in + fan out)).
    assert float(made.join.weight.detach().abs().max()) == pytest.approx(4 * (6 / 896) ** 0.5, rel=1e-3)


def test_other_maps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`in_channels` must have 3 widths, got \(5, 7\)"):
        AffinityHead((5, 7))
    made, (low, *others) = head(), maps((4, 4), (4, 4), (4, 4))
    for wrong in ([low, *others[:1]], [*others, low], [low[0], *others]):
        with pytest.raises(ValueError, match=r"the maps must be \(N, C, h, w\) of the widths \[5, 7, 9\], got"):
            made(wrong, (4, 4))


@pytest.mark.parametrize("strides", [(8, 16), None])
def test_network(strides: tuple[int, ...] | None) -> None:
    """Any size of photo, and a gradient in every part that is not constant."""
    torch.manual_seed(0)
    network = AffinityNetwork(TimmBackbone("test_resnet", None, low_strides=strides))
    assert network(torch.randn(1, 3, 33, 50)).shape == (1, 448, 5, 7)
    features = network(torch.randn(2, 3, 64, 80))
    assert features.shape == (2, 448, 8, 10)
    labels = torch.randint(0, 3, (2, 8, 10))
    sum(SemanticAffinity()(features, labels).values()).backward()
    assert all(p.grad is not None for p in network.parameters())
    assert all(p.grad is not None and p.grad.any() for p in network.affinity.parameters())
    assert network.backbone.net.conv1[0].weight.grad.any()


def test_network_needs_two_lower_maps() -> None:
    with pytest.raises(ValueError, match="`in_channels` must have 3 widths"):
        AffinityNetwork(TimmBackbone("test_resnet", None, low_strides=(4,)))
