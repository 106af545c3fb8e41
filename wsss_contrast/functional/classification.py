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
