"""Cross-supervision of a classifier and a segmenter, CSRM (VISAPP 2025). Equation numbers are that paper's.

C = K + 1 classes, the background first. Labels are class ids, 255 for pixels without one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .maps import best_class, full_precision, present_classes, readable

NO_LABEL = 255
"""The id of pixels without a label, in masks."""


def tag_probabilities(logits: Tensor, tags: Tensor | None) -> Tensor:
    """The softmax over the background and the tagged classes; over all classes without ``tags``.

    Args:
        logits: (N, C, h, w).
        tags: (N, K) multi-hot.

    Returns:
        (N, C, h, w), 0 for classes that an image is not tagged with.
    """
    logits = full_precision(logits)
    if tags is not None:
        logits = logits.masked_fill(~present_classes(tags)[:, :, None, None], -torch.inf)
    return logits.softmax(dim=1)


def entropy(probabilities: Tensor) -> Tensor:
    """The entropy of each pixel in nats, of (N, C, h, w) to (N, h, w)."""
    return -(probabilities * (probabilities + 1e-10).log()).sum(dim=1)


def quantile(values: Tensor, share: float, counted: Tensor | None = None) -> Tensor:
    """The quantile with linear interpolation, of tensors of any size (``torch.quantile`` stops at 2^24 elements).

    Args:
        values: any shape.
        share: in [0, 1].
        counted: bool of the same shape, the values that count; all by default.

    Returns:
        A scalar; inf where nothing counts.

    >>> quantile(torch.tensor([3.0, 1.0, 2.0]), 0.25)
    tensor(1.5000)
    """
    if not 0 <= share <= 1:
        raise ValueError(f"`share` must be in [0, 1], got {share}")
    flat = values.detach().flatten()
    if readable(flat):
        # Not by `flat[counted]`, which takes three times as long.
        flat = flat if counted is None else flat.masked_select(counted.flatten())
        if flat.numel() == 0:
            return values.new_tensor(torch.inf)
        place = share * (flat.numel() - 1)
        low = flat.kthvalue(int(place) + 1).values
        if place == int(place):
            return low
        # The next one is as large, if more than `place` are not larger, else the smallest of those that are.
        larger = flat > low
        alike = flat.numel() - int(larger.sum()) > int(place) + 1
        above = low if alike else torch.where(larger, flat, torch.inf).min()
        return torch.lerp(low, above, place - int(place))
    # To count would wait for the device: what does not count is sorted to the end.
    if counted is not None:
        flat = flat.masked_fill(~counted.flatten(), torch.inf)
    number = torch.full((), flat.numel(), device=flat.device) if counted is None else counted.sum()
    ordered = F.pad(flat.sort().values, (0, 2), value=torch.inf)
    last = (number - 1).clamp_min(0)
    exact = share * last.double()
    first = exact.long()
    # By `index_select`: indexing by a scalar tensor would read it.
    low, above = ordered.index_select(0, torch.stack([first, torch.minimum(first + 1, last)]))
    return torch.where(low == above, low, torch.lerp(low, above, (exact - first).to(low.dtype)))


def class_masks(labels: Tensor, classes: int) -> Tensor:
    """The pixels of each class, of labels (N, h, w) to (N, C, h, w) bool; none where the label is 255."""
    return labels[:, None] == torch.arange(classes, device=labels.device)[:, None, None]


def segmentation_nll(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    r"""The cross-entropy of each pixel, 0 where it has no label.

    With smoothing :math:`s`: :math:`-(1 - s) \log p_y - \frac{s}{C} \sum_c \log p_c`.

    Args:
        logits: (N, C, h, w).
        labels: (N, h, w) int64 ids, 255 for none; or (N, C, h, w) floating, a distribution over classes, all 0 for
            none.
        label_smoothing: s, in [0, 1).

    Returns:
        (N, h, w).
    """
    logits = full_precision(logits)
    if labels.is_floating_point():
        log_odds, labels = logits.log_softmax(dim=1), labels.to(logits.dtype)
        counted = labels.sum(dim=1)
        smoothed = -log_odds.mean(dim=1) * counted
        return (1 - label_smoothing) * -(labels * log_odds).sum(dim=1) + label_smoothing * smoothed
    if logits.numel() == 0:
        return logits.sum(dim=1)
    return F.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="none", label_smoothing=label_smoothing)


def has_foreground(labels: Tensor) -> Tensor:
    """(N,) bool: the images with a pixel of a foreground class, of labels as in :func:`segmentation_nll`."""
    if labels.is_floating_point():
        return (best_class(labels) > 0).flatten(1).any(dim=1)
    return ((labels > 0) & (labels != NO_LABEL)).flatten(1).any(dim=1)


def confident_labels(probabilities: Tensor, confidence: float) -> Tensor:
    """The best class of each pixel, 255 where its probability does not exceed ``confidence`` (Eq. 8).

    Args:
        probabilities: (N, C, h, w).
        confidence: sigma, in [0, 1].

    Returns:
        (N, h, w), int64.
    """
    highest, labels = probabilities.max(dim=1)
    return labels.masked_fill(~(highest > confidence), NO_LABEL)
