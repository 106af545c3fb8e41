"""SEAM's terms and its pixel correlation module, a pixel at a time. Equation numbers are the paper's."""

from __future__ import annotations

import torch
from torch import Tensor

from .maps import EPS, normalize, resize


def suppress_non_maximum(foreground: Tensor) -> Tensor:
    """At each pixel only the classes equal to the best one keep their value."""
    images, classes, height, width = foreground.shape
    kept = torch.zeros_like(foreground)
    for n in range(images):
        for row in range(height):
            for column in range(width):
                best = max(value.item() for value in foreground[n, :, row, column])
                for k in range(classes):
                    if foreground[n, k, row, column].item() == best:
                        kept[n, k, row, column] = foreground[n, k, row, column]
    return kept


def add_background(foreground: Tensor) -> Tensor:
    """One class a pixel, and before them the background: 1 - max over the foreground."""
    images, _, height, width = foreground.shape
    background = torch.zeros_like(foreground[:, :1])
    for n in range(images):
        for row in range(height):
            for column in range(width):
                background[n, 0, row, column] = 1 - max(value.item() for value in foreground[n, :, row, column])
    return torch.cat([background, suppress_non_maximum(foreground)], dim=1)


def correlation_input(cams: Tensor) -> Tensor:
    """What the module spreads: maps over their maximum, with a background, one class a pixel."""
    images, classes, height, width = cams.shape
    foreground = torch.zeros_like(cams)
    for n in range(images):
        for k in range(classes):
            high = max(max(value.item(), 0.0) for value in cams[n, k].flatten())
            for row in range(height):
                for column in range(width):
                    positive = max(cams[n, k, row, column].item(), 0.0)
                    foreground[n, k, row, column] = max(positive - EPS, 0.0) / (high + EPS)
    return add_background(foreground)


def pixel_correlation(maps: Tensor, features: Tensor) -> Tensor:
    """Eq. 4: at each pixel the mean over all, weighted by the positive part of the features' cosine."""
    images, _, height, width = maps.shape
    refined = []
    for n in range(images):
        values, vectors = maps[n].flatten(1).T, features[n].flatten(1).T
        unit = [vector / (vector.square().sum().sqrt() + EPS) for vector in vectors]
        for j in range(height * width):
            affinity = [(unit[i] @ unit[j]).relu() for i in range(height * width)]
            total = sum(affinity) + EPS
            refined.append(sum(a / total * values[i] for i, a in enumerate(affinity)))
    return torch.stack(refined).reshape(images, height, width, -1).permute(0, 3, 1, 2)


def equivariant_regularization(cams1: Tensor, cams2: Tensor, tags: Tensor) -> Tensor:
    """Eqs. 3 and 8: mean absolute difference of both views' normalised maps, absent classes 0."""
    images, classes, height, width = cams2.shape
    first, second = resize(normalize(cams1), height, width), normalize(cams2)
    total = 0 * (cams1.sum() + cams2.sum())
    for n in range(images):
        for k in range(classes):
            if tags[n, k]:
                for row in range(height):
                    for column in range(width):
                        total = total + (first[n, k, row, column] - second[n, k, row, column]).abs()
    return total / max(images * classes * height * width, 1)


def equivariant_cross_regularization(
    cams1: Tensor, refined1: Tensor, cams2: Tensor, refined2: Tensor, tags: Tensor, ratio: float = 0.2
) -> Tensor:
    """Eq. 9: the largest differences of each view's refined and the other's raw maps, both ways added."""
    height, width = cams2.shape[2:]
    return _cross(cams2, refined1, tags, ratio, height, width) + _cross(cams1, refined2, tags, ratio, height, width)


def _cross(cams: Tensor, refined: Tensor, tags: Tensor, ratio: float, height: int, width: int) -> Tensor:
    """The mean over images of the ``ratio`` largest differences, the lowest position first where tied."""
    tagged = tags[:, :, None, None].to(cams.dtype)
    target = add_background(resize(normalize(cams.detach()), height, width) * tagged)
    refined = resize(normalize(refined), height, width)
    total, images = 0 * refined.sum(), refined.shape[0]
    for n in range(images):
        differences = []
        for c in range(refined.shape[1]):
            present = c == 0 or bool(tags[n, c - 1])
            for row in range(height):
                for column in range(width):
                    value = refined[n, c, row, column] if present else 0 * refined[n, c, row, column]
                    differences.append((target[n, c, row, column] - value).abs())
        count = max(int(len(differences) * ratio), 1)
        largest = sorted(range(len(differences)), key=lambda i: (-differences[i].item(), i))[:count]
        total = total + sum(differences[i] for i in largest) / count
    return total / max(images, 1)


def min_pooling(refined: Tensor, tags: Tensor) -> Tensor:
    """The mean of the lowest quarter of an image's per-pixel maxima; untagged classes count as 0."""
    images, classes, height, width = refined.shape
    total = 0 * refined.sum()
    for n in range(images):
        highest = []
        for row in range(height):
            for column in range(width):
                pixel = refined[n, :, row, column]
                values = [pixel[k] if tags[n, k] else 0 * pixel[k] for k in range(classes)]
                highest.append(torch.stack(values).amax())
        quarter = max(height * width // 4, 1)
        lowest = sorted(range(len(highest)), key=lambda i: (highest[i].item(), i))[:quarter]
        total = total + sum(highest[i].relu() for i in lowest) / quarter
    return total / max(images, 1)


def multilabel_soft_margin(logits: Tensor, tags: Tensor) -> Tensor:
    """Eq. 7: binary cross-entropy of each tag, the mean over classes, then over images."""
    images, classes = logits.shape
    total = 0 * logits.sum()
    for n in range(images):
        for k in range(classes):
            probability = 1 / (1 + (-logits[n, k]).exp())
            total = total - (probability if tags[n, k] else 1 - probability).log() / classes
    return total / max(images, 1)


def global_average_pool(maps: Tensor) -> Tensor:
    """The mean over pixels."""
    images, classes, height, width = maps.shape
    pooled = torch.zeros(images, classes, dtype=maps.dtype)
    for n in range(images):
        for k in range(classes):
            pooled[n, k] = sum(maps[n, k, row, c] for row in range(height) for c in range(width)) / (height * width)
    return pooled
