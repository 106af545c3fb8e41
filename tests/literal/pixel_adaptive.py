"""Pixel-adaptive refinement, a pixel and a neighbour at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

EPS = 1e-8


def neighbours(dilations: Sequence[int]) -> list[tuple[int, int]]:
    """Down and right: distance after distance, each from the upper left to the lower right, without the pixel."""
    found = []
    for dilation in dilations:
        for down in (-dilation, 0, dilation):
            for right in (-dilation, 0, dilation):
                if down != 0 or right != 0:
                    found.append((down, right))
    return found


def inside(row: int, column: int, height: int, width: int) -> tuple[int, int]:
    """The pixel itself, or beyond the border the nearest one of the border."""
    return min(max(row, 0), height - 1), min(max(column, 0), width - 1)


def softmax(values: list[float]) -> list[float]:
    shifted = [math.exp(value - max(values)) for value in values]
    return [value / sum(shifted) for value in shifted]


def deviation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def kernel(photos: Tensor, dilations: Sequence[int], w1: float = 0.3, w2: float = 0.3, w3: float = 0.01) -> Tensor:
    """What a pixel takes from each of its neighbours: by colour, and w3 times by position, over 1 + w3."""
    images, channels, height, width = photos.shape
    offsets = neighbours(dilations)
    weights = torch.zeros(images, len(offsets), height, width, dtype=torch.float64)
    distances = [math.sqrt(down**2 + right**2) for down, right in offsets]
    by_position = softmax([-((d / (w2 * deviation(distances) + EPS)) ** 2) for d in distances])
    for n in range(images):
        colors = photos[n].double().tolist()
        for row in range(height):
            for column in range(width):
                energies = [0.0] * len(offsets)
                for channel in range(channels):
                    here = colors[channel][row][column]
                    differences = []
                    for down, right in offsets:
                        y, x = inside(row + down, column + right, height, width)
                        differences.append(colors[channel][y][x] - here)
                    variance = deviation(differences) ** 2
                    for j, difference in enumerate(differences):
                        energies[j] += difference**2 / (w1**2 * variance + EPS) / channels
                by_color = softmax([-energy for energy in energies])
                for j in range(len(offsets)):
                    weights[n, j, row, column] = (by_color[j] + w3 * by_position[j]) / (1 + w3)
    return weights


def propagate(maps: Tensor, weights: Tensor, dilations: Sequence[int], steps: int) -> Tensor:
    """The weighted sum of the neighbours' values, ``steps`` times."""
    images, classes, height, width = maps.shape
    for _ in range(steps):
        values = []
        for n in range(images):
            for k in range(classes):
                for row in range(height):
                    for column in range(width):
                        total = 0 * maps[n, k, row, column]
                        for j, (down, right) in enumerate(neighbours(dilations)):
                            y, x = inside(row + down, column + right, height, width)
                            total = total + weights[n, j, row, column] * maps[n, k, y, x]
                        values.append(total)
        maps = torch.stack(values).reshape(images, classes, height, width)
    return maps
