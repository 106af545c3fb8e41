"""Puzzle-CAM's tiles and losses, a pixel at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from .seam import global_average_pool, multilabel_soft_margin

CORNERS = [(0, 0), (0, 1), (1, 0), (1, 1)]  # of the tiles in their order: below or not, right or not


def tile(images: Tensor) -> Tensor:
    """Four tiles an image, all images' top left ones first."""
    count, channels, height, width = images.shape
    tiles = torch.zeros(4 * count, channels, height // 2, width // 2, dtype=images.dtype)
    for t, (below, right) in enumerate(CORNERS):
        for n in range(count):
            for row in range(height // 2):
                for column in range(width // 2):
                    pixel = images[n, :, below * (height // 2) + row, right * (width // 2) + column]
                    tiles[t * count + n, :, row, column] = pixel
    return tiles


def merge_tiles(features: Tensor) -> Tensor:
    """Each tile's map back at its corner."""
    count, channels, height, width = features.shape
    merged = torch.zeros(count // 4, channels, 2 * height, 2 * width, dtype=features.dtype)
    for t, (below, right) in enumerate(CORNERS):
        for n in range(count // 4):
            for row in range(height):
                for column in range(width):
                    pixel = features[t * (count // 4) + n, :, row, column]
                    merged[n, :, below * height + row, right * width + column] = pixel
    return merged


def puzzle_reconstruction(maps: Tensor, merged: Tensor, tags: Tensor, reduction: str = "masking") -> Tensor:
    """The mean difference over all entries, absent classes 0; or over each image's present classes."""
    count, classes, height, width = maps.shape
    total = 0 * (maps.sum() + merged.sum())
    for n in range(count):
        present = [k for k in range(classes) if tags[n, k]]
        counted = classes if reduction == "masking" else max(len(present), 1)
        for k in present:
            for row in range(height):
                for column in range(width):
                    difference = (maps[n, k, row, column] - merged[n, k, row, column]).abs()
                    total = total + difference / (counted * height * width)
    return total / max(count, 1)


def puzzle_cam(maps: Tensor, tiled_maps: Tensor, tags: Tensor, alpha: float) -> Tensor:
    """The whole loss."""
    merged = merge_tiles(tiled_maps)
    classification = sum(multilabel_soft_margin(global_average_pool(m), tags) for m in (maps, merged))
    return classification + alpha * puzzle_reconstruction(maps, merged, tags)
