"""Classification from pooled activation maps: the loss that image tags alone can give."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .maps import full_precision


def global_average_pool(maps: Tensor, valid: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
    """Pool maps to logits, the mean over pixels.

    Args:
        maps: (N, C, h, w).
        valid: (N, h, w) bool, the pixels to take; all by default.
        size: the height and width to which the maps are resized before, as SEAM pools them; their own by default. A
            resize is linear, so it is one weighted sum of the small maps. Not with ``valid``.

    Returns:
        (N, C).
    """
    maps = full_precision(maps)
    if size is not None:
        weights = (_shares(own, out, maps) for own, out in zip(maps.shape[-2:], size, strict=True))
        return torch.einsum("nchw,h,w->nc", maps, *weights)
    if valid is None:
        return maps.mean(dim=(-2, -1))
    return (maps * valid[:, None]).sum(dim=(-2, -1)) / valid.sum(dim=(-2, -1)).clamp_min(1)[:, None]


def _shares(own: int, out: int, like: Tensor) -> Tensor:
    """What each of ``own`` places has of the mean of their resize to ``out``."""
    places = torch.eye(own, device=like.device, dtype=like.dtype)[None]
    return F.interpolate(places, size=out, mode="linear", align_corners=True)[0].mean(dim=1)


def multilabel_soft_margin(logits: Tensor, tags: Tensor, label_smoothing: float = 0.0) -> Tensor:
    r"""Multi-label soft margin loss, the mean over classes and images.

    SEAM, Eq. 7; ``L_cls`` of PPC; CSRM, Eq. 5, on logits.

    .. math::

        L = -\frac{1}{NK} \sum_{n,k} y_{nk} \log \sigma(z_{nk}) + (1 - y_{nk}) \log \sigma(-z_{nk})

    Args:
        logits: (N, K) foreground logits, before the sigmoid.
        tags: (N, K) multi-hot image tags.
        label_smoothing: s, which moves the tags to (1 - s) y + s / 2.

    Returns:
        A scalar. An empty batch gives a zero that keeps the graph.
    """
    logits = full_precision(logits)
    if logits.numel() == 0:
        return (logits * 0).sum()
    target = (1 - label_smoothing) * tags.to(logits.dtype) + label_smoothing / 2
    return F.multilabel_soft_margin_loss(logits, target)
