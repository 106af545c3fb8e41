"""EPS's saliency loss, a pixel at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def saliency_loss(
    cams: Tensor, saliency: Tensor, tags: Tensor, overlap_threshold: float, mixing: float, background: int
) -> Tensor:
    """Of maps (N, 1 + K, h, w) and saliency (N, h, w)."""
    count, channels, height, width = cams.shape
    own = background % channels
    classes = [c for c in range(channels) if c != own]
    total = cams.new_zeros(())
    for n in range(count):
        p = torch.stack(
            [torch.stack([cams[n, :, i, j].softmax(0) for j in range(width)], -1) for i in range(height)], -2
        )
        foreground, other = [], [own]
        for k, channel in enumerate(classes):
            if tags[n, k] == 0:
                continue
            area = both = 0.0
            for i in range(height):
                for j in range(width):
                    marked = float(p[channel, i, j] > 0.5)
                    area += marked + 1e-4
                    both += marked * float(saliency[n, i, j] > 0.5)
            (foreground if both / area > overlap_threshold else other).append(channel)
        for i in range(height):
            for j in range(width):
                f = sum((p[c, i, j] for c in foreground), start=p.new_zeros(()))
                b = sum((p[c, i, j] for c in other), start=p.new_zeros(()))
                total = total + (mixing * f + (1 - mixing) * (1 - b) - saliency[n, i, j]) ** 2
    return total / (count * height * width)
