"""Pairs of pixels, their labels, affinities and displacements, against the literal readings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.literal import random_walk as literal
from wsss_contrast import functional as W

SIZES = pytest.mark.parametrize(("height", "width", "radius"), [(4, 6, 2), (5, 6, 3), (3, 5, 3), (6, 9, 4)])
EXACT = {"rtol": 1e-12, "atol": 1e-13}


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_labels(seed: int, *shape: int) -> Tensor:
    """0 to 2, or 255."""
    ids = torch.tensor([0, 1, 2, 255])
    return ids[torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(seed))]


def by_pair(values: Tensor, height: int, width: int, radius: int) -> dict[tuple, Tensor]:
    """Of (offsets, h', w')."""
    return dict(zip(literal.pairs(height, width, radius), values.flatten(), strict=True))


# Which pixels make pairs.


@pytest.mark.parametrize("radius", [2, 3, 5, 10])
def test_offsets(radius: int) -> None:
    assert W.affinity_offsets(radius) == literal.neighbours(radius)


def test_the_papers_numbers_of_offsets() -> None:
    assert [len(W.affinity_offsets(radius)) for radius in (5, 10)] == [34, 152]


def test_offsets_meet_every_two_pixels_once() -> None:
    ahead = W.affinity_offsets(6)
    around = {*ahead, *((-y, -x) for y, x in ahead)}
    assert len(around) == 2 * len(ahead)
    assert around == {(y, x) for y in range(-9, 10) for x in range(-9, 10) if 0 < y * y + x * x < 36}


@pytest.mark.parametrize("radius", [1, 0, -3])
def test_a_radius_without_offsets(radius: int) -> None:
    with pytest.raises(ValueError, match=f"`radius` must be at least 2, got {radius}"):
        W.affinity_offsets(radius)


def test_pixels_on_the_way() -> None:
    for offset in W.affinity_offsets(10):
        found = W.segment_pixels(offset)
        assert found == literal.way((0, 0), offset)
        assert {(0, 0), offset} <= set(found)
        mirrored = W.segment_pixels((offset[0], -offset[1]))
        assert sorted((y, -x) for y, x in mirrored) == found


def test_a_distance_of_exactly_1_is_not_on_the_way() -> None:
    assert (1, 3) not in W.segment_pixels((3, 4))
    assert (1, 2) in W.segment_pixels((3, 4))


# Labels.


@SIZES
def test_pair_labels(height: int, width: int, radius: int) -> None:
    labels = some_labels(0, 2, height, width)
    kinds = W.pair_labels(labels, radius)
    for n in (0, 1):
        for name, mask in kinds._asdict().items():
            for (p, q), value in by_pair(mask[n], height, width, radius).items():
                assert bool(value) == (literal.kind(int(labels[n][p]), int(labels[n][q])) == name)
    assert all(mask.dtype == torch.bool and mask.any() for mask in kinds)


def test_pairs_with_an_ignored_pixel_are_of_no_kind() -> None:
    labels = torch.full((1, 4, 6), 255)
    assert not any(mask.any() for mask in W.pair_labels(labels, 2))
    labels[0, 1, 3] = 1
    assert not any(mask.any() for mask in W.pair_labels(labels, 2))


def test_seeds_of_two_crfs() -> None:
    low = torch.tensor([[[0, 0, 0, 3, 3, 3, 255, 255]]])
    high = torch.tensor([[[0, 3, 255, 3, 0, 2, 0, 255]]])
    assert W.affinity_seeds(low, high).tolist() == [[[0, 255, 255, 3, 0, 3, 0, 255]]]
    assert low.tolist() == [[[0, 0, 0, 3, 3, 3, 255, 255]]]


def test_pooled_labels() -> None:
    """By the mean of a block, not by its most frequent class; nothing at all gives 255."""
    scores = torch.zeros(1, 3, 2, 6)
    scores[0, 1, :, :2] = torch.tensor([[0.4, 0.4], [0.4, 0.0]])
    scores[0, 2, :, :2] = torch.tensor([[0.3, 0.3], [0.3, 1.0]])
    scores[0, 0, :, 2:4] = 2e-5
    scores[0, 0, 0, 4] = 2e-5  # a mean of 0.5e-5
    assert W.pooled_labels(scores, 2).tolist() == [[[2, 0, 255]]]
    assert W.pooled_labels(scores, 1)[0, 0].tolist() == [1, 1, 0, 0, 0, 255]
    assert W.pooled_labels(scores.half(), 2).tolist() == [[[2, 0, 255]]]


@pytest.mark.parametrize("size", [(15, 16), (16, 12)], ids=str)
def test_blocks_that_do_not_fit(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"\(1, 2, {size[0]}, {size[1]}\) must be multiples of 8"):
        W.pooled_labels(torch.zeros(1, 2, *size))


@pytest.mark.parametrize(("height", "width", "stride"), [(8, 12, 4), (9, 7, 4), (3, 3, 8), (5, 6, 1), (16, 16, 8)])
def test_commonest_labels(height: int, width: int, stride: int) -> None:
    labels = some_labels(3, 2, height, width)
    expected = [literal.commonest_labels(of_image, stride) for of_image in labels]
    assert W.commonest_labels(labels, stride).tolist() == expected


def test_a_block_that_is_mostly_unsure_is_unsure() -> None:
    block = torch.tensor([[[255, 255, 3, 1], [255, 3, 1, 3]]])
    assert W.commonest_labels(block, 2).tolist() == [[[255, 1]]]  # 1 and 3 tie
    with pytest.raises(ValueError, match="`stride` must be at least 1, got 0"):
        W.commonest_labels(block, 0)


def test_background_by_a_power() -> None:
    maps = torch.tensor([[[[0.5, 1.0, 0.0]], [[0.25, 0.2, 0.0]]]], dtype=torch.float64)
    assert W.power_background(maps, 2).tolist() == [[[[0.25, 0.0, 1.0]]]]
    assert W.power_background(maps + 0.1, 3)[0, 0, 0, 1] == 0  # not of a negative number


# Affinities.


@SIZES
def test_feature_affinity(height: int, width: int, radius: int) -> None:
    features = normal(1, 2, 3, height, width).requires_grad_()
    affinity = W.feature_affinity(features, radius)
    expected = [
        literal.feature_affinity(image, p, q) for image in features for p, q in literal.pairs(height, width, radius)
    ]
    torch.testing.assert_close(affinity.flatten(), torch.stack(expected), **EXACT)
    weight = normal(2, affinity.numel())
    slopes = [torch.autograd.grad((x.flatten() * weight).sum(), features)[0] for x in (affinity, torch.stack(expected))]
    torch.testing.assert_close(*slopes, **EXACT)


def test_equal_features_have_the_affinity_1_and_gradient_0() -> None:
    features = torch.ones(1, 3, 5, 9, requires_grad=True)
    affinity = W.feature_affinity(features, 5)
    assert affinity.shape == (1, 34, 1, 1)
    assert (affinity == 1).all()
    assert (torch.autograd.grad(affinity.sum(), features)[0] == 0).all()


@SIZES
def test_edge_affinity(height: int, width: int, radius: int) -> None:
    edges = normal(3, 2, 1, height, width).requires_grad_()
    affinity = W.edge_affinity(edges, radius)
    where = literal.pairs(height, width, radius)
    expected = torch.stack([literal.edge_affinity(image[0], p, q) for image in edges for p, q in where])
    torch.testing.assert_close(affinity.flatten(), expected, **EXACT)
    weight = normal(4, affinity.numel())
    slopes = [torch.autograd.grad((x.flatten() * weight).sum(), edges)[0] for x in (affinity, expected)]
    torch.testing.assert_close(*slopes, **EXACT)


@pytest.mark.parametrize(("height", "width"), [(4, 5), (1, 7), (6, 1), (2, 2)])
def test_edge_affinity_of_the_whole_map(height: int, width: int) -> None:
    """Every two near pixels, also on maps smaller than the radius; 0 for what leaves the map."""
    edges, radius = normal(5, 1, 1, height, width), 4
    affinity = W.edge_affinity(edges, radius, whole_map=True)
    assert affinity.shape == (1, len(W.affinity_offsets(radius)), height, width)
    for index, (down, right) in enumerate(W.affinity_offsets(radius)):
        for row in range(height):
            for column in range(width):
                p, q = (row, column), (row + down, column + right)
                inside = q[0] < height and 0 <= q[1] < width
                expected = literal.edge_affinity(edges[0, 0], p, q) if inside else torch.tensor(0.0)
                torch.testing.assert_close(affinity[0, index][p], expected.double(), **EXACT)


def test_a_wall_parts_its_sides() -> None:
    edges = torch.full((1, 1, 9, 9), -20.0)
    edges[..., 4] = 20
    affinity = W.edge_affinity(edges, 5, whole_map=True)
    for index, (down, right) in enumerate(W.affinity_offsets(5)):
        for row in range(9 - down):
            for column in range(max(0, -right), min(9, 9 - right)):
                crosses = min(column, column + right) <= 4 <= max(column, column + right)
                assert abs(float(affinity[0, index, row, column]) - (not crosses)) < 1e-6


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_to_float32(half: torch.dtype) -> None:
    maps = normal(6, 1, 2, 5, 9).to(half)
    assert torch.equal(W.feature_affinity(maps, 3), W.feature_affinity(maps.float(), 3))
    assert torch.equal(W.edge_affinity(maps[:, :1], 3), W.edge_affinity(maps[:, :1].float(), 3))
    for ours, full in zip(W.displacement_errors(maps, 3), W.displacement_errors(maps.float(), 3), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, full)


def test_costs_of_an_affinity() -> None:
    together, apart = W.affinity_nll(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    expected = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(together, -(expected + 1e-5).log())
    torch.testing.assert_close(apart, together.flip(0))
    assert together.isfinite().all()


# Displacements.


@SIZES
def test_displacement_errors(height: int, width: int, radius: int) -> None:
    arrows = normal(7, 2, 2, height, width)
    objects, background = W.displacement_errors(arrows, radius)
    for n in (0, 1):
        of_objects, of_background = (by_pair(values[n], height, width, radius) for values in (objects, background))
        for p, q in of_objects:
            apart = [float(arrows[n, axis][p] - arrows[n, axis][q]) for axis in (0, 1)]
            assert float(of_background[p, q]) == pytest.approx(sum(map(abs, apart)) / 2)
            assert float(of_objects[p, q]) == pytest.approx(sum(abs(apart[k] - (q[k] - p[k])) for k in (0, 1)) / 2)


def test_arrows_to_one_spot_have_no_error() -> None:
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(20.0), indexing="ij")
    to_a_spot = torch.stack([5.5 - rows, 7.25 - columns])[None]
    assert W.displacement_errors(to_a_spot)[0].max() == 0
    assert W.displacement_errors(torch.ones(1, 2, 12, 20))[1].max() == 0
    assert W.displacement_errors(to_a_spot)[1].min() > 0


# What is refused.


@pytest.mark.parametrize("size", [(4, 9), (5, 8)], ids=str)
def test_maps_too_small_for_the_radius(size: tuple[int, int]) -> None:
    message = f"a map of {size[0]} x {size[1]} is too small for the radius 5: it must be 5 x 9 at least"
    calls = [
        lambda: W.feature_affinity(torch.zeros(1, 3, *size), 5),
        lambda: W.edge_affinity(torch.zeros(1, 1, *size), 5),
        lambda: W.displacement_errors(torch.zeros(1, 2, *size), 5),
        lambda: W.pair_labels(torch.zeros(1, *size, dtype=torch.long), 5),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_wrong_channels() -> None:
    with pytest.raises(ValueError, match=r"`edges` must be \(N, 1, h, w\), got \(1, 2, 5, 9\)"):
        W.edge_affinity(torch.zeros(1, 2, 5, 9), 5)
    with pytest.raises(ValueError, match=r"`edges` must be \(N, 1, h, w\), got \(1, 5, 9\)"):
        W.edge_affinity(torch.zeros(1, 5, 9), 5)
    with pytest.raises(ValueError, match=r"`displacements` must be \(N, 2, h, w\), got \(1, 1, 5, 9\)"):
        W.displacement_errors(torch.zeros(1, 1, 5, 9), 5)
