"""The permutohedral lattice: Gaussian filtering of values that lie anywhere in a few dimensions.

Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice" (Eurographics 2010). All steps
are operations on whole tensors: corners by rounding and ranks, equal corners found by sorting, and each of splat, blur
and slice a weighted sum of rows at indices (``embedding_bag``).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

FURTHEST = 1e6
"""Of a feature: rounding of float32 would mix up places that are further away."""


class Corners(NamedTuple):
    """The simplex around each of P points in d dimensions.

    Attributes:
        keys: (P, d + 1) int64, a number for each lattice point.
        weights: (P, d + 1), barycentric coordinates, they add up to 1.
        steps: what to add to a key for the neighbour in each of the d + 1 directions.
    """

    keys: Tensor
    weights: Tensor
    steps: list[int]


class PermutohedralLattice:
    r"""A filter :math:`v_i \mapsto \sum_j e^{-\frac12 \lVert f_i - f_j \rVert^2} v_j`, approximately and up to scale.

    A point gives its value to the d + 1 corners of the simplex around it (splat), the values of neighbouring corners
    are mixed by 1/4, 1/2, 1/4 along each direction of the lattice in turn (blur; here by 1/2, 1, 1/2), and the point
    takes its corners' values (slice). The result depends on the order of the dimensions a little.

    Args:
        features: (N, P, d), the places of the points, in standard deviations. The N sets do not meet.
        normalize: divide the kernel :math:`k_{ij}` by :math:`\sqrt{\sum_l k_{il} \sum_l k_{jl}}`, as a dense CRF does.
            Without, the scale is arbitrary.

    Raises:
        ValueError: features of another shape, NaN or beyond a million, or too far apart in too many dimensions for
            places to be numbered.

    >>> lattice = PermutohedralLattice(torch.tensor([[[0.0], [0.1], [9.0]]]))
    >>> values = torch.tensor([[[1.0], [0.0], [0.0]]])
    >>> near, far = lattice(values)[0, 1:, 0].tolist()
    >>> near > 0.5, far == 0
    (True, True)
    """

    def __init__(self, features: Tensor, normalize: bool = False) -> None:
        if features.dim() != 3 or not features.shape[2]:
            raise ValueError(f"`features` must be (N, P, d), got {tuple(features.shape)}")
        self.shape = features.shape[:2]
        if not features.numel():
            return  # nothing to filter
        corners = _corners(features.detach().float())
        count = corners.keys.shape[1]
        # Corners by their place in the lattice: those of one place follow each other.
        keys, order = corners.keys.flatten().sort()
        first = torch.cat([keys.new_ones(1, dtype=torch.bool), keys[1:] != keys[:-1]])
        places = keys[first]
        of_point = torch.empty_like(order, dtype=torch.int32)
        of_point[order] = first.cumsum(dim=0, dtype=torch.int32) - 1
        self._to_points = of_point.view(-1, count)
        self._from_points = order.div(count, rounding_mode="floor").int()
        # One place more than there are, without points: where there is no neighbour.
        self._starts = torch.cat([first.nonzero()[:, 0], order.new_full((1,), len(order))]).int()
        self._neighbors = _neighbors(places, corners.steps)
        self._mix = corners.weights.new_tensor([1, 0.5, 0.5]).repeat(len(places) + 1, 1)
        self._slice = corners.weights
        self._splat = corners.weights.flatten()[order]
        if normalize:
            ones = corners.weights.new_ones(*self.shape, 1)
            norm = self.filter(ones).flatten().rsqrt()
            self._slice = self._slice * norm[:, None]
            self._splat = self._splat * norm[self._from_points]

    def __call__(self, values: Tensor) -> Tensor:
        """Filter values (N, P, C) of the points, any floating type. Differentiable."""
        if values.dim() != 3 or values.shape[:2] != self.shape or not values.is_floating_point():
            raise ValueError(
                f"`values` must be floating and of {tuple(self.shape)} points, got {values.dtype} {tuple(values.shape)}"
            )
        filtered: Tensor = _Filter.apply(values, self)
        return filtered

    def filter(self, values: Tensor, transposed: bool = False) -> Tensor:
        """As a call, without a gradient; or its transpose, whose directions come in reverse order."""
        rows = values.flatten(0, 1)
        if not rows.numel():
            return torch.zeros_like(values)
        rows = _weighted_sums(rows, self._from_points, self._splat, self._starts)
        for neighbors in self._neighbors.flip(0) if transposed else self._neighbors:
            rows = _weighted_sums(rows, neighbors, self._mix)
        return _weighted_sums(rows, self._to_points, self._slice).view(values.shape)


def _weighted_sums(rows: Tensor, index: Tensor, weights: Tensor, starts: Tensor | None = None) -> Tensor:
    """For each row of ``index``, or from each start to the next, the sum of those rows (R, C) times their weights."""
    return F.embedding_bag(index, rows, starts, mode="sum", per_sample_weights=weights.to(rows.dtype))


class _Filter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, lattice: PermutohedralLattice) -> Tensor:
        ctx.lattice = lattice
        return lattice.filter(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.lattice.filter(gradient, transposed=True), None


def _corners(features: Tensor) -> Corners:
    """Sec. 3 of the paper. Lattice points have d + 1 coordinates that add up to 0; the last one is not needed."""
    images, points, size = features.shape
    features = features.flatten(0, 1).T
    furthest = float(features.abs().amax())
    if not furthest <= FURTHEST:
        raise ValueError(f"`features` must be standard deviations, within {FURTHEST:g}; they reach {furthest:g}")
    # Into the plane of the lattice, in units of d + 1. The factor makes the blur's standard deviation 1.
    scales = [math.sqrt(2 / 3 / ((i + 1) * (i + 2))) for i in range(size)]
    axes = [feature * scale for feature, scale in zip(features, scales, strict=True)]
    rest = torch.stack(axes).sum(dim=0)
    coordinates = [rest]
    for i, axis in enumerate(axes):
        rest = rest - axis
        coordinates.append(rest - (i + 1) * axis)
    plane = torch.stack(coordinates)
    # The nearest point whose coordinates are multiples of d + 1, and the ranks of what is left, the largest first.
    nearest = plane.round()
    left = plane - nearest
    ranks = nearest.sum(dim=0).repeat(size + 1, 1)
    for i in range(size + 1):
        for j in range(i + 1, size + 1):
            smaller = left[i] < left[j]
            ranks[i] += smaller
            ranks[j] += ~smaller
    beyond = (ranks < 0).float() - (ranks > size).float()
    nearest += beyond
    ranks = (ranks + (size + 1) * beyond).long()
    by_rank = torch.empty_like(plane).scatter_(0, ranks, plane - nearest).flip(0)
    weights = torch.cat([1 + by_rank[:1] - by_rank[-1:], by_rank[1:] - by_rank[:-1]])
    # A key has a digit for each coordinate, with room for neighbours.
    nearest = nearest[:size].long()
    lowest, highest = nearest.amin(dim=1) - 2, nearest.amax(dim=1) + 2
    digits = [images, *(((highest - lowest + 1) * (size + 1)).tolist())]
    if math.prod(digits) >= 2**63:
        raise ValueError(
            f"`features` of {size} dimensions reach {furthest:g} standard deviations: too many places to number"
        )
    worth = [math.prod(digits[i + 1 :]) for i in range(size + 1)]
    key = torch.arange(images, device=features.device).repeat_interleave(points) * worth[0]
    for i in range(size):
        key += (nearest[i] - lowest[i]) * (size + 1) * worth[i + 1]
    # From corner to corner all coordinates rise by 1, and that of the next rank falls by d + 1.
    all_digits = sum(worth[1:])
    of_axis = torch.tensor([*worth[1:], 0], device=features.device)
    falls = torch.empty_like(ranks).scatter_(0, ranks, of_axis[:, None].expand_as(ranks)).flip(0) * (size + 1)
    keys = torch.cat([key[None], key + (all_digits - falls[:-1]).cumsum(dim=0)])
    steps = [(size + 1) * axis - all_digits for axis in [*worth[1:], 0]]
    return Corners(keys.T.contiguous(), weights.T.contiguous(), steps)


def _neighbors(places: Tensor, steps: list[int]) -> Tensor:
    """(directions, places + 1, 3) int32: each place and its two neighbours; the place beyond the last for none."""
    nowhere = len(places)
    neighbors = torch.full((len(steps), nowhere + 1, 3), nowhere, dtype=torch.int32, device=places.device)
    neighbors[:, :, 0] = torch.arange(nowhere + 1, dtype=torch.int32, device=places.device)
    for of_direction, step in zip(neighbors, steps, strict=True):
        wanted = places + step
        found = torch.searchsorted(places, wanted, out_int32=True).clamp_(max=nowhere - 1)
        here = (places[found] == wanted).nonzero()[:, 0]
        there = found[here]
        of_direction[here, 1] = there
        of_direction[there, 2] = here.int()
    return neighbors
