"""The network of IRN: against convolutions written out, what a loss on it trains, and the mean shift."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_contrast.losses import InterPixelRelations
from wsss_contrast.nn import DisplacementHead, EdgeHead, InterPixelNetwork, TimmBackbone

CHANNELS = (6, 300, 9)
SIZES = [[(6, 8), (6, 8), (6, 8)], [(12, 16), (6, 8), (3, 4)], [(6, 8), (6, 8), (2, 3)], [(3, 4), (3, 4), (2, 1)]]


def moved(head: nn.Module) -> nn.Module:
    """Norms that are not where they start."""
    for module in head.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return head.double()


def edge_head() -> EdgeHead:
    torch.manual_seed(0)
    return moved(EdgeHead(CHANNELS))  # type: ignore[return-value]


def displacement_head() -> DisplacementHead:
    torch.manual_seed(0)
    return moved(DisplacementHead(CHANNELS))  # type: ignore[return-value]


def maps(*sizes: tuple[int, int]) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, c, *size, dtype=torch.float64) for c, size in zip(CHANNELS, sizes, strict=True)]


def layer(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A 1x1 convolution, a norm over four groups of channels, and a ReLU."""
    x = F.conv2d(x, state[f"{name}.0.weight"])
    groups = x.reshape(len(x), 4, -1)
    mean, variance = (
        v.repeat_interleave(x.shape[1] // 4, 1)[:, :, None, None] for v in (groups.mean(2), groups.var(2, correction=0))
    )
    weight, bias = (state[f"{name}.1.{of}"][:, None, None] for of in ("weight", "bias"))
    return ((x - mean) / (variance + 1e-5).sqrt() * weight + bias).clamp_min(0)


def to(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("sizes", SIZES)
@torch.no_grad()
def test_edges_equal_literal_reading(sizes: list[tuple[int, int]]) -> None:
    made, levels = edge_head(), maps(*sizes)
    state = made.state_dict()
    joined = torch.cat([to(layer(state, f"reduce.{n}", level), (6, 8)) for n, level in enumerate(levels)], 1)
    assert joined.shape[1] == 96
    expected = F.conv2d(joined, state["join.weight"], state["join.bias"])
    torch.testing.assert_close(made(levels, (6, 8)), expected)


@pytest.mark.parametrize("sizes", SIZES)
@torch.no_grad()
def test_displacements_equal_literal_reading(sizes: list[tuple[int, int]]) -> None:
    made, levels, size = displacement_head(), maps(*sizes), (6, 8)
    made.mean_shift += torch.tensor([1.0, -2.0])
    state = made.state_dict()
    low, middle, high = (layer(state, f"reduce.{n}", level) for n, level in enumerate(levels))
    assert [x.shape[1] for x in (low, middle, high)] == [4, 256, 8]
    low, middle = (to(x, size) if x.shape[2] > 6 else x for x in (low, middle))
    x = layer(state, "merge.1", torch.cat([middle, to(high, middle.shape[2:])], 1))
    x = layer(state, "merge.0", torch.cat([low, to(x, low.shape[2:])], 1))
    x = layer(state, "decode.1", layer(state, "decode.0", to(x, size)))
    expected = F.conv2d(x, state["decode.2.weight"]) - torch.tensor([[[1.0]], [[-2.0]]])
    torch.testing.assert_close(made(levels, size), expected)


def test_center() -> None:
    """The mean over all pixels of all batches is 0 afterwards, also the second time."""
    made = displacement_head()
    batches = [maps(*SIZES[1]), [level[:1] for level in maps(*SIZES[0])]]
    for _ in range(2):
        made.center(made(levels, (6, 8)) for levels in batches)
        found = torch.cat([made(levels, (6, 8)) for levels in batches])
        torch.testing.assert_close(found.mean(dim=(0, 2, 3)), torch.zeros(2, dtype=torch.float64), atol=1e-6, rtol=0)
        with torch.no_grad():
            made.decode[-1].weight.add_(0.1)
    assert made.mean_shift.abs().min() > 0
    assert "mean_shift" in made.state_dict()
    with pytest.raises(ValueError, match="there must be displacements"):
        made.center([])


def test_other_maps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`in_channels` must have at least two widths, got \(5,\)"):
        DisplacementHead((5,))
    levels = maps(*SIZES[0])
    for made in (edge_head(), displacement_head()):
        for wrong in (levels[:2], levels[::-1]):
            with pytest.raises(ValueError, match=r"the maps must be .* of the widths \[6, 300, 9\], got"):
                made(wrong, (6, 8))


@pytest.mark.parametrize("strides", [(2, 4, 8, 16), (8,), None])
def test_the_backbone_is_constant(strides: tuple[int, ...] | None) -> None:
    """Both heads get a gradient in every parameter; the backbone takes none, and its batch norm does not move."""
    torch.manual_seed(0)
    network = InterPixelNetwork(TimmBackbone("test_resnet", None, low_strides=strides)).train()
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    assert not any(p.requires_grad for p in network.backbone.parameters())  # an optimiser would decay them
    images = torch.randn(2, 3, 78, 81, requires_grad=True)
    edges, displacements = network(images)
    assert (edges.shape, displacements.shape) == ((2, 1, 20, 21), (2, 2, 20, 21))
    sum(InterPixelRelations()(edges, displacements, torch.randint(0, 3, (2, 20, 21))).values()).backward()
    assert images.grad is None
    trained = {n: p.grad is not None and bool(p.grad.any()) for n, p in network.named_parameters()}
    assert {name for name, has in trained.items() if not has} == {
        f"backbone.{name}" for name, _ in network.backbone.named_parameters()
    }
    for name, value in network.backbone.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_edges_alone() -> None:
    network = InterPixelNetwork(TimmBackbone("test_resnet", None)).eval()
    images = torch.randn(1, 3, 40, 44)
    torch.testing.assert_close(network.edges(images), network(images)[0])
