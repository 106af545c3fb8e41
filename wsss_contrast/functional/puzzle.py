"""Puzzle-CAM (Jo and Yu, ICIP 2021): maps of four tiles, merged, agree with the maps of the whole image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .maps import full_precision, mask_by_tags


def tile(images: Tensor) -> Tensor:
    """Cut each image into 2 x 2 tiles that do not overlap.

    Args:
        images: (N, C, H, W), H and W even.

    Returns:
        (4N, C, H/2, W/2), the top left tiles of the whole batch, then top right, bottom left, bottom right. Tile t
        of image n is at t N + n.

    Raises:
        ValueError: a side is odd.

    >>> tile(torch.arange(16.0).view(1, 1, 4, 4))[1]
    tensor([[[2., 3.],
             [6., 7.]]])
    """
    height, width = images.shape[-2:]
    if height % 2 or width % 2:
        raise ValueError(f"images of {height} x {width} can't be cut into 2 x 2 tiles; both sides must be even")
    return torch.cat([part for half in images.chunk(2, dim=-2) for part in half.chunk(2, dim=-1)])


def merge_tiles(features: Tensor) -> Tensor:
    """Lay the maps of tiles out again as maps of whole images, the inverse of :func:`tile`.

    Args:
        features: (4N, C, h, w), in the order of :func:`tile`.

    Returns:
        (N, C, 2h, 2w).

    Raises:
        ValueError: the number of maps is no multiple of 4.
    """
    if features.shape[0] % 4:
        raise ValueError(f"there must be four tiles of each image, got {features.shape[0]} in all")
    top_left, top_right, bottom_left, bottom_right = features.chunk(4)
    top = torch.cat([top_left, top_right], dim=-1)
    return torch.cat([top, torch.cat([bottom_left, bottom_right], dim=-1)], dim=-2)


def puzzle_reconstruction(
    maps: Tensor, merged: Tensor, tags: Tensor, reduction: Literal["masking", "selection"] = "masking"
) -> Tensor:
    r"""The distance of an image's maps from those of its tiles, :math:`L_{re}`. Gradient flows to both.

    .. math::

        L_{re} = \frac{1}{N K h w} \sum_{n,k,i} y_{nk} \big| m_{nk}(i) - \tilde m_{nk}(i) \big|

    Args:
        maps: (N, K, h, w) raw foreground maps of the images, before any ReLU or normalisation.
        merged: (N, K, h, w) those of their tiles, see :func:`merge_tiles`.
        tags: (N, K) multi-hot.
        reduction: ``"masking"``: the mean over all entries, those of absent classes are zeros that count.
            ``"selection"``: the mean over the classes present in an image and its pixels, then over images. An image
            without tags is a zero that counts.

    Returns:
        A scalar, at least 0. An empty batch gives a zero that keeps the graph.
    """
    differences = mask_by_tags((full_precision(maps) - full_precision(merged)).abs(), tags)
    if reduction == "masking":
        return differences.sum() / max(differences.numel(), 1)
    present = tags.to(differences.dtype).sum(dim=1).clamp_min(1)
    return (differences.mean(dim=(-2, -1)).sum(dim=1) / present).sum() / max(maps.shape[0], 1)


def puzzle_alpha(step: float, max_steps: float, alpha_max: float = 4.0) -> float:
    """The weight of the reconstruction loss: from 0 up to ``alpha_max`` in the first half of the training.

    Args:
        step: optimiser steps taken so far.
        max_steps: those of the whole training, at least 1.
        alpha_max: the last value.

    >>> [puzzle_alpha(step, 1000) for step in (0, 250, 500, 999)]
    [0.0, 2.0, 4.0, 4.0]
    """
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be at least 1, got {max_steps}")
    return min(alpha_max * step / (0.5 * max_steps), alpha_max)
