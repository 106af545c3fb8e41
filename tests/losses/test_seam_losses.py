"""SEAM's losses against the literal reading of their equations, and their argument errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.literal import seam
from wsss_contrast.losses import (
    EquivariantCrossRegularization,
    EquivariantRegularization,
    MinPooling,
    MultilabelSoftMargin,
)

SIZES = [
    ((6, 5), (3, 4)),
    ((1, 1), (1, 1)),
    ((4, 3), (1, 1)),
    ((1, 1), (3, 2)),
    ((3, 4), (3, 4)),
    ((2, 3), (7, 4)),
]
TAGS = {
    "random": [[1, 0, 1], [0, 1, 0]],
    "none": [[0, 0, 0], [0, 0, 0]],
    "late": [[0, 0, 1], [0, 0, 0]],
    "all": [[1, 1, 1], [1, 1, 1]],
}
WITH_SIZES = pytest.mark.parametrize("sizes", SIZES, ids=str)
WITH_TAGS = pytest.mark.parametrize("tags", TAGS)


def maps(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def assert_literal(
    loss: Callable[..., Tensor], literal: Callable[..., Tensor], inputs: list[Tensor], tags: Tensor
) -> None:
    """Value and gradient equal the literal reading's."""
    got, want = loss(*inputs, tags), literal(*inputs, tags)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)
    slopes = torch.autograd.grad(got, inputs, allow_unused=True, materialize_grads=True)
    expected = torch.autograd.grad(want, inputs, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(slopes, expected, rtol=1e-9, atol=1e-11)


@WITH_SIZES
@WITH_TAGS
def test_equivariant_regularization(sizes: tuple[tuple[int, int], ...], tags: str) -> None:
    inputs = maps(1, (2, 3, *sizes[0]), (2, 3, *sizes[1]))
    assert_literal(EquivariantRegularization(), seam.equivariant_regularization, inputs, torch.tensor(TAGS[tags]))


@WITH_SIZES
@WITH_TAGS
@pytest.mark.parametrize("ratio", [0.2, 1.0, 0.001])
def test_equivariant_cross_regularization(sizes: tuple[tuple[int, int], ...], tags: str, ratio: float) -> None:
    first, second = sizes
    inputs = maps(2, (2, 3, *first), (2, 4, *first), (2, 3, *second), (2, 4, *second))
    assert_literal(
        EquivariantCrossRegularization(ratio),
        lambda *x: seam.equivariant_cross_regularization(*x, ratio),
        inputs,
        torch.tensor(TAGS[tags]),
    )


@WITH_SIZES
@WITH_TAGS
def test_min_pooling(sizes: tuple[tuple[int, int], ...], tags: str) -> None:
    assert_literal(MinPooling(), seam.min_pooling, maps(3, (2, 3, *sizes[0])), torch.tensor(TAGS[tags]))


@WITH_SIZES
@WITH_TAGS
def test_multilabel_soft_margin(sizes: tuple[tuple[int, int], ...], tags: str) -> None:
    assert_literal(
        MultilabelSoftMargin(),
        lambda x, t: seam.multilabel_soft_margin(seam.global_average_pool(x), t),
        maps(4, (2, 3, *sizes[1])),
        torch.tensor(TAGS[tags]),
    )


def test_one_class() -> None:
    tags = torch.tensor([[1], [0]])
    first, refined1, second, refined2 = maps(5, (2, 1, 4, 4), (2, 2, 4, 4), (2, 1, 3, 3), (2, 2, 3, 3))
    assert_literal(EquivariantRegularization(), seam.equivariant_regularization, [first, second], tags)
    inputs = [first, refined1, second, refined2]
    assert_literal(EquivariantCrossRegularization(), seam.equivariant_cross_regularization, inputs, tags)
    assert_literal(MinPooling(), seam.min_pooling, [first], tags)


def test_equal_views_cost_nothing() -> None:
    (same,) = maps(6, (2, 3, 4, 4))
    assert EquivariantRegularization()(same, same.clone(), torch.ones(2, 3)) == 0


def test_cross_regularization_moves_the_refined_maps_only() -> None:
    inputs = maps(7, (2, 3, 6, 5), (2, 4, 6, 5), (2, 3, 4, 3), (2, 4, 4, 3))
    loss = EquivariantCrossRegularization()(*inputs, torch.ones(2, 3))
    slopes = torch.autograd.grad(loss, inputs, allow_unused=True)
    assert slopes[0] is None
    assert slopes[2] is None
    assert slopes[1].abs().sum() > 0
    assert slopes[3].abs().sum() > 0


def test_the_background_of_the_refined_maps_counts_in_every_image() -> None:
    inputs = maps(8, (1, 2, 4, 4), (1, 3, 4, 4), (1, 2, 4, 4), (1, 3, 4, 4))
    loss = EquivariantCrossRegularization(1.0)(*inputs, torch.zeros(1, 2))
    slope = torch.autograd.grad(loss, inputs[1])[0]
    assert slope[:, 0].abs().sum() > 0
    assert slope[:, 1:].abs().sum() == 0


def test_tied_pixels_of_min_pooling_go_by_the_lowest_index() -> None:
    """On a constant map the first quarter of the pixels holds the gradient."""
    constant = [torch.full((2, 3, 8, 8), 0.7, dtype=torch.float64, requires_grad=True)]
    assert_literal(MinPooling(), seam.min_pooling, constant, torch.ones(2, 3))


def test_tied_differences_of_cross_regularization_go_by_the_lowest_index() -> None:
    """Two values only: many differences are equal, and they differ in the gradient."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 2, 6, 6), (1, 3, 6, 6), (1, 2, 6, 6), (1, 3, 6, 6)]
    inputs = [torch.randint(0, 3, s, generator=generator).double().requires_grad_() for s in shapes]
    ties = seam.equivariant_cross_regularization
    assert_literal(EquivariantCrossRegularization(), ties, inputs, torch.ones(1, 2))


@pytest.mark.parametrize("ratio", [0, -0.1, 1.01, math.nan])
def test_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(ValueError, match=rf"`ratio` must be in \(0, 1\], got {ratio}"):
        EquivariantCrossRegularization(ratio)


F4 = torch.zeros(2, 3, 4, 4)
REFINED = torch.zeros(2, 4, 4, 4)
TAG = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("loss", "inputs", "message"),
    [
        (
            EquivariantRegularization(),
            (F4, F4[:, :2], TAG),
            r"channels differ.*'source_cams': 3.*'target_cams': 2",
        ),
        (EquivariantRegularization(), (F4, F4[:1], TAG), r"batch sizes differ.*'target_cams': 1"),
        (EquivariantRegularization(), (F4[0], F4, TAG), r"`source_cams`.*\(3, 4, 4\)"),
        (EquivariantRegularization(), (F4, F4 * math.nan, TAG), r"`target_cams` has NaN"),
        (EquivariantRegularization(), (F4, F4, TAG[:1]), r"`tags`.*\(2, 3\), got \(1, 3\)"),
        (EquivariantCrossRegularization(), (F4, F4, F4, F4, TAG), r"one channel more.*got 3 and 3"),
        (EquivariantCrossRegularization(), (F4, REFINED, F4, F4, TAG), r"'target_refined': 3"),
        (EquivariantCrossRegularization(), (F4, REFINED, F4[:, 1:], REFINED, TAG), r"'target_cams': 2"),
        (
            EquivariantCrossRegularization(),
            (F4, REFINED, F4, REFINED, TAG - 1),
            r"`tags` must be 0 or 1.*-1.0",
        ),
        (EquivariantCrossRegularization(), (F4, REFINED / 0, F4, REFINED, TAG), r"`source_refined` has NaN"),
        (MinPooling(), (F4.long(), TAG), r"`refined`.*torch.int64"),
        (MinPooling(), (F4[..., :0], TAG), r"`refined`.*pixels.*\(2, 3, 4, 0\)"),
        (MinPooling(), (F4, TAG + 2), r"`tags` must be 0 or 1, got values in \[2.0, 2.0\]"),
        (MultilabelSoftMargin(), (F4, TAG[:, :2]), r"`tags`.*\(2, 3\), got \(2, 2\)"),
        (MultilabelSoftMargin(), (F4[:, :0], TAG[:, :0]), r"`cams`.*channels.*\(2, 0, 4, 4\)"),
        (MultilabelSoftMargin(), (None, TAG), r"`cams`.*NoneType"),
    ],
)
def test_tensors_that_do_not_go_together(loss: nn.Module, inputs: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(*inputs)


def test_refined_maps_of_another_size_than_the_raw_maps() -> None:
    """The shapes say that they are equal; if not, it is an error or a resize, and never a broadcast."""
    inputs = maps(9, (1, 2, 4, 4), (1, 3, 4, 4), (1, 2, 4, 4), (1, 3, 2, 2))
    assert_literal(EquivariantCrossRegularization(), seam.equivariant_cross_regularization, inputs, torch.ones(1, 2))
