"""EPS (Lee et al., CVPR 2021): maps of the classes and of the background add up to a saliency map."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .maps import full_precision, split_background

_PER_PIXEL = 1e-4
"""In the released code each pixel adds this to a map's area: no map has none."""


class SaliencyEstimate(NamedTuple):
    """What activation maps say of the saliency.

    Attributes:
        saliency: (N, h, w), the estimate :math:`\\hat M_s`, in [0, 1].
        foreground: (N, h, w), the maps that count as foreground, added up.
        background: (N, h, w), those that count as background, added up.
        overlap: (N, K), the share of each map's pixels that are salient. Without gradient.
    """

    saliency: Tensor
    foreground: Tensor
    background: Tensor
    overlap: Tensor


def estimate_saliency(
    cams: Tensor,
    tags: Tensor,
    saliency: Tensor,
    overlap_threshold: float = 0.4,
    mixing: float = 0.5,
    background: Literal[0, -1] = -1,
) -> SaliencyEstimate:
    r"""Estimate a saliency map from activation maps with a background (EPS).

    With :math:`p` the softmax of the maps, :math:`y` the tags and :math:`S` the saliency map,

    .. math::

        \hat M_s = \lambda \sum_{k \in V} p_k + (1 - \lambda) \Big(1 - p_0 - \sum_{k: y_k = 1, k \notin V} p_k\Big),
        \quad V = \Big\{k : y_k = 1,\ o_k > \tau\Big\},\ o_k = \frac{|p_k > 0.5 \wedge S > 0.5|}{|p_k > 0.5|}

    A tagged class whose map lies off the salient objects counts as background, as salient objects need not be of the
    classes. Maps of untagged classes are in neither sum.

    Args:
        cams: (N, 1 + K, h, w) raw maps, before the softmax.
        tags: (N, K) multi-hot.
        saliency: (N, h, w), in [0, 1].
        overlap_threshold: :math:`\tau`. The released code adds 1e-4 a pixel to a map's area.
        mixing: :math:`\lambda`, the weight of the foreground.
        background: which channel is the background's, the first (0) or the last (-1).
    """
    probabilities = full_precision(cams).softmax(dim=1)
    classes = split_background(probabilities, background)
    own_background = probabilities[:, background]
    with torch.no_grad():
        marked = (classes > 0.5).to(classes.dtype)
        salient = (saliency > 0.5).to(classes.dtype)[:, None]
        overlap = (marked * salient).sum(dim=(2, 3)) / (marked + _PER_PIXEL).sum(dim=(2, 3))
        present = tags > 0
        valid = present & (overlap > overlap_threshold)
    foreground = (classes * valid[:, :, None, None]).sum(dim=1)
    other = own_background + (classes * (present & ~valid)[:, :, None, None]).sum(dim=1)
    return SaliencyEstimate(mixing * foreground + (1 - mixing) * (1 - other), foreground, other, overlap)


def saliency_loss(
    cams: Tensor,
    tags: Tensor,
    saliency: Tensor,
    overlap_threshold: float = 0.4,
    mixing: float = 0.5,
    background: Literal[0, -1] = -1,
) -> Tensor:
    r"""Squared distance of a saliency map from what the activation maps say of it: :math:`L_{sal}` of EPS.

    Arguments are those of :func:`estimate_saliency`.

    Returns:
        A scalar in [0, 1], the mean over images and pixels. An empty batch gives a zero that keeps the graph.
    """
    estimate = estimate_saliency(cams, tags, saliency, overlap_threshold, mixing, background)
    errors = (estimate.saliency - full_precision(saliency)).square()
    return errors.sum() / max(errors.numel(), 1)
