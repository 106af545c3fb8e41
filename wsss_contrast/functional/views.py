"""Geometry between two views of a photo: which point of the source view each pixel of the target view looks at.

Coordinates are normalised, as ``grid_sample`` has them with aligned corners: -1 and 1 are the centres of the first and
the last pixel, (x, y). They hold for a photo and for its feature and activation maps of any resolution alike.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .maps import full_precision

_TOLERANCE = 1e-5  # of a rounded coordinate on the border


def view_matrix(size: tuple[int, int], flip: Tensor, degrees: Tensor, shift: Tensor) -> Tensor:
    """The affine map from the target view to the source view: mirror, then rotate about the centre, then shift.

    It is made in pixels of the source, so a rotation keeps the shapes in a photo that is not square.

    Args:
        size: height and width of the source view in pixels.
        flip: (N,) bool, mirror left and right.
        degrees: (N,) how far the photo's content turns, clockwise on the screen.
        shift: (N, 2) how far the content moves to the right and down, in pixels of the source.

    Returns:
        (N, 2, 3), for :func:`warp`.
    """
    radians = torch.deg2rad(degrees)
    cos, sin = radians.cos(), radians.sin()
    sign = torch.where(flip, -1.0, 1.0).to(cos.dtype)
    half_x, half_y = (max(side - 1, 1) / 2 for side in size[::-1])  # Python numbers: no copy to a device
    # Content moves by the map; a pixel looks where its content came from, which is the inverse.
    x_of_x, x_of_y = sign * cos, sign * sin * (half_y / half_x)
    y_of_x, y_of_y = -sin * (half_x / half_y), cos
    x, y = shift[:, 0] / half_x, shift[:, 1] / half_y
    # No matrix product, which autocast would round.
    rows = [x_of_x, x_of_y, -(x_of_x * x + x_of_y * y), y_of_x, y_of_y, -(y_of_x * x + y_of_y * y)]
    return torch.stack(rows, dim=-1).view(-1, 2, 3)


def warp(maps: Tensor, matrix: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Move a photo, its features or its activation maps into another view, and say which pixels it has there.

    The resize of :func:`resize` is the special case of the identity.

    Args:
        maps: (N, C, h1, w1) of the source view, any resolution.
        matrix: (N, 2, 3), see :func:`view_matrix`.
        size: height and width of the result.

    Returns:
        (N, C, h, w), zero outside of the source (bilinear, differentiable in ``maps``), and the mask (N, h, w) of the
        pixels that lie inside. It depends on ``matrix`` and ``size`` only.
    """
    if matrix.shape != (maps.shape[0], 2, 3):
        raise ValueError(f"`matrix` must have shape {(maps.shape[0], 2, 3)}, got {tuple(matrix.shape)}")
    maps = full_precision(maps)
    if maps.shape[0] == 0:  # an empty rank: `grid_sample` refuses an empty batch
        return maps.new_zeros(*maps.shape[:2], *size) + maps.sum(), valid_pixels(matrix, size)
    grid = _grid(matrix, size)
    valid = _inside(grid)
    # Border padding: a rounded coordinate just outside is the border's, not a mix with zero.
    moved = F.grid_sample(maps, grid.to(maps.dtype), mode="bilinear", padding_mode="border", align_corners=True)
    return moved * valid[:, None], valid


def valid_pixels(matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """The mask (N, h, w) of :func:`warp` alone: the target view's pixels that lie inside of the source view."""
    return _inside(_grid(matrix, size))


def _grid(matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """Where each pixel looks (N, h, w, 2). A single row or column stands at -1, where :func:`resize` takes it from."""
    # Not `F.affine_grid`, which puts a single pixel at 0; and no matrix product, which autocast would round.
    matrix = full_precision(matrix)
    y, x = (torch.linspace(-1, 1, n, dtype=matrix.dtype, device=matrix.device) for n in size)
    of_x, of_y, shift = matrix[:, None, None].unbind(dim=-1)
    return of_x * x[:, None] + of_y * y[:, None, None] + shift


def _inside(grid: Tensor) -> Tensor:
    return (grid.abs() <= 1 + _TOLERANCE).all(dim=-1)
