"""SEAM: self-supervised equivariant attention (Wang et al., CVPR 2020). Equation numbers are that paper's.

Foreground maps ``cams`` have K channels. Maps refined by the pixel correlation module (``refined``) have 1 + K, with
the background first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .maps import EPS, full_precision, mask_by_tags, normalize_cams, resize, with_background


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

    ``out_j = sum_i A_ij maps_i / sum_i A_ij`` with ``A_ij = relu(cosine(f_i, f_j))``. The normaliser is one more row
    of the product, so only one (hw x hw) matrix is made.

    Args:
        maps: (N, C, h, w).
        features: (N, D, h, w).
        valid: (N, h, w) bool, the pixels i that the sums run over; all by default.

    Returns:
        (N, C, h, w).
    """
    maps, features = full_precision(maps), full_precision(features)
    flat = features.flatten(2)
    flat = flat / (torch.linalg.vector_norm(flat, dim=1, keepdim=True) + EPS)
    affinity = (flat.transpose(1, 2) @ flat).relu()
    rows = torch.cat([maps, torch.ones_like(maps[:, :1])], dim=1)
    rows = (rows if valid is None else rows * valid[:, None]).flatten(2)
    spread = rows @ affinity
    refined: Tensor = spread[:, :-1] / (spread[:, -1:] + EPS)
    return refined.view_as(maps)


def equivariant_regularization(cams1: Tensor, cams2: Tensor, tags: Tensor, valid: Tensor | None = None) -> Tensor:
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

    Returns:
        Mean absolute difference over images, classes and pixels. Absent classes are zeros and count in the mean.
    """
    first = _tagged(cams1, tags, _size(cams2), valid)
    second = _tagged(cams2, tags, _size(cams2), valid)
    return _mean((first - second).abs(), valid)


def equivariant_cross_regularization(
    cams1: Tensor,
    refined1: Tensor,
    cams2: Tensor,
    refined2: Tensor,
    tags: Tensor,
    ratio: float = 0.2,
    valid: Tensor | None = None,
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
    """
    size = _size(cams2)
    with_one = torch.cat([torch.ones_like(tags[:, :1]), tags], dim=1)
    targets = [_one_class_a_pixel(_tagged(cams.detach(), tags, size, valid)) for cams in (cams1, cams2)]
    refined = [_tagged(maps, with_one, size, valid) for maps in (refined1, refined2)]
    first = _hardest((targets[1] - refined[0]).abs(), ratio, valid)
    return first + _hardest((targets[0] - refined[1]).abs(), ratio, valid)


def min_pooling(refined: Tensor, tags: Tensor, valid: Tensor | None = None) -> Tensor:
    """The mean of the lowest quarter of an image's per-pixel foreground maxima.

    In SEAM's released code it stands beside ``L_cls``. It keeps the refined maps from lighting up everywhere.

    Args:
        refined: (N, K, h, w) foreground channels of the refined maps, not normalised.
        tags: (N, K) multi-hot.
        valid: (N, h, w) bool, pixels that take part; all by default.
    """
    highest = mask_by_tags(full_precision(refined), tags).amax(dim=1).flatten(1).relu()
    return -_mean_of_largest(-highest, 0.25, None if valid is None else valid.flatten(1))


def _size(maps: Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]


def _tagged(maps: Tensor, tags: Tensor, size: tuple[int, int], valid: Tensor | None) -> Tensor:
    return mask_by_tags(resize(normalize_cams(maps, valid=valid), size), tags)


def _one_class_a_pixel(foreground: Tensor) -> Tensor:
    return with_background(suppress_non_maximum(foreground), 1 - foreground.amax(dim=1, keepdim=True))


def _hardest(differences: Tensor, ratio: float, valid: Tensor | None) -> Tensor:
    valid = None if valid is None else valid[:, None].expand_as(differences).flatten(1)
    return _mean_of_largest(differences.flatten(1), ratio, valid)


def _mean_of_largest(rows: Tensor, share: float, valid: Tensor | None) -> Tensor:
    """The mean of the largest ``share`` of each row's valid values; of equal ones at the limit the first are taken."""
    fixed = rows.detach()
    most = max(int(rows.shape[1] * share), 1)
    if valid is None:
        count = torch.full_like(fixed[:, :1], most, dtype=torch.long)
    else:
        fixed = fixed.masked_fill(~valid, -math.inf)
        valid_count = valid.sum(dim=1, keepdim=True)
        count = (valid_count.double() * share).long().clamp(1, most).minimum(valid_count)
    limit = fixed.topk(most, dim=1).values.gather(1, (count - 1).clamp_min(0))
    above, at = fixed > limit, fixed == limit
    room = count - above.sum(dim=1, keepdim=True)
    taken = above | (at & (at.cumsum(dim=1) <= room))
    means = torch.where(taken, rows, 0.0).sum(dim=1, keepdim=True) / count.clamp_min(1)
    return means.sum() / max(rows.shape[0], 1)


def _mean(values: Tensor, valid: Tensor | None) -> Tensor:
    if valid is None:
        return values.sum() / max(values.numel(), 1)
    return (values * valid[:, None]).sum() / (valid.sum() * values.shape[1]).clamp_min(1)
