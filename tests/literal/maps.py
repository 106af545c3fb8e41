"""Operations on activation maps that SEAM and PPC share."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-5


def resize(maps: Tensor, height: int, width: int) -> Tensor:
    """Bilinear interpolation; the centres of the corner pixels of both grids coincide."""
    images, channels, rows, columns = maps.shape
    pixels = []
    for row in range(height):
        for column in range(width):
            y = row * (rows - 1) / (height - 1) if height > 1 else 0.0
            x = column * (columns - 1) / (width - 1) if width > 1 else 0.0
            top, left = int(y), int(x)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            above = (1 - (x - left)) * maps[:, :, top, left] + (x - left) * maps[:, :, top, right]
            below = (1 - (x - left)) * maps[:, :, bottom, left] + (x - left) * maps[:, :, bottom, right]
            pixels.append((1 - (y - top)) * above + (y - top) * below)
    return torch.stack(pixels, dim=-1).reshape(images, channels, height, width)


def normalize(maps: Tensor, signed: bool = False, valid: Tensor | None = None) -> Tensor:
    """Min-max normalisation of each map's positive part over its (valid) pixels; ``signed`` as in PPC's code."""
    images, classes = maps.shape[:2]
    values = []
    for image in range(images):
        for k in range(classes):
            positive = maps[image, k].relu()
            counted = positive if valid is None else positive[valid[image]]
            high, low = (counted.max(), counted.min()) if counted.numel() else (0 * positive.sum(), 0 * positive.sum())
            for pixel in positive.flatten():
                if signed:
                    kept = pixel if pixel >= low + EPS else 0 * pixel
                    values.append((kept - low - EPS) / (high - low + EPS))
                else:
                    values.append((pixel - low - EPS).relu() / (high - low + EPS))
    return torch.stack(values).reshape(maps.shape) if values else maps
