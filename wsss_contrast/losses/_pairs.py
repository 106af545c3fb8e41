"""What the losses over pairs of pixels share."""

from __future__ import annotations

import torch
from torch import Tensor

from wsss_contrast import distributed, functional
from wsss_contrast._checks import check_labels, check_whole

CLASSES = functional.NO_LABEL
"""Ids of classes go from 0 to 254: pairs do not need to know how many classes there are."""


def check_radius(radius: int) -> None:
    """It has offsets."""
    check_whole(radius=radius)
    functional.affinity_offsets(radius)


def check_pair_labels(labels: Tensor, name: str, maps: Tensor) -> None:
    """``labels`` are ids of the size of ``maps``."""
    check_labels(labels, len(maps), CLASSES)
    if labels.shape[1:] != maps.shape[2:]:
        found, size = (" x ".join(map(str, shape)) for shape in (labels.shape[1:], maps.shape[2:]))
        raise ValueError(f"`labels` must have the size of `{name}`, {size}, got {found}")


def affinity_terms(affinity: Tensor, pairs: functional.PairLabels) -> dict[str, Tensor]:
    """The mean cost of each kind of pair, weighted 1/4, 1/4 and 1/2."""
    together, apart = functional.affinity_nll(affinity)
    return {
        "background": mean(together, pairs.background) / 4,
        "foreground": mean(together, pairs.foreground) / 4,
        "negative": mean(apart, pairs.negative) / 2,
    }


def mean(values: Tensor, counted: Tensor) -> Tensor:
    """The mean over the pairs of the joined batch that count."""
    return distributed.joined_mean(torch.where(counted, values, 0.0).sum(), counted.sum())
