"""The erasing of a class by its map, a pixel at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def erasing_masks(maps: Tensor, erased: Tensor, size: tuple[int, int], normalize: str) -> Tensor:
    """(N, 1, H, W) of raw maps (N, K, h, w) and one-hot classes (N, K)."""
    count, classes, height, width = maps.shape
    large = maps.new_zeros(count, 1, *size)
    for n in range(count):
        for k in range(classes):
            if not erased[n, k]:
                continue
            for i in range(size[0]):
                for j in range(size[1]):
                    # Pixel centres are at halves; beyond the outermost ones the value stays.
                    y = min(max((i + 0.5) * height / size[0] - 0.5, 0), height - 1)
                    x = min(max((j + 0.5) * width / size[1] - 0.5, 0), width - 1)
                    top, left = int(y), int(x)
                    below, right = min(top + 1, height - 1), min(left + 1, width - 1)
                    a, b = y - top, x - left
                    large[n, 0, i, j] = (
                        (1 - a) * (1 - b) * max(float(maps[n, k, top, left]), 0)
                        + (1 - a) * b * max(float(maps[n, k, top, right]), 0)
                        + a * (1 - b) * max(float(maps[n, k, below, left]), 0)
                        + a * b * max(float(maps[n, k, below, right]), 0)
                    )
    highest = torch.stack([large.max() if normalize == "batch" else large[n].max() for n in range(count)])
    return large / (highest.view(-1, 1, 1, 1) + 1e-5)
