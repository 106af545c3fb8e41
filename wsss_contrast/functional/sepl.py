"""Merging of pseudo-masks with the masks of a segment-anything model (SEPL, Chen et al., arXiv 2305.05803)."""

from __future__ import annotations

import torch
from torch import Tensor

from .cross_supervision import NO_LABEL

POLICIES = ("max_iou", "max_iou_imp", "max_iou_imp2")
"""The policies of :func:`merge_segments`, by the names of the released code."""


def merge_segments(labels: Tensor, segments: Tensor, policy: str = "max_iou_imp2") -> Tensor:
    r"""Replace the region of each class by the segments that go with it (SEPL).

    The classes :math:`c` take their turn in ascending order. With :math:`P` the pixels of the label :math:`c`, and the
    segments :math:`S` that no earlier class has taken, :math:`c` takes each :math:`S` with

    .. math::

        2 |P \cap S| > |S| \quad\text{or}\quad |P \cap S| \ge 0.85\, |P|,

    and gets the pixels of those, and of :math:`P` where none of the :math:`S` is, taken or not. A later class
    overwrites an earlier one. All else is background: also what was labelled 255, and the pixels of :math:`P` that
    only segments lie on which :math:`c` did not take. The order of the segments does not matter.

    Args:
        labels: (H, W), integers: 0 is background, 255 no label, all others are classes.
        segments: (N, H, W), bool. They may overlap and need not cover the image; N may be 0.
        policy: ``"max_iou_imp2"`` as above; ``"max_iou_imp"`` without the second condition; ``"max_iou"`` also without
            the pixels of P where no segment is: without segments, all is background.

    Returns:
        (H, W), labels of the same type; no 255.

    Raises:
        ValueError: tensors of another shape or type, or an unknown policy.

    >>> labels = torch.tensor([[1, 1, 0, 2, 0, 255]])
    >>> segments = torch.tensor([[[1, 1, 1, 0, 0, 0]], [[0, 0, 0, 1, 1, 1]]], dtype=torch.bool)
    >>> [merge_segments(labels, segments, policy).tolist()[0] for policy in ("max_iou_imp", "max_iou_imp2")]
    [[1, 1, 1, 0, 0, 0], [1, 1, 1, 2, 2, 2]]
    """
    if policy not in POLICIES:
        raise ValueError(f"unknown policy {policy!r}; there are {', '.join(POLICIES)}")
    if labels.dim() != 2 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"`labels` must be integers (H, W), got {labels.dtype} {tuple(labels.shape)}")
    if segments.dtype != torch.bool or segments.dim() != 3 or segments.shape[1:] != labels.shape:
        raise ValueError(
            f"`segments` must be bool (N, {', '.join(map(str, labels.shape))}) like the labels, "
            f"got {segments.dtype} {tuple(segments.shape)}"
        )
    merged = torch.zeros_like(labels)
    areas = segments.sum(dim=(1, 2))
    free = torch.ones_like(areas, dtype=torch.bool)
    for label in labels.unique().tolist():
        if label in (0, NO_LABEL):
            continue
        region = labels == label
        shared = (segments & region).sum(dim=(1, 2))
        taken = 2 * shared > areas
        if policy == "max_iou_imp2":
            taken |= 20 * shared >= 17 * region.sum()  # 0.85 in whole numbers: ties are exact
        taken &= free
        of_class = segments[taken].any(dim=0)
        if policy != "max_iou":
            of_class |= region & ~segments[free].any(dim=0)
        merged[of_class] = label
        free &= ~taken
    return merged
