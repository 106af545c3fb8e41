"""SEAM: self-supervised equivariant attention (Wang et al., CVPR 2020). Equation numbers are that paper's.

Foreground maps ``cams`` have K channels. Maps refined by the pixel correlation module (``refined``) have 1 + K, with
the background first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .maps import EPS, full_precision, mask_by_tags, normalize_cams, resize, with_background


def suppress_non_maximum(foreground: Tensor) -> Tensor:
    """Keep, at each pixel, only the channels equal to the largest one. No gradient flows through the choice."""
    return foreground * (foreground == foreground.amax(dim=1, keepdim=True))


@torch.no_grad()
def correlation_input(cams: Tensor) -> Tensor:
    """The maps that the pixel correlation module spreads: scaled to [0, 1], background added, one class a pixel.

    The tags do not mask them, so the module serves at test time too. It is constant: the module's gradient flows
    through its features only.

    Args:
        cams: (N, K, h, w) raw foreground maps.

    Returns:
        (N, 1 + K, h, w) in [0, 1]; the background is 1 - max over the foreground.
    """
    positive = full_precision(cams).relu()
    foreground = (positive - EPS).relu() / (positive.amax(dim=(-2, -1), keepdim=True) + EPS)
    background = 1 - foreground.amax(dim=1, keepdim=True)
    return with_background(suppress_non_maximum(foreground), background)


def pixel_correlation(maps: Tensor, features: Tensor) -> Tensor:
    """Refine maps by the similarity of pixels, the pixel correlation module (PCM, Eq. 4).

    ``out_j = sum_i A_ij maps_i / sum_i A_ij`` with ``A_ij = relu(cosine(f_i, f_j))``. The normaliser is one more row
    of the product, so only one (hw x hw) matrix is made.

    Args:
        maps: (N, C, h, w).
        features: (N, D, h, w).

    Returns:
        (N, C, h, w).
    """
    maps, features = full_precision(maps), full_precision(features)
    flat = features.flatten(2)
    flat = flat / (torch.linalg.vector_norm(flat, dim=1, keepdim=True) + EPS)
    affinity = (flat.transpose(1, 2) @ flat).relu()
    rows = torch.cat([maps.flatten(2), torch.ones_like(maps[:, :1]).flatten(2)], dim=1)
    spread = rows @ affinity
    refined: Tensor = spread[:, :-1] / (spread[:, -1:] + EPS)
    return refined.view_as(maps)


def equivariant_regularization(cams1: Tensor, cams2: Tensor, tags: Tensor) -> Tensor:
    """Equivariant regularisation, ER (Eq. 3 and 8): the maps of two views of a photo agree.

    Both are min-max normalised and masked by the tags; the first view's are resized to the second's size.

    Args:
        cams1: (N, K, h1, w1) raw foreground maps of the source view.
        cams2: (N, K, h2, w2) of the target view.
        tags: (N, K) multi-hot.

    Returns:
        Mean absolute difference over images, classes and pixels. Absent classes are zeros and count in the mean.
    """
    first = _tagged(cams1, tags, _size(cams2))
    second = _tagged(cams2, tags, _size(cams2))
    return _mean((first - second).abs())


def equivariant_cross_regularization(
    cams1: Tensor, refined1: Tensor, cams2: Tensor, refined2: Tensor, tags: Tensor, ratio: float = 0.2
) -> Tensor:
    """Equivariant cross regularisation, ECR (Eq. 9): each view's refined maps follow the other view's raw maps.

    The raw maps are the constant side: min-max normalised, one class a pixel, background 1 - max. Only the largest
    ``ratio`` of an image's differences count (online hard example mining). The sum of both directions.

    Args:
        cams1: (N, K, h1, w1) raw foreground maps of the source view; ``cams2`` (N, K, h2, w2) of the target view.
        refined1: (N, 1 + K, h1, w1) refined maps, background first; ``refined2`` (N, 1 + K, h2, w2).
        cams2: see ``cams1``.
        refined2: see ``refined1``.
        tags: (N, K) multi-hot.
        ratio: share of the (1 + K) h2 w2 differences of an image that count, in (0, 1].
    """
    size = _size(cams2)
    with_one = torch.cat([torch.ones_like(tags[:, :1]), tags], dim=1)
    targets = [_one_class_a_pixel(_tagged(cams.detach(), tags, size)) for cams in (cams1, cams2)]
    refined = [_tagged(maps, with_one, size) for maps in (refined1, refined2)]
    return _hardest((targets[1] - refined[0]).abs(), ratio) + _hardest((targets[0] - refined[1]).abs(), ratio)


def min_pooling(refined: Tensor, tags: Tensor) -> Tensor:
    """The mean of the lowest quarter of an image's per-pixel foreground maxima.

    In SEAM's released code it stands beside ``L_cls``. It keeps the refined maps from lighting up everywhere.

    Args:
        refined: (N, K, h, w) foreground channels of the refined maps, not normalised.
        tags: (N, K) multi-hot.
    """
    highest = mask_by_tags(full_precision(refined), tags).amax(dim=1).flatten(1).relu()
    return -_mean_of_largest(-highest, max(highest.shape[1] // 4, 1))


def _size(maps: Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]


def _tagged(maps: Tensor, tags: Tensor, size: tuple[int, int]) -> Tensor:
    return mask_by_tags(resize(normalize_cams(maps), size), tags)


def _one_class_a_pixel(foreground: Tensor) -> Tensor:
    return with_background(suppress_non_maximum(foreground), 1 - foreground.amax(dim=1, keepdim=True))


def _hardest(differences: Tensor, ratio: float) -> Tensor:
    flat = differences.flatten(1)
    return _mean_of_largest(flat, max(int(flat.shape[1] * ratio), 1))


def _mean_of_largest(rows: Tensor, count: int) -> Tensor:
    """The mean of the ``count`` largest values of each row; of equal ones at the limit the first are taken."""
    fixed = rows.detach()
    limit = fixed.topk(count, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    above, at = fixed > limit, fixed == limit
    room = count - above.sum(dim=1, keepdim=True)
    taken = above | (at & (at.cumsum(dim=1) <= room))
    return torch.where(taken, rows, 0.0).sum() / max(count * rows.shape[0], 1)


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(values.numel(), 1)
