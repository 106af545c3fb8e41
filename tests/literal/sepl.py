"""SEPL's merging, on sets of pixels."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

Pixels = set[tuple[int, int]]


def pixels_of(mask: Tensor) -> Pixels:
    return {(row, column) for row in range(mask.shape[0]) for column in range(mask.shape[1]) if mask[row, column]}


def merge(labels: Tensor, masks: Tensor, policy: str) -> Tensor:
    """Class after class, mask after mask. A mask that an earlier class has claimed is gone."""
    segments = [pixels_of(mask) for mask in masks]
    claimed: list[int] = []
    out = torch.zeros_like(labels)
    for label in range(1, 255):
        pseudo = pixels_of(labels == label)
        if not pseudo:
            continue
        cover: Pixels = set()
        result: Pixels = set()
        claims = []
        for number, segment in enumerate(segments):
            if number in claimed:
                continue
            cover |= segment
            shared = len(pseudo & segment)
            mostly_inside = bool(segment) and Fraction(shared, len(segment)) > Fraction(1, 2)
            holds_most = Fraction(shared, len(pseudo)) >= Fraction(85, 100)
            if mostly_inside or (policy == "max_iou_imp2" and holds_most):
                result |= segment
                claims.append(number)
        if policy in ("max_iou_imp", "max_iou_imp2"):
            result |= pseudo - cover
        for row, column in result:
            out[row, column] = label
        claimed += claims
    return out
