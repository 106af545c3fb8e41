"""Quantiles of the entropy over the joined batch, which two terms of CSRM choose their pixels by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wsss_contrast import distributed, functional


def joined_quantiles(entropy: Tensor, counted: Tensor, shares: Sequence[float]) -> list[Tensor]:
    """Quantiles of the pixels of all ranks that count; inf where none does.

    Args:
        entropy: (N, h, w) of this rank, which may have no image.
        counted: (N, h, w) bool.
        shares: in [0, 1].
    """
    if distributed.world_size() > 1:
        both = torch.stack([entropy, counted.to(entropy.dtype)], dim=-1).flatten(0, 2)
        both, _ = distributed.all_gather_rows(both)
        entropy, counted = both[:, 0], both[:, 1] > 0
    return [functional.quantile(entropy, share, counted) for share in shares]
