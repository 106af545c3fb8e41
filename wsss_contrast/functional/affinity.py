"""Affinities of pixels near each other: PSA (AffinityNet, CVPR 2018), from features; IRN (CVPR 2019), from edges.

A pair is a pixel and the one at an offset (down, right) from it. Pairs are laid out by their first pixel, a channel for
each offset of :func:`affinity_offsets`. The first pixels are those from which every offset stays on the map: with
``r = radius - 1``, rows 0 to h - r - 1 and columns r to w - r - 1, so that results are (N, offsets, h - r, w - 2 r).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .cross_supervision import NO_LABEL
from .maps import EPS, best_class, full_precision


def affinity_offsets(radius: int) -> list[tuple[int, int]]:
    """The offsets (down, right) nearer than ``radius``, of each pair and its reverse one: 34 for 5, 152 for 10.

    Raises:
        ValueError: a radius below 2, which has none.

    >>> affinity_offsets(2)
    [(0, 1), (1, -1), (1, 0), (1, 1)]
    """
    if radius < 2:
        raise ValueError(f"`radius` must be at least 2, got {radius}")
    reach = range(1 - radius, radius)
    ahead = [(y, x) for y in range(radius) for x in reach if (y, x) > (0, 0)]
    return [(y, x) for y, x in ahead if y * y + x * x < radius * radius]


def segment_pixels(offset: tuple[int, int]) -> list[tuple[int, int]]:
    """The pixels (down, right) on the way from a pixel to the one at ``offset``, both ends included (IRN).

    They lie in the box that the ends span, at a distance below 1 from the line through them.

    >>> segment_pixels((1, -2))
    [(0, -2), (0, -1), (0, 0), (1, -2), (1, -1), (1, 0)]
    """
    down, right = offset
    box = [(y, x) for y in range(down + 1) for x in range(min(right, 0), max(right, 0) + 1)]
    return [(y, x) for y, x in box if (y * right - x * down) ** 2 < down * down + right * right]


def power_background(maps: Tensor, alpha: float) -> Tensor:
    """The background's score of PSA: one minus the highest map, to the power alpha.

    Args:
        maps: (N, K, h, w) foreground maps, 0 to 1.
        alpha: the higher, the less background.

    Returns:
        (N, 1, h, w).
    """
    return (1 - full_precision(maps).amax(dim=1, keepdim=True)).clamp(min=0) ** alpha


def pooled_labels(scores: Tensor, stride: int = 8) -> Tensor:
    """The best class of each block of pixels, by its mean score; 255 where no class has one, as in padding.

    Args:
        scores: (N, C, H, W), not negative, as of a CRF; sides are multiples of ``stride``.
        stride: side of a block.

    Returns:
        (N, H / stride, W / stride), int64.

    Raises:
        ValueError: sides that are no multiples of ``stride``.
    """
    if scores.shape[-2] % stride or scores.shape[-1] % stride:
        raise ValueError(f"the sides of scores {tuple(scores.shape)} must be multiples of {stride}")
    means = F.avg_pool2d(full_precision(scores), stride)
    return best_class(means).masked_fill(means.amax(dim=1) < EPS, NO_LABEL)


def commonest_labels(labels: Tensor, stride: int) -> Tensor:
    """The label of each block of pixels that most of its pixels have. Ties go to the lowest.

    255 counts as a label of its own: a block that is mostly unsure is not labelled by a few pixels. Blocks at the lower
    and the right border are cut off by the photo where its sides are no multiples of ``stride``.

    Args:
        labels: (N, H, W) int64 ids from 0 to 255.
        stride: side of a block.

    Returns:
        (N, ceil(H / stride), ceil(W / stride)), int64.

    Raises:
        ValueError: a stride below 1.
    """
    if stride < 1:
        raise ValueError(f"`stride` must be at least 1, got {stride}")
    height, width = labels.shape[-2:]
    # Pixels beyond the border have a label that is left out below.
    padded = F.pad(labels.to(torch.int16), (0, -width % stride, 0, -height % stride), value=NO_LABEL + 1)
    blocks = padded.unflatten(2, (-1, stride)).unflatten(1, (-1, stride)).transpose(2, 3).flatten(3)
    ordered = blocks.sort(dim=3).values
    # How often each pixel's label is in the block: where it ends in the order less where it begins.
    ends, starts = (torch.searchsorted(ordered, ordered, right=right, out_int32=True) for right in (True, False))
    counts = (ends - starts).masked_fill(ordered > NO_LABEL, 0)
    commonest: Tensor = (counts * (NO_LABEL + 1) + (NO_LABEL - ordered)).amax(dim=3)  # of equal counts the lowest label
    return NO_LABEL - (commonest % (NO_LABEL + 1)).long()


def affinity_seeds(low: Tensor, high: Tensor) -> Tensor:
    """Labels of the pixels that two CRFs are sure of, for the pairs of PSA (Sec. 3.2).

    Background where the CRF of the faint background has background; else the class where the CRF of the strong
    background still has one; else 255. Those of IRN are made by :func:`~wsss_contrast.refine.pseudo_labels`, where the
    class goes before the background if both are sure.

    Args:
        low: (N, h, w) int64 ids, 255 for none: of the CRF whose background score has the low alpha (strong: 4).
        high: the same of the high alpha (faint: 32 in PSA, 24 in SEAM).

    Returns:
        (N, h, w), int64.
    """
    return torch.where(high == 0, 0, low.masked_fill(low == 0, NO_LABEL))


class PairLabels(NamedTuple):
    """What pairs are, each (N, offsets, h', w') bool. A pair with a pixel of label 255 is none of them.

    Attributes:
        background: both pixels are background.
        foreground: both are of the same class.
        negative: they differ.
    """

    background: Tensor
    foreground: Tensor
    negative: Tensor


def pair_labels(labels: Tensor, radius: int) -> PairLabels:
    """The labels of pairs.

    Args:
        labels: (N, h, w) ids, 0 for the background, 255 for none.
        radius: of the offsets.

    Raises:
        ValueError: a map smaller than radius x (2 radius - 1).
    """
    first, second = _pairs(labels[:, None], radius)
    first, second = first[:, 0], second[:, 0]
    equal = first == second
    labelled = (first != NO_LABEL) & (second != NO_LABEL)
    return PairLabels(equal & (first == 0), equal & (first != 0) & labelled, ~equal & labelled)


def feature_affinity(features: Tensor, radius: int = 5) -> Tensor:
    r"""PSA's affinity, :math:`W_{ij} = \exp(-\frac{1}{D} \lVert f_i - f_j \rVert_1)`.

    The paper has the norm alone; the mean over channels is that of the released code.

    Args:
        features: (N, D, h, w).
        radius: of the offsets.

    Returns:
        (N, offsets, h - r, w - 2 r), in (0, 1].

    Raises:
        ValueError: a map smaller than radius x (2 radius - 1).
    """
    features, offsets = full_precision(features), affinity_offsets(radius)
    first = _window(features, radius, (0, 0))
    # An offset at a time, into one tensor: all differences are 34 times the features, and small results between the
    # large differences keep their memory from being used again.
    distances = first.new_empty(len(first), len(offsets), *first.shape[2:])
    for index, offset in enumerate(offsets):
        distances[:, index] = (first - _window(features, radius, offset)).abs().mean(dim=1)
    return (-distances).exp()


def edge_affinity(edges: Tensor, radius: int, whole_map: bool = False) -> Tensor:
    r"""IRN's affinity, :math:`a_{ij} = 1 - \max_{k \in \Pi_{ij}} \sigma(e_k)` over the pixels on the way.

    Args:
        edges: (N, 1, h, w), logits of a class boundary.
        radius: of the offsets: 10 in training, 5 for the walk.
        whole_map: start pairs at every pixel. Those that leave the map have the affinity 0.

    Returns:
        (N, offsets, h - r, w - 2 r), or (N, offsets, h, w) of the whole map; in [0, 1].

    Raises:
        ValueError: edges of more than one channel, or a map smaller than radius x (2 radius - 1).
    """
    if edges.dim() != 4 or edges.shape[1] != 1:
        raise ValueError(f"`edges` must be (N, 1, h, w), got {tuple(edges.shape)}")
    edges = full_precision(edges)[:, 0].sigmoid()
    if whole_map:
        edges = F.pad(edges, (radius - 1, radius - 1, 0, radius - 1), value=1.0)
    strongest = []
    for offset in affinity_offsets(radius):
        between = [_window(edges, radius, pixel) for pixel in segment_pixels(offset)]
        strongest.append(torch.stack(between).max(dim=0).values)
    return 1 - torch.stack(strongest, dim=1)


def affinity_nll(affinity: Tensor) -> tuple[Tensor, Tensor]:
    r"""What an affinity costs a pair that belongs together, and one that does not: :math:`-\log(a + \varepsilon)` and
    :math:`-\log(1 + \varepsilon - a)`, with :math:`\varepsilon = 10^{-5}`."""
    return -(affinity + EPS).log(), -(1 + EPS - affinity).log()


def displacement_errors(displacements: Tensor, radius: int = 10) -> tuple[Tensor, Tensor]:
    r"""How far the displacements of pairs are from those of one object, and from those of the background (IRN).

    Pixels of one object point at the same spot, so that :math:`d_i - d_j = x_j - x_i`; those of the background do not
    point: :math:`d_i = d_j`.

    Args:
        displacements: (N, 2, h, w), down and right, in pixels of the map.
        radius: of the offsets.

    Returns:
        :math:`|d_i - d_j - (x_j - x_i)|` and :math:`|d_i - d_j|`, each the mean of both coordinates, of shape
        (N, offsets, h - r, w - 2 r).

    Raises:
        ValueError: displacements that are no (N, 2, h, w), or a map smaller than radius x (2 radius - 1).
    """
    if displacements.dim() != 4 or displacements.shape[1] != 2:
        raise ValueError(f"`displacements` must be (N, 2, h, w), got {tuple(displacements.shape)}")
    displacements = full_precision(displacements)
    first, second = _pairs(displacements, radius)
    # The offsets as a tensor that is made on the device: the pairs of one pixel's positions.
    positions = (torch.arange(side, device=displacements.device) for side in (radius, 2 * radius - 1))
    here, there = _pairs(torch.stack(torch.meshgrid(*positions, indexing="ij"))[None], radius)
    apart = first - second
    return (apart - (there - here)).abs().mean(dim=1), apart.abs().mean(dim=1)


def _pairs(maps: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """The first pixels (N, C, 1, h', w') and the second ones (N, C, offsets, h', w') of maps (N, C, h, w)."""
    seconds = [_window(maps, radius, offset) for offset in affinity_offsets(radius)]
    return _window(maps, radius, (0, 0))[:, :, None], torch.stack(seconds, dim=2)


def _window(maps: Tensor, radius: int, offset: tuple[int, int]) -> Tensor:
    """The pixels (..., h', w') at an offset from the first pixels of pairs, a view."""
    reach = radius - 1
    height, width = maps.shape[-2] - reach, maps.shape[-1] - 2 * reach
    if height < 1 or width < 1:
        size = " x ".join(map(str, maps.shape[-2:]))
        raise ValueError(
            f"a map of {size} is too small for the radius {radius}: it must be {radius} x {2 * radius - 1} at least"
        )
    top, left = offset[0], reach + offset[1]
    return maps[..., top : top + height, left : left + width]
