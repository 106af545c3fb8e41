"""The walk against the matrix of pixels times pixels, and what it holds in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.literal import random_walk as literal
from wsss_contrast import functional as W

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(affinity: Tensor, height: int, width: int, radius: int) -> Tensor:
    """Of one image's (offsets, h', w')."""
    whole = affinity.shape[1:] == (height, width)
    if not whole:
        where = literal.pairs(height, width, radius)
        return literal.matrix(dict(zip(where, affinity.flatten(), strict=True)), height, width)
    offsets = literal.neighbours(radius)
    pairs = {
        (p, q): affinity[offsets.index((q[0] - p[0], q[1] - p[1]))][p]
        for p, q in literal.all_pairs(height, width, radius)
    }
    return literal.matrix(pairs, height, width)


@pytest.mark.parametrize("logt", [0, 1, 3, 6])
@pytest.mark.parametrize("beta", [1, 2.5, 8])
def test_pairs_of_inner_pixels(beta: float, logt: int) -> None:
    """As PSA's: of the map's border not all pixels have neighbours."""
    maps, affinity = uniform(0, 2, 3, 6, 8), uniform(1, 2, 12, 4, 4)
    walked = W.random_walk(maps, affinity, 3, beta, logt)
    for n in (0, 1):
        expected = literal.walk(maps[n], dense(affinity[n], 6, 8, 3), beta, logt)
        torch.testing.assert_close(walked[n], expected, **EXACT)
    assert torch.equal(W.random_walk(maps, affinity, 3, beta, 6)[:, :, 0, :2], maps[:, :, 0, :2])  # no pair meets these


@pytest.mark.parametrize("logt", [0, 4])
@pytest.mark.parametrize("size", [(5, 6), (3, 3), (2, 7), (7, 2), (1, 6), (6, 1), (1, 1)], ids=str)
def test_pairs_of_all_pixels(size: tuple[int, int], logt: int) -> None:
    """As IRN's, also on maps smaller than the radius. What pairs that leave the map hold counts for nothing."""
    maps, affinity = uniform(2, 1, 2, *size), uniform(3, 1, 22, *size)
    expected = literal.walk(maps[0], dense(affinity[0], *size, 4), 2, logt)
    torch.testing.assert_close(W.random_walk(maps, affinity, 4, 2, logt)[0], expected, **EXACT)


def test_walk_of_features() -> None:
    features, maps = uniform(4, 1, 3, 6, 10), uniform(5, 1, 2, 6, 10)
    pairs = {(p, q): literal.feature_affinity(features[0], p, q) for p, q in literal.pairs(6, 10, 5)}
    expected = literal.walk(maps[0], literal.matrix(pairs, 6, 10), 8, 8)
    torch.testing.assert_close(W.random_walk(maps, W.feature_affinity(features))[0], expected, **EXACT)


def test_walk_within_edges() -> None:
    edges, maps = 6 * uniform(6, 1, 1, 6, 7) - 3, uniform(7, 1, 2, 6, 7)
    pairs = {(p, q): literal.edge_affinity(edges[0, 0], p, q) for p, q in literal.all_pairs(6, 7, 5)}
    expected = literal.walk(maps[0], literal.matrix(pairs, 6, 7), 10, 5)
    walked = W.random_walk(maps, W.edge_affinity(edges, 5, whole_map=True), 5, 10, 5)
    torch.testing.assert_close(walked[0], expected, **EXACT)


def test_psa_is_the_default() -> None:
    maps, affinity = uniform(8, 1, 2, 6, 10), uniform(9, 1, 34, 2, 2)
    assert torch.equal(W.random_walk(maps, affinity), W.random_walk(maps, affinity, 5, 8, 8))


def test_maps_keep_their_range_and_constants() -> None:
    maps, affinity = uniform(10, 2, 3, 9, 12) * 7 - 3, uniform(11, 2, 34, 9, 12)
    walked = W.random_walk(maps, affinity, 5, 1, 7)
    assert (walked.amax(dim=(-2, -1)) <= maps.amax(dim=(-2, -1))).all()
    assert (walked.amin(dim=(-2, -1)) >= maps.amin(dim=(-2, -1))).all()
    assert walked.std() < maps.std() / 10
    constant = torch.full((2, 1, 9, 12), 0.3)
    assert torch.equal(W.random_walk(constant, affinity, 5, 8, 8), constant)


def test_without_affinity_nothing_moves() -> None:
    maps = uniform(12, 1, 3, 6, 9)
    assert torch.equal(W.random_walk(maps, torch.zeros(1, 34, 6, 9), 5), maps)
    assert torch.equal(W.random_walk(maps, torch.zeros(1, 34, 2, 1), 5), maps)


def test_values_do_not_cross_a_wall() -> None:
    edges, maps = torch.full((1, 1, 8, 11), -20.0), torch.zeros(1, 1, 8, 11)
    edges[..., 5], maps[..., :3] = 20, 1
    walked = W.random_walk(maps, W.edge_affinity(edges, 5, whole_map=True), 5, 10, 8)
    assert walked[..., 6:].max() < 1e-6
    torch.testing.assert_close(walked[..., :5], torch.full((1, 1, 8, 5), 0.6), atol=0.01, rtol=0)


def test_float32_stays_near_float64_over_many_steps() -> None:
    """Of sums of neighbours instead of differences, the rounding adds up to 4e-4 in these 256 steps."""
    generator = torch.Generator().manual_seed(13)
    maps = torch.rand(1, 3, 24, 24, generator=generator, dtype=torch.float64)
    edges = 3 * torch.randn(1, 1, 24, 24, generator=generator, dtype=torch.float64)
    affinity = W.edge_affinity(edges, 5, whole_map=True)
    exact = W.random_walk(maps, affinity, 5, 10, 8)
    single = W.random_walk(maps.float(), affinity.float(), 5, 10, 8)
    assert single.dtype == torch.float32
    assert (single - exact).abs().max() < 3e-5


def test_a_batch_equals_one_at_a_time_and_a_class_walks_by_itself() -> None:
    maps, affinity = uniform(15, 3, 4, 6, 9), uniform(16, 3, 34, 6, 9)
    together = W.random_walk(maps, affinity, 5, 3, 4)
    for n in range(3):
        for k in range(4):
            alone = W.random_walk(maps[n : n + 1, k : k + 1], affinity[n : n + 1], 5, 3, 4)
            torch.testing.assert_close(together[n : n + 1, k : k + 1], alone, **EXACT)
    assert W.random_walk(maps[:0], affinity[:0], 5).shape == (0, 4, 6, 9)


def test_is_constant_leaves_its_arguments_and_takes_any_layout() -> None:
    maps, affinity = uniform(17, 2, 3, 6, 9).requires_grad_(), uniform(18, 2, 34, 6, 9).requires_grad_()
    before = maps.detach().clone(), affinity.detach().clone()
    walked = W.random_walk(maps, affinity, 5, 3, 3)
    assert not walked.requires_grad
    assert torch.equal(maps, before[0])
    assert torch.equal(affinity, before[1])
    strided = [x.detach().to(memory_format=torch.channels_last) for x in (maps, affinity)]
    assert torch.equal(W.random_walk(*strided, 5, 3, 3), walked)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_to_float32(half: torch.dtype) -> None:
    maps, affinity = uniform(19, 1, 2, 6, 9).to(half), uniform(20, 1, 34, 6, 9).to(half)
    walked = W.random_walk(maps, affinity, 5, 3, 4)
    assert walked.dtype == torch.float32
    assert torch.equal(walked, W.random_walk(maps.float(), affinity.float(), 5, 3, 4))


class Largest(TorchDispatchMode):
    """The most numbers of a tensor that an operation gives."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


@pytest.mark.parametrize("whole", [True, False])
def test_no_matrix_of_pixels_times_pixels_is_made(whole: bool) -> None:
    height, width, classes = 20, 24, 3
    affinity = uniform(21, 1, 34, height, width) if whole else uniform(21, 1, 34, height - 4, width - 8)
    with Largest() as made:
        W.random_walk(uniform(22, 1, classes, height, width), affinity, 5, 8, 2)
    assert made.numbers == 34 * height * width
    with Largest() as made:  # it would be seen
        literal.walk(uniform(22, classes, height, width), torch.eye(height * width, dtype=torch.float64), 8, 2)
    assert made.numbers == (height * width) ** 2


MAPS, AFFINITY = torch.zeros(2, 3, 6, 9), torch.zeros(2, 34, 6, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((MAPS, AFFINITY[:1]), r"of 2 images, 34 offsets \(radius 5\) .* \(6, 9\) or \(2, 1\), got \(1, 34, 6, 9\)"),
        ((MAPS, AFFINITY[:, :33]), r"got \(2, 33, 6, 9\)"),
        ((MAPS, AFFINITY[..., :8]), r"got \(2, 34, 6, 8\)"),
        ((MAPS, AFFINITY[..., :2, :]), r"got \(2, 34, 2, 9\)"),
        ((MAPS, AFFINITY, 4), r"22 offsets \(radius 4\)"),
        ((MAPS, AFFINITY, 1), "`radius` must be at least 2, got 1"),
        ((MAPS, AFFINITY, 5, 0), "`beta` must be above 0, got 0"),
        ((MAPS, AFFINITY, 5, float("nan")), "`beta` must be above 0, got nan"),
        ((MAPS, AFFINITY, 5, 8, -1), "`logt` must not be negative, got -1"),
        ((MAPS, AFFINITY - 0.25), "`affinity` must not be negative or NaN, its lowest value is -0.25"),
        ((MAPS, AFFINITY + torch.nan), "`affinity` must not be negative or NaN, its lowest value is nan"),
    ],
)
def test_arguments_that_do_not_go_together(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        W.random_walk(*arguments)
