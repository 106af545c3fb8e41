"""PSA and IRN, a pair of pixels at a time, and the walk with a matrix of pixels times pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

EPS = 1e-5
VOID = 255
Pixel = tuple[int, int]


def neighbours(radius: int) -> list[Pixel]:
    """From a pixel, those nearer than the radius that come later: in its row to the right, and in all rows below."""
    found = [(0, right) for right in range(1, radius)]
    for down in range(1, radius):
        for right in range(-radius, radius + 1):
            if math.hypot(down, right) < radius:
                found.append((down, right))
    return found


def pairs(height: int, width: int, radius: int) -> list[tuple[Pixel, Pixel]]:
    """The first pixels are those around which there is space for the radius below, left and right."""
    found = []
    for down, right in neighbours(radius):
        for row in range(height - (radius - 1)):
            for column in range(radius - 1, width - (radius - 1)):
                found.append(((row, column), (row + down, column + right)))
    return found


def all_pairs(height: int, width: int, radius: int) -> list[tuple[Pixel, Pixel]]:
    """Every two pixels of the map that are nearer than the radius."""
    pixels = [(row, column) for row in range(height) for column in range(width)]
    return [(p, q) for p in pixels for q in pixels if p < q and math.dist(p, q) < radius]


def commonest_labels(labels: Tensor, stride: int) -> list[list[int]]:
    """Of labels (H, W): of each block the label that occurs most often, the lowest of several."""
    height, width = labels.shape
    found = []
    for top in range(0, height, stride):
        found.append([])
        for left in range(0, width, stride):
            rows, columns = range(top, min(top + stride, height)), range(left, min(left + stride, width))
            block = [int(labels[row, column]) for row in rows for column in columns]
            found[-1].append(min(set(block), key=lambda label: (-block.count(label), label)))
    return found


def kind(first: int, second: int) -> str | None:
    if VOID in (first, second):
        return None
    if first != second:
        return "negative"
    return "background" if first == 0 else "foreground"


def feature_affinity(features: Tensor, p: Pixel, q: Pixel) -> Tensor:
    """Of features (D, h, w)."""
    total = torch.zeros((), dtype=features.dtype)
    for channel in features:
        total = total + abs(channel[p] - channel[q])
    return torch.exp(-total / len(features))


def way(p: Pixel, q: Pixel) -> list[Pixel]:
    """The pixels of the box between p and q whose distance from the line through them is below 1."""
    rows = range(min(p[0], q[0]), max(p[0], q[0]) + 1)
    columns = range(min(p[1], q[1]), max(p[1], q[1]) + 1)
    found = []
    along = (q[0] - p[0], q[1] - p[1])
    for row in rows:
        for column in columns:
            step = (row - p[0], column - p[1])
            # Where on the line the foot of the perpendicular is, 0 at p and 1 at q.
            foot = Fraction(step[0] * along[0] + step[1] * along[1], along[0] ** 2 + along[1] ** 2)
            if (step[0] - foot * along[0]) ** 2 + (step[1] - foot * along[1]) ** 2 < 1:
                found.append((row, column))
    return found


def edge_affinity(edges: Tensor, p: Pixel, q: Pixel) -> Tensor:
    """Of logits (h, w)."""
    return 1 - max(torch.sigmoid(edges[pixel]) for pixel in way(p, q))


def mean(values: Sequence[Tensor]) -> Tensor | float:
    return sum(values) / len(values) if values else 0.0


def pair_terms(affinities: list[dict[tuple[Pixel, Pixel], Tensor]], labels: Tensor) -> dict[str, Tensor | float]:
    """Of the affinities of each image's pairs and labels (N, h, w)."""
    costs: dict[str, list[Tensor]] = {"background": [], "foreground": [], "negative": []}
    for affinity, image in zip(affinities, labels.tolist(), strict=True):
        for (p, q), value in affinity.items():
            of = kind(image[p[0]][p[1]], image[q[0]][q[1]])
            if of is not None:
                costs[of].append(-torch.log(1 + EPS - value if of == "negative" else value + EPS))
    return {
        "background": mean(costs["background"]) / 4,
        "foreground": mean(costs["foreground"]) / 4,
        "negative": mean(costs["negative"]) / 2,
    }


def semantic_affinity(features: Tensor, labels: Tensor, radius: int) -> dict[str, Tensor | float]:
    where = pairs(*labels.shape[1:], radius)
    return pair_terms([{(p, q): feature_affinity(image, p, q) for p, q in where} for image in features], labels)


def inter_pixel_relations(
    edges: Tensor, displacements: Tensor, labels: Tensor, radius: int
) -> dict[str, Tensor | float]:
    where = pairs(*labels.shape[1:], radius)
    terms = pair_terms([{(p, q): edge_affinity(image[0], p, q) for p, q in where} for image in edges], labels)
    errors: dict[str, list[Tensor]] = {"background": [], "foreground": []}
    for arrows, image in zip(displacements, labels.tolist(), strict=True):
        for p, q in where:
            of = kind(image[p[0]][p[1]], image[q[0]][q[1]])
            for axis in (0, 1):
                difference = arrows[axis][p] - arrows[axis][q]
                if of == "foreground":
                    # Both point at the same spot: p + d(p) = q + d(q).
                    errors[of].append(abs(difference - (q[axis] - p[axis])))
                elif of == "background":
                    errors[of].append(abs(difference))
    terms["displacement_background"] = mean(errors["background"]) / 2
    terms["displacement_foreground"] = mean(errors["foreground"]) / 2
    return terms


def matrix(affinity: dict[tuple[Pixel, Pixel], Tensor], height: int, width: int) -> Tensor:
    """(h w, h w): each pair both ways, 1 on the diagonal, else 0."""
    dense = torch.eye(height * width, dtype=torch.float64)
    for (p, q), value in affinity.items():
        i, j = p[0] * width + p[1], q[0] * width + q[1]
        dense[i, j] = dense[j, i] = value
    return dense


def walk(maps: Tensor, dense: Tensor, beta: float, logt: int) -> Tensor:
    """Maps (C, h, w) times the transition matrix, which is squared ``logt`` times."""
    transition = dense**beta
    transition = transition / transition.sum(dim=0, keepdim=True)
    for _ in range(logt):
        transition = transition @ transition
    return (maps.flatten(1) @ transition).view_as(maps)
