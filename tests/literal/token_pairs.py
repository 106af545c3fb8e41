"""Losses over pairs of tokens, a pair at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def _pairs(labels: Tensor, radius: int | None) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Those of one label and those of two: image, and row and column of both."""
    count, height, width = labels.shape
    same, different = [], []
    places = [(i, j) for i in range(height) for j in range(width)]
    for n in range(count):
        for i, j in places:
            for k, m in places:
                if (i, j) == (k, m) or 255 in (int(labels[n, i, j]), int(labels[n, k, m])):
                    continue
                if radius is not None and (abs(i - k) > radius or abs(j - m) > radius):
                    continue
                (same if labels[n, i, j] == labels[n, k, m] else different).append((n, i, j, k, m))
    return same, different


def _mean(values: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(values).mean() if values else like.sum() * 0


def patch_token_contrast(features: Tensor, labels: Tensor) -> Tensor:
    """ToCo's loss."""

    def cosine(n: int, i: int, j: int, k: int, m: int) -> Tensor:
        a, b = features[n, :, i, j], features[n, :, k, m]
        return (a @ b / (a.norm() * b.norm())).abs()

    same, different = _pairs(labels, None)
    return _mean([1 - cosine(*pair) for pair in same], features) + _mean([cosine(*p) for p in different], features)


def attention_affinity(affinity: Tensor, labels: Tensor, radius: int) -> Tensor:
    """AFA's loss of logits (N, L, L)."""
    width = labels.shape[2]

    def likely(n: int, i: int, j: int, k: int, m: int) -> Tensor:
        return 1 / (1 + torch.exp(-affinity[n, i * width + j, k * width + m]))

    same, different = _pairs(labels, radius)
    return _mean([1 - likely(*pair) for pair in same], affinity) + _mean([likely(*p) for p in different], affinity)
