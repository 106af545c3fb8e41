"""Mean field of a fully connected conditional random field (dense CRF, Krähenbühl and Koltun, NIPS 2011)."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .maps import EPS, full_precision, readable
from .permutohedral import PermutohedralLattice


def soft_unaries(scores: Tensor) -> Tensor:
    """Energies (N, C, H, W) of scores (N, C, H, W), which need not add up to 1: ``-log``, clipped at 1e-5 before."""
    return -full_precision(scores).clamp(min=EPS).log()


def hard_unaries(labels: Tensor, num_classes: int, confidence: float) -> Tensor:
    """Energies (N, C, H, W) of labels (N, H, W) from 0 to C - 1, which are right with this probability.

    Raises:
        ValueError: fewer than two classes, a confidence that is not in (0, 1), or a label that is no class, as 255
            (looked for on the CPU only).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be in (0, 1), got {confidence}")
    if num_classes < 2:
        raise ValueError(f"`num_classes` must be at least 2, got {num_classes}")
    if readable(labels):
        wrong = labels[(labels < 0) | (labels >= num_classes)]
        if len(wrong):
            raise ValueError(f"`labels` must be from 0 to {num_classes - 1}, got {wrong[0]}")
    shape = (len(labels), num_classes, *labels.shape[1:])
    energies = torch.full(shape, -math.log((1 - confidence) / (num_classes - 1)), device=labels.device)
    return energies.scatter_(1, labels[:, None].long(), -math.log(confidence))


def dense_crf(
    photos: Tensor,
    unaries: Tensor,
    bilateral: tuple[float, float, float] = (50, 5, 10),
    gaussian: tuple[float, float] = (3, 3),
    iterations: int = 10,
    rows_first: bool = False,
) -> Tensor:
    r"""Mean field with a Potts model and two kernels.

    .. math::

        Q_i \propto \exp\Big(-U_i + \sum_m w^{(m)} \sum_j \tilde k^{(m)}_{ij} Q_j\Big), \qquad
        \tilde k_{ij} = \frac{k_{ij}}{\sqrt{\sum_l k_{il} \sum_l k_{jl}}}

    :math:`k` is a Gaussian of positions and colours, or of positions alone, by a
    :class:`~wsss_contrast.functional.PermutohedralLattice`. It begins with the softmax of :math:`-U`.

    Args:
        photos: (N, 3, H, W), from 0 to 255.
        unaries: (N, C, H, W), energies U; infinity for a class that takes no part. Differentiable in them.
        bilateral: of the appearance kernel, standard deviations in pixels and in colour, and weight.
        gaussian: of the smoothness kernel, standard deviation in pixels, and weight.
        iterations: how many.
        rows_first: order of the axes, on which the lattice depends a little: rows before columns.

    Returns:
        (N, C, H, W), the probabilities Q.

    Raises:
        ValueError: shapes that do not go together, or standard deviations that are not above 0.
    """
    if unaries.dim() != 4:
        raise ValueError(f"`unaries` must be (N, C, H, W), got {tuple(unaries.shape)}")
    images, _, height, width = unaries.shape
    if photos.shape != (images, 3, height, width):
        raise ValueError(f"`photos` must be of shape {(images, 3, height, width)}, got {tuple(photos.shape)}")
    if not min(*bilateral[:2], gaussian[0]) > 0:
        raise ValueError(f"standard deviations must be above 0, got {bilateral[:2]} and {gaussian[0]}")
    colors = photos.to(unaries.device).float().flatten(2).transpose(1, 2)
    of_photos = images, height, width, rows_first, colors.device
    smoothness = _smoothness(gaussian[0], *of_photos)
    looks = torch.cat([_positions(*of_photos) / bilateral[0], colors / bilateral[1]], dim=-1)
    appearance = PermutohedralLattice(looks, normalize=True)
    logits = -full_precision(unaries).flatten(2).transpose(1, 2).contiguous()
    shares = logits.softmax(dim=2)
    for _ in range(iterations):
        scores = torch.add(logits, smoothness(shares), alpha=gaussian[1])
        shares = torch.add(scores, appearance(shares), alpha=bilateral[2]).softmax(dim=2)
    return shares.transpose(1, 2).view(unaries.shape)


def _positions(images: int, height: int, width: int, rows_first: bool, device: torch.device) -> Tensor:
    """(N, H W, 2) pixels."""
    rows, columns = (torch.arange(side, dtype=torch.float32, device=device) for side in (height, width))
    axes = rows[:, None].expand(height, width), columns.expand(height, width)
    return torch.stack(axes if rows_first else axes[::-1], dim=-1).view(1, -1, 2).expand(images, -1, -1)


@lru_cache(maxsize=2)  # photos in a row are often of one size
def _smoothness(deviation: float, *of_photos: Any) -> PermutohedralLattice:
    return PermutohedralLattice(_positions(*of_photos) / deviation, normalize=True)
