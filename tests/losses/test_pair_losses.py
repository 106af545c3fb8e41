"""The losses of PSA and IRN against their literal readings, and their argument errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.literal import random_walk as literal
from wsss_contrast.losses import InterPixelRelations, SemanticAffinity

CLOSE = {"rtol": 1e-9, "atol": 1e-12}
SIZES = pytest.mark.parametrize(("height", "width", "radius"), [(4, 6, 2), (5, 6, 3), (6, 7, 4)])


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def some_labels(seed: int, *shape: int) -> Tensor:
    """0 to 2, or 255."""
    ids = torch.tensor([0, 1, 2, 255])
    return ids[torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(seed))]


def assert_same(found: dict[str, Tensor], expected: dict[str, Any], *leaves: Tensor) -> None:
    """Each term's value and gradient; where there is no such pair, a zero with a graph."""
    assert found.keys() == expected.keys()
    for name, value in found.items():
        slopes = torch.autograd.grad(value, leaves, retain_graph=True, materialize_grads=True, allow_unused=True)
        if not isinstance(expected[name], Tensor):
            assert value == expected[name] == 0
            assert value.requires_grad
            assert all((slope == 0).all() for slope in slopes)
            continue
        torch.testing.assert_close(value, expected[name], **CLOSE)
        wanted = torch.autograd.grad(
            expected[name], leaves, retain_graph=True, materialize_grads=True, allow_unused=True
        )
        torch.testing.assert_close(slopes, wanted, **CLOSE)


@SIZES
def test_semantic_affinity(height: int, width: int, radius: int) -> None:
    features, labels = normal(0, 2, 3, height, width), some_labels(1, 2, height, width)
    found = SemanticAffinity(radius)(features, labels)
    assert all(term > 0 for term in found.values())
    assert_same(found, literal.semantic_affinity(features, labels, radius), features)


@SIZES
def test_inter_pixel_relations(height: int, width: int, radius: int) -> None:
    edges, arrows, labels = (
        normal(2, 2, 1, height, width),
        normal(3, 2, 2, height, width),
        some_labels(4, 2, height, width),
    )
    found = InterPixelRelations(radius)(edges, arrows, labels)
    assert all(term > 0 for term in found.values())
    assert_same(found, literal.inter_pixel_relations(edges, arrows, labels, radius), edges, arrows)


@pytest.mark.parametrize("label", [0, 1, 255])
def test_labels_of_one_kind(label: int) -> None:
    """Pairs of two kinds, or of three, do not exist."""
    features, labels = normal(5, 1, 3, 4, 6), torch.full((1, 4, 6), label)
    edges, arrows = normal(6, 1, 1, 4, 6), normal(7, 1, 2, 4, 6)
    assert_same(SemanticAffinity(3)(features, labels), literal.semantic_affinity(features, labels, 3), features)
    found = InterPixelRelations(3)(edges, arrows, labels)
    assert_same(found, literal.inter_pixel_relations(edges, arrows, labels, 3), edges, arrows)


def test_means_are_over_the_pairs_of_the_whole_batch() -> None:
    """Not over images: one of few pairs counts less."""
    features, labels = normal(8, 2, 3, 4, 6), some_labels(9, 2, 4, 6)
    labels[1, 1:] = 255
    loss = SemanticAffinity(2)
    apart = [loss(features[n : n + 1], labels[n : n + 1]) for n in (0, 1)]
    assert not torch.isclose(loss(features, labels)["negative"], (apart[0]["negative"] + apart[1]["negative"]) / 2)


def test_perfect_maps_cost_nothing() -> None:
    labels = torch.zeros(1, 12, 20, dtype=torch.long)
    labels[..., 10:] = 1
    features = 1e3 * labels[:, None].double()
    assert sum(SemanticAffinity()(features, labels).values()) == pytest.approx(0, abs=1e-4)
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(20.0), indexing="ij")
    arrows = torch.stack([5.5 - rows, 15 - columns])[None] * labels[:, None]
    # A boundary has a width: no pair of like pixels may have it on the way, so the pixels of the wall are of no class.
    edges = torch.full((1, 1, 12, 20), -30.0)
    edges[..., 9:11], labels[..., 9:11] = 30, 255
    assert sum(InterPixelRelations(5)(edges, arrows, labels).values()) == pytest.approx(0, abs=1e-4)


def test_the_papers_radii_are_the_default() -> None:
    assert (SemanticAffinity().radius, InterPixelRelations().radius) == (5, 10)


@pytest.mark.parametrize("loss", [SemanticAffinity, InterPixelRelations])
def test_radius_without_pairs(loss: type) -> None:
    with pytest.raises(ValueError, match="`radius` must be at least 2, got 1"):
        loss(1)


FEATURES, LABELS = torch.zeros(2, 3, 5, 9), torch.zeros(2, 5, 9, dtype=torch.long)
EDGES, ARROWS = torch.zeros(2, 1, 5, 9), torch.zeros(2, 2, 5, 9)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((FEATURES[0], LABELS), r"`features` must be a floating .* got torch.float32 \(3, 5, 9\)"),
        ((FEATURES.long(), LABELS), "`features` must be a floating .* got torch.int64"),
        ((FEATURES * math.nan, LABELS), "`features` has NaN"),
        ((FEATURES, LABELS[:1]), r"`labels` must be an int64 .* of 2 images, got torch.int64 \(1, 5, 9\)"),
        ((FEATURES, LABELS.byte()), "`labels` must be an int64 .* got torch.uint8"),
        ((FEATURES, LABELS - 1), r"`labels` must be ids 0 to 254 or 255, got \[-1\]"),
        ((FEATURES, LABELS + 256), r"got \[256\]"),
        ((FEATURES, LABELS[:, :4]), "`labels` must have the size of `features`, 5 x 9, got 4 x 9"),
        ((FEATURES[..., :8], LABELS[..., :8]), "5 x 8 is too small for the radius 5: it must be 5 x 9 at least"),
    ],
)
def test_semantic_affinity_refuses(inputs: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SemanticAffinity()(*inputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((EDGES[0], ARROWS, LABELS), r"`edges` must be a floating .* \(1, 5, 9\)"),
        ((FEATURES, ARROWS, LABELS), r"`edges` must be \(N, 1, h, w\), got \(2, 3, 5, 9\)"),
        ((EDGES, FEATURES, LABELS), r"`displacements` must be \(N, 2, h, w\), got \(2, 3, 5, 9\)"),
        ((EDGES, ARROWS[:1], LABELS), r"the batch sizes differ: .*'displacements': 1"),
        ((EDGES, ARROWS * math.nan, LABELS), "`displacements` has NaN"),
        ((EDGES, ARROWS[..., 1:], LABELS), r"must have the same size, got \(5, 9\) and \(5, 8\)"),
        ((EDGES, ARROWS, LABELS[..., 1:]), "`labels` must have the size of `edges`, 5 x 9, got 5 x 8"),
        ((EDGES, ARROWS, LABELS + 256), r"`labels` must be ids 0 to 254 or 255, got \[256\]"),
    ],
)
def test_inter_pixel_relations_refuse(inputs: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InterPixelRelations(5)(*inputs)


def test_map_smaller_than_the_radius_of_irn() -> None:
    with pytest.raises(ValueError, match="5 x 9 is too small for the radius 10: it must be 10 x 19 at least"):
        InterPixelRelations()(EDGES, ARROWS, LABELS)
