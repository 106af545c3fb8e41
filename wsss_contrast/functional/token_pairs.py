"""Pairs of a photo's patch tokens: ToCo's contrast (CVPR 2023) and AFA's affinity from attention (CVPR 2022)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .cross_supervision import NO_LABEL
from .maps import full_precision, unit


class TokenPairs(NamedTuple):
    """Pairs (i, j) of the L = h w pixels of a map, i and j different, both with a label.

    Attributes:
        same: (N, L, L) bool, of one label.
        different: (N, L, L) bool, of two.
    """

    same: Tensor
    different: Tensor


def token_pairs(labels: Tensor, radius: int | None = None) -> TokenPairs:
    """All pairs of pixels that both have a label.

    Args:
        labels: (N, h, w) int64 ids, 255 for none.
        radius: pairs at most so many rows and so many columns apart; all by default. AFA has 8.
    """
    flat = labels.flatten(1)
    known = flat != NO_LABEL
    counted = known[:, :, None] & known[:, None, :]
    height, width = labels.shape[1:]
    counted = counted & ~torch.eye(height * width, dtype=torch.bool, device=labels.device)
    if radius is not None:
        rows = torch.arange(height, device=labels.device).repeat_interleave(width)
        columns = torch.arange(width, device=labels.device).repeat(height)
        near = ((of[:, None] - of[None, :]).abs() <= radius for of in (rows, columns))
        counted = counted & torch.stack([*near]).all(dim=0)
    same = flat[:, :, None] == flat[:, None, :]
    return TokenPairs(counted & same, counted & ~same)


def token_similarity(features: Tensor) -> Tensor:
    """The absolute cosine of each two pixels' features.

    Args:
        features: (N, D, h, w).

    Returns:
        (N, L, L), in [0, 1], L = h w.
    """
    units = unit(full_precision(features).flatten(2), dim=1)
    return torch.bmm(units.transpose(1, 2), units).abs()


def attention_scores(queries: Tensor, keys: Tensor) -> Tensor:
    r"""What attention is the softmax of: :math:`S = Q K^\top / \sqrt{d}`.

    Args:
        queries: (N, heads, T, d) of T tokens.
        keys: (N, heads, T, d).

    Returns:
        (N, heads, T, T).
    """
    with torch.autocast(queries.device.type, enabled=False):  # scores may exceed what half precision holds
        scaled = full_precision(queries) / queries.shape[-1] ** 0.5
        scores: Tensor = scaled @ full_precision(keys).transpose(-2, -1)
        return scores
