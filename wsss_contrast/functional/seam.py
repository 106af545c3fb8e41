"""SEAM: self-supervised equivariant attention (Wang et al., CVPR 2020). Equation numbers are that paper's.

Foreground maps ``cams`` have K channels. Maps refined by the pixel correlation module (``refined``) have 1 + K, with
the background first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .maps import EPS, full_precision, mask_by_tags, normalize_cams, resize, tagged_channels, with_background


def suppress_non_maximum(foreground: Tensor) -> Tensor:
    """Keep, at each pixel, only the channels equal to the largest one. No gradient flows through the choice."""
    return foreground * (foreground == foreground.amax(dim=1, keepdim=True))


@torch.no_grad()
def correlation_input(cams: Tensor, valid: Tensor | None = None) -> Tensor:
    """The maps that the pixel correlation module spreads: scaled to [0, 1], background added, one class a pixel.

    The tags do not mask them, so the module serves at test time too. It is constant: the module's gradient flows
    through its features only.

    Args:
        cams: (N, K, h, w) raw foreground maps.
        valid: (N, h, w) bool, pixels that take part; all by default. The result has no meaning at the others, which
            :func:`pixel_correlation` leaves out.

    Returns:
        (N, 1 + K, h, w) in [0, 1]; the background is 1 - max over the foreground.
    """
    positive = full_precision(cams).relu()
    if valid is not None:
        positive = positive * valid[:, None]
    foreground = (positive - EPS).relu() / (positive.amax(dim=(-2, -1), keepdim=True) + EPS)
    background = 1 - foreground.amax(dim=1, keepdim=True)
    return with_background(suppress_non_maximum(foreground), background)


def pixel_correlation(maps: Tensor, features: Tensor, valid: Tensor | None = None) -> Tensor:
    """Refine maps by the similarity of pixels, the pixel correlation module (PCM, Eq. 4).

    ``out_j = sum_i A_ij maps_i / sum_i A_ij`` with ``A_ij = relu(cosine(f_i, f_j))``. The matrix A (hw x hw for each
    image) is made a block of rows at a time and never kept: the backward pass makes the blocks again. As A is
    symmetric, half of it is enough. In float32 also under autocast: half-precision cosines change sign.

    Args:
        maps: (N, C, h, w).
        features: (N, D, h, w).
        valid: (N, h, w) bool, the pixels i that the sums run over; all by default.

    Returns:
        (N, C, h, w). Differentiable once.
    """
    with torch.autocast(features.device.type, enabled=False):
        maps, features = full_precision(maps), full_precision(features)
        flat = features.flatten(2)
        flat = flat / (torch.linalg.vector_norm(flat, dim=1, keepdim=True) + EPS)
        # The normaliser is one more row of the product.
        rows = torch.cat([maps, torch.ones_like(maps[:, :1])], dim=1)
        rows = (rows if valid is None else rows * valid[:, None]).flatten(2)
        spread = _Spread.apply(rows.to(flat.dtype), flat)
        refined: Tensor = spread[:, :-1] / (spread[:, -1:] + EPS)
        return refined.view_as(maps)


class _Spread(torch.autograd.Function):
    """``rows @ relu(flat.T @ flat)`` for (N, R, P) rows and (N, D, P) columns, without the (P, P) matrix."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, flat: Tensor) -> Tensor:
        ctx.save_for_backward(rows, flat)
        spread = torch.zeros_like(rows)
        for columns in _blocks(flat):
            _add_symmetric(spread, rows, _cosines(flat, columns).relu_(), columns)
        return spread

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, flat = ctx.saved_tensors
        of_rows = torch.zeros_like(rows) if ctx.needs_input_grad[0] else None
        of_flat = torch.zeros_like(flat) if ctx.needs_input_grad[1] else None
        with torch.autocast(flat.device.type, enabled=False):  # some call `backward` within it
            # The gradient of A plus its transpose, which is symmetric, too.
            left, right = torch.cat([rows, slope], dim=1), torch.cat([slope, rows], dim=1)
            for columns in _blocks(flat):
                cosines = _cosines(flat, columns)
                if of_flat is not None:
                    of_matrix = left[..., columns].mT @ right[..., columns.start :]
                    # In place: nothing flows where relu gave 0.
                    torch.ops.aten.threshold_backward.grad_input(of_matrix, cosines, 0.0, grad_input=of_matrix)
                    _add_symmetric(of_flat, flat, of_matrix, columns)
                if of_rows is not None:
                    _add_symmetric(of_rows, slope, cosines.relu_(), columns)
        return of_rows, of_flat


def _blocks(flat: Tensor) -> Iterator[slice]:
    """Ranges of pixels, such that a block of cosines stays in a CPU's cache, or fills a GPU."""
    images, _, pixels = flat.shape
    side = max(2 ** (21 if flat.device.type == "cpu" else 26) // max(images * pixels, 1), 16)
    for start in range(0, pixels, side):
        yield slice(start, min(start + side, pixels))


def _cosines(flat: Tensor, block: slice) -> Tensor:
    """Of a block of pixels with itself and the pixels behind it, (N, block, rest)."""
    return flat[..., block].mT @ flat[..., block.start :]


def _add_symmetric(total: Tensor, left: Tensor, block: Tensor, columns: slice) -> None:
    """Add ``left @ A`` to ``total``, for what a block has of the symmetric A: its own rows, and the columns below."""
    total[..., columns.start :].baddbmm_(left[..., columns], block)
    total[..., columns].baddbmm_(left[..., columns.stop :], block[..., columns.stop - columns.start :].mT)


Size = tuple[int, int]


def equivariant_regularization(
    cams1: Tensor,
    cams2: Tensor,
    tags: Tensor,
    valid: Tensor | None = None,
    sizes: tuple[Size, Size] | None = None,
) -> Tensor:
    r"""Equivariant regularisation, ER (Eq. 3 and 8): the maps of two views of a photo agree.

    Both are min-max normalised and masked by the tags; the first view's are resized to the second's size.

    .. math::

        L_{ER} = \frac{1}{N K h_2 w_2} \sum_{n,k,i} \big| a^1_{nk}(i) - a^2_{nk}(i) \big|

    Args:
        cams1: (N, K, h1, w1) raw foreground maps of the source view.
        cams2: (N, K, h2, w2) of the target view.
        tags: (N, K) multi-hot.
        valid: (N, h2, w2) bool, pixels that both views have, where the target view is more than a resize; the first
            view's maps are then already warped to the second's pixels (:func:`~wsss_contrast.functional.warp`).
        sizes: what the maps of the source and of the target are resized to before anything else, their own by default.
            The loss of maps at the size of their photos, as SEAM has it, takes much less time and memory in this way
            than with large maps given.

    Returns:
        Mean absolute difference over images, classes and pixels. Absent classes are zeros and count in the mean.
    """
    classes = cams2.shape[1]
    tags, cams1, cams2 = _sized(sizes, *tagged_channels(tags, cams1, cams2))
    first = _tagged(cams1, tags, _size(cams2), valid)
    second = _tagged(cams2, tags, _size(cams2), valid)
    return _mean((first - second).abs(), valid, classes)


def equivariant_cross_regularization(
    cams1: Tensor,
    refined1: Tensor,
    cams2: Tensor,
    refined2: Tensor,
    tags: Tensor,
    ratio: float = 0.2,
    valid: Tensor | None = None,
    sizes: tuple[Size, Size] | None = None,
) -> Tensor:
    r"""Equivariant cross regularisation, ECR (Eq. 9): each view's refined maps follow the other view's raw maps.

    The raw maps are the constant side: min-max normalised, one class a pixel, background 1 - max. Only the largest
    ``ratio`` of an image's differences count (online hard example mining). The sum of both directions.

    .. math::

        L_{ECR} = \operatorname{mean}_{ratio} \big| o^2 - b^1 \big| + \operatorname{mean}_{ratio} \big| o^1 - b^2 \big|

    Args:
        cams1: (N, K, h1, w1) raw foreground maps of the source view; ``cams2`` (N, K, h2, w2) of the target view.
        refined1: (N, 1 + K, h1, w1) refined maps, background first; ``refined2`` (N, 1 + K, h2, w2).
        cams2: see ``cams1``.
        refined2: see ``refined1``.
        tags: (N, K) multi-hot.
        ratio: share of the (1 + K) h2 w2 differences of an image that count, in (0, 1].
        valid: see :func:`equivariant_regularization`; ``refined1``, too, is then warped.
        sizes: see :func:`equivariant_regularization`.
    """
    channels = refined2.shape[1]
    with_one = torch.cat([torch.ones_like(tags[:, :1]), tags], dim=1)
    tags, cams1, cams2 = _sized(sizes, *tagged_channels(tags, cams1.detach(), cams2.detach()))
    with_one, refined1, refined2 = _sized(sizes, *tagged_channels(with_one, refined1, refined2))
    size = _size(cams2)
    targets = [_one_class_a_pixel(_tagged(cams, tags, size, valid)) for cams in (cams1, cams2)]
    refined = [_tagged(maps, with_one, size, valid) for maps in (refined1, refined2)]
    # Where no image has a tag, one untagged channel is kept, and stands for a foreground that the refined maps lack.
    targets = [target[:, : refined[0].shape[1]] for target in targets]
    first = _hardest((targets[1] - refined[0]).abs(), ratio, valid, channels)
    return first + _hardest((targets[0] - refined[1]).abs(), ratio, valid, channels)


def min_pooling(refined: Tensor, tags: Tensor, valid: Tensor | None = None, size: Size | None = None) -> Tensor:
    """The mean of the lowest quarter of an image's per-pixel foreground maxima.

    In SEAM's released code it stands beside ``L_cls``. It keeps the refined maps from lighting up everywhere.

    Args:
        refined: (N, K, h, w) foreground channels of the refined maps, not normalised.
        tags: (N, K) multi-hot.
        valid: (N, h, w) bool, pixels that take part; all by default.
        size: what the maps are resized to before anything else, their own by default.
    """
    tags, refined = tagged_channels(tags, refined)
    refined = resize(full_precision(refined), size or _size(refined))
    highest = mask_by_tags(refined, tags).amax(dim=1).flatten(1).relu()
    return -_mean_of_largest(-highest, 0.25, None if valid is None else valid.flatten(1), highest.shape[1])


def _size(maps: Tensor) -> Size:
    return maps.shape[-2], maps.shape[-1]


def _sized(sizes: tuple[Size, Size] | None, tags: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    """The maps of two views at these sizes, behind the tags."""
    maps = full_precision(source), full_precision(target)
    return tags, *((resize(m, size) for m, size in zip(maps, sizes, strict=True)) if sizes else maps)


def _tagged(maps: Tensor, tags: Tensor, size: Size, valid: Tensor | None) -> Tensor:
    return mask_by_tags(resize(normalize_cams(maps, valid=valid), size), tags)


def _one_class_a_pixel(foreground: Tensor) -> Tensor:
    return with_background(suppress_non_maximum(foreground), 1 - foreground.amax(dim=1, keepdim=True))


def _hardest(differences: Tensor, ratio: float, valid: Tensor | None, channels: int) -> Tensor:
    """Of an image's differences in all channels, of which those that are not there are 0."""
    valid = None if valid is None else valid[:, None].expand_as(differences).flatten(1)
    pixels = differences.shape[-2] * differences.shape[-1]
    return _mean_of_largest(differences.flatten(1), ratio, valid, channels * pixels)


def _mean_of_largest(rows: Tensor, share: float, valid: Tensor | None, length: int) -> Tensor:
    """The mean of the largest ``share`` of each row's valid values; of equal ones at the limit the first are taken.

    The rows are of ``length`` values, of which those that are not given are the smallest, and 0.
    """
    fixed = rows.detach()
    given = rows.shape[1]
    most = max(int(length * share), 1)
    if valid is None:
        count = torch.full_like(fixed[:, :1], most, dtype=torch.long)
        room = count.clamp_max(given)
    else:
        fixed = fixed.masked_fill(~valid, -math.inf)
        there = valid.sum(dim=1, keepdim=True)
        full = there * length // max(given, 1)
        count = (full.double() * share).long().clamp(1, most).minimum(full)
        room = count.minimum(there)
    if most >= given and valid is None:
        taken = rows
    else:
        largest = fixed.topk(min(most, given), dim=1).values
        limit = largest.gather(1, (room - 1).clamp_min(0))
        above, at = fixed > limit, fixed == limit
        left = room - above.sum(dim=1, keepdim=True)
        taken = torch.where(above | (at & (at.cumsum(dim=1) <= left)), rows, 0.0)
    return (taken.sum(dim=1, keepdim=True) / count.clamp_min(1)).sum() / max(rows.shape[0], 1)


def _mean(values: Tensor, valid: Tensor | None, channels: int) -> Tensor:
    """Over images, pixels and so many channels, of which those that are not there are 0."""
    if valid is None:
        return values.sum() / max(values[:, 0].numel() * channels, 1)
    return (values * valid[:, None]).sum() / (valid.sum() * channels).clamp_min(1)
