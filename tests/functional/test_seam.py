"""SEAM's formulas against their literal reading; the losses' tests compare ER, ECR and min-pooling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.literal import seam
from wsss_contrast import functional as W


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coarse(seed: int, *shape: int) -> Tensor:
    return torch.randint(-1, 3, shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("numbers", [normal, coarse])
@pytest.mark.parametrize("shape", [(2, 3, 3, 4), (1, 1, 1, 1), (2, 5, 1, 3)])
def test_suppress_non_maximum(numbers: object, shape: tuple[int, ...]) -> None:
    foreground = numbers(0, *shape)
    assert torch.equal(W.suppress_non_maximum(foreground), seam.suppress_non_maximum(foreground))


def test_suppress_non_maximum_keeps_ties_and_passes_their_gradient() -> None:
    foreground = torch.tensor([0.5, 0.5, 0.2]).reshape(1, 3, 1, 1).requires_grad_()
    kept = W.suppress_non_maximum(foreground)
    assert kept.flatten().tolist() == [0.5, 0.5, 0]
    kept.sum().backward()
    assert foreground.grad.flatten().tolist() == [1, 1, 0]


@pytest.mark.parametrize("numbers", [normal, coarse])
@pytest.mark.parametrize("shape", [(2, 3, 3, 4), (1, 1, 1, 1), (2, 2, 3, 1)])
def test_correlation_input(numbers: object, shape: tuple[int, ...]) -> None:
    cams = numbers(1, *shape).requires_grad_()
    spread = W.correlation_input(cams)
    torch.testing.assert_close(spread, seam.correlation_input(cams))
    assert not spread.requires_grad
    assert (spread >= 0).all()
    assert (spread <= 1).all()
    assert ((spread[:, 1:] > 0).sum(dim=1) <= shape[1]).all()


def test_correlation_input_of_dead_maps_is_background() -> None:
    spread = W.correlation_input(-torch.ones(2, 3, 4, 4))
    assert (spread[:, 0] == 1).all()
    assert (spread[:, 1:] == 0).all()


@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (5, 1)])
def test_pixel_correlation(shape: tuple[int, int]) -> None:
    maps, features = normal(2, 2, 3, *shape).requires_grad_(), normal(3, 2, 4, *shape).requires_grad_()
    got, want = W.pixel_correlation(maps, features), seam.pixel_correlation(maps, features)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    weight = normal(4, *got.shape)
    slopes = torch.autograd.grad((got * weight).sum(), (maps, features))
    expected = torch.autograd.grad((want * weight).sum(), (maps, features))
    torch.testing.assert_close(slopes, expected, rtol=1e-8, atol=1e-9)


def test_pixel_correlation_of_alike_and_of_zero_features() -> None:
    maps = normal(5, 2, 3, 4, 4)
    alike = W.pixel_correlation(maps, torch.ones(2, 5, 4, 4).double())
    torch.testing.assert_close(alike, maps.mean(dim=(-2, -1), keepdim=True).expand_as(maps), rtol=1e-4, atol=1e-6)
    zero = torch.zeros(2, 5, 4, 4, requires_grad=True)
    refined = W.pixel_correlation(maps.float(), zero)
    refined.sum().backward()
    assert (refined == 0).all()
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(half: torch.dtype) -> None:
    maps, features = normal(6, 2, 3, 4, 4).to(half), normal(7, 2, 5, 4, 4).to(half)
    assert torch.equal(W.pixel_correlation(maps, features), W.pixel_correlation(maps.float(), features.float()))
    assert torch.equal(W.correlation_input(maps), W.correlation_input(maps.float()))
    tags = torch.ones(2, 3)
    assert torch.equal(W.min_pooling(maps, tags), W.min_pooling(maps.float(), tags))


def test_pixel_correlation_under_autocast() -> None:
    maps, features = normal(8, 2, 3, 8, 8).float(), normal(9, 2, 16, 8, 8).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        refined = W.pixel_correlation(maps, features)
    torch.testing.assert_close(refined, W.pixel_correlation(maps, features), rtol=0.02, atol=0.02, check_dtype=False)


def test_gradcheck() -> None:
    maps, features = normal(10, 2, 3, 2, 3).requires_grad_(), normal(11, 2, 4, 2, 3).requires_grad_()
    other, tags = normal(12, 2, 3, 3, 2).requires_grad_(), torch.tensor([[1, 0, 1], [1, 1, 0]])
    refined1, refined2 = normal(13, 2, 4, 2, 3).requires_grad_(), normal(14, 2, 4, 3, 2).requires_grad_()
    fixed = maps.detach(), other.detach()
    check = torch.autograd.gradcheck
    assert check(W.suppress_non_maximum, maps)
    assert check(W.pixel_correlation, (maps, features))
    assert check(lambda a, b: W.equivariant_regularization(a, b, tags), (maps, other))
    assert check(lambda x: W.min_pooling(x, tags), maps)
    assert check(lambda a, b: W.equivariant_cross_regularization(fixed[0], a, fixed[1], b, tags), (refined1, refined2))


@pytest.mark.parametrize(("size", "quarter"), [((1, 1), 1), ((1, 3), 1), ((2, 4), 2), ((3, 5), 3)])
def test_min_pooling_takes_a_quarter_of_the_pixels(size: tuple[int, int], quarter: int) -> None:
    pixels = size[0] * size[1]
    maps = torch.arange(1.0, pixels + 1).reshape(1, 1, *size)
    assert W.min_pooling(maps, torch.ones(1, 1)).item() == sum(range(1, quarter + 1)) / quarter


def test_cross_regularization_counts_the_given_share() -> None:
    """Refined maps that miss by 1 in one pixel of 16: the share decides how far that is diluted."""
    cams = torch.zeros(1, 1, 4, 4)
    refined = torch.zeros(1, 2, 4, 4)
    losses = [
        W.equivariant_cross_regularization(cams, refined, cams, refined, torch.ones(1, 1), ratio).item()
        for ratio in (0.5, 1.0)
    ]
    assert losses == [2.0, 1.0], "the background of the raw maps is 1, of the refined maps 0: half of the channels"
