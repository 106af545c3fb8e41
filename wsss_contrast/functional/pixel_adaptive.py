"""Pixel-adaptive refinement (PAR) of AFA: maps are averaged over pixels of like colour nearby."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .maps import full_precision

_EPS = 1e-8


def neighbour_offsets(dilations: Sequence[int]) -> list[tuple[int, int]]:
    """The eight neighbours of a pixel at each distance, as (down, right).

    >>> neighbour_offsets([2])
    [(-2, -2), (-2, 0), (-2, 2), (0, -2), (0, 2), (2, -2), (2, 0), (2, 2)]
    """
    around = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    return [(y * dilation, x * dilation) for dilation in dilations for y, x in around]


def pixel_affinity(
    photos: Tensor,
    dilations: Sequence[int] = (1, 2, 4, 8, 12, 24),
    color_smoothness: float = 0.3,
    position_smoothness: float = 0.3,
    position_weight: float = 0.01,
) -> Tensor:
    r"""How much a pixel takes from each of its neighbours: the kernel of PAR (AFA, CVPR 2022, Sec. 3.4).

    .. math::

        \kappa(i, j) = \frac{1}{1 + w_3} \Big(
        \operatorname{softmax}_j -\Big(\frac{|I_i - I_j|}{w_1 \sigma_\mathrm{rgb}(i)}\Big)^2 + w_3
        \operatorname{softmax}_j -\Big(\frac{|P_i - P_j|}{w_2 \sigma_\mathrm{pos}}\Big)^2 \Big)

    over the neighbours :math:`j`, with colour :math:`I` (the mean of the squares of its channels), position :math:`P`,
    and the standard deviations over the neighbours of a channel's difference and of the distance. The paper does not
    divide by :math:`1 + w_3`; here the weights of a pixel add up to 1, so maps keep their range. Beyond the border
    lie copies of the border.

    Args:
        photos: (N, 3, H, W), any range.
        dilations: distances of the eight neighbours, in pixels.
        color_smoothness: w1.
        position_smoothness: w2.
        position_weight: w3.

    Returns:
        (N, 8 len(dilations), H, W), in the order of :func:`neighbour_offsets`. Constant.
    """
    with torch.no_grad():
        photos = full_precision(photos) if photos.is_floating_point() else photos.float()
        offsets = neighbour_offsets(dilations)
        shifted = _Shifts(photos, offsets)
        first, second = torch.zeros_like(photos), torch.zeros_like(photos)
        for neighbour in shifted:
            difference = neighbour - photos
            first += difference
            second.addcmul_(difference, difference)
        count = len(offsets)
        variance = ((second - first * first / count) / count).clamp_(min=0)
        scale = 1 / (color_smoothness**2 * variance + _EPS)

        n, _, height, width = photos.shape
        affinity = photos.new_empty(n, count, height, width)
        for index, neighbour in enumerate(shifted):
            difference = neighbour - photos
            affinity[:, index] = -(difference.mul_(difference).mul_(scale)).mean(dim=1)
        # In place: a softmax of its own would hold this tensor, the largest, twice.
        affinity -= affinity.amax(dim=1, keepdim=True)
        affinity.exp_()
        affinity /= affinity.sum(dim=1, keepdim=True)

        distances = photos.new_tensor([(y * y + x * x) ** 0.5 for y, x in offsets])
        spread = distances.std(correction=0)
        by_position = (-((distances / (position_smoothness * spread + _EPS)) ** 2)).softmax(dim=0)
        affinity += position_weight * by_position[:, None, None]
        return affinity.div_(1 + position_weight)


def propagate(
    maps: Tensor, affinity: Tensor, dilations: Sequence[int] = (1, 2, 4, 8, 12, 24), steps: int = 15
) -> Tensor:
    r"""Replace each pixel's values by the weighted mean of its neighbours': :math:`m \leftarrow \kappa m`, repeated.

    One neighbour at a time: a tensor of classes times neighbours is never made.

    Args:
        maps: (N, C, H, W). Differentiable.
        affinity: (N, 8 len(dilations), H, W) of :func:`pixel_affinity`.
        dilations: those of the affinity.
        steps: how often.

    Returns:
        (N, C, H, W).

    Raises:
        ValueError: an affinity of another number of neighbours.
    """
    offsets = neighbour_offsets(dilations)
    if affinity.shape[1] != len(offsets):
        raise ValueError(
            f"`affinity` has {affinity.shape[1]} neighbours, but the dilations {tuple(dilations)} are {len(offsets)}"
        )
    maps = full_precision(maps)
    for _ in range(steps):
        mixed = torch.zeros_like(maps)
        for index, neighbour in enumerate(_Shifts(maps, offsets)):
            mixed.addcmul_(affinity[:, index : index + 1], neighbour)
        maps = mixed
    return maps


class _Shifts:
    """A map's neighbours, one offset after the other, as views of one padded copy."""

    def __init__(self, maps: Tensor, offsets: Sequence[tuple[int, int]]) -> None:
        self.reach = max(max(abs(y), abs(x)) for y, x in offsets)
        self.padded = F.pad(maps, [self.reach] * 4, mode="replicate")
        self.size = (maps.shape[-2], maps.shape[-1])
        self.offsets = offsets

    def __iter__(self) -> Iterator[Tensor]:
        height, width = self.size
        for y, x in self.offsets:
            top, left = self.reach + y, self.reach + x
            yield self.padded[..., top : top + height, left : left + width]
