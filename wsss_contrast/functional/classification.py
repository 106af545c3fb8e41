"""Classification from pooled activation maps: the loss that image tags alone can give."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .maps import full_precision


def global_average_pool(maps: Tensor, valid: Tensor | None = None) -> Tensor:
    """(N, C, h, w) maps to (N, C) logits: the mean over pixels, over the ``valid`` ones (N, h, w) if they are given."""
    maps = full_precision(maps)
    if valid is None:
        return maps.mean(dim=(-2, -1))
    return (maps * valid[:, None]).sum(dim=(-2, -1)) / valid.sum(dim=(-2, -1)).clamp_min(1)[:, None]


def multilabel_soft_margin(logits: Tensor, tags: Tensor) -> Tensor:
    r"""Multi-label soft margin loss, the mean over classes and images (SEAM, Eq. 7; PPC, ``L_cls``).

    .. math::

        L = -\frac{1}{NK} \sum_{n,k} y_{nk} \log \sigma(z_{nk}) + (1 - y_{nk}) \log \sigma(-z_{nk})

    Args:
        logits: (N, K) foreground logits, before the sigmoid.
        tags: (N, K) multi-hot image tags.

    Returns:
        A scalar. An empty batch gives a zero that keeps the graph.
    """
    logits = full_precision(logits)
    if logits.numel() == 0:
        return (logits * 0).sum()
    return F.multilabel_soft_margin_loss(logits, tags.to(logits.dtype))
