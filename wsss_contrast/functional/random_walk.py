"""Random walk over the affinities of pixels near each other (PSA, IRN), without a matrix of pixels times pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .affinity import affinity_offsets
from .maps import full_precision


@torch.no_grad()
def random_walk(maps: Tensor, affinity: Tensor, radius: int = 5, beta: float = 8, logt: int = 8) -> Tensor:
    r"""Spread maps to pixels of high affinity: :math:`m T^t` with :math:`T_{ij} = A_{ij}^\beta / \sum_k A_{kj}^\beta`.

    :math:`A` is symmetric, with the affinity of each pair both ways, 1 on its diagonal and 0 elsewhere. The released
    codes square :math:`T` ``logt`` times, which makes it dense. Here its 69 diagonals (radius 5) are applied
    ``t = 2 ** logt`` times to the maps: :math:`T^k` has about :math:`k^2` times as many diagonals, so that a power of
    :math:`T` costs more than the steps that it saves.

    Args:
        maps: (N, C, h, w). Only the classes of an image need to walk: each does by itself.
        affinity: (N, offsets, h, w) of pairs laid out by their first pixel, those that leave the map count for nothing;
            or (N, offsets, h - r, w - 2 r) with ``r = radius - 1``, as
            :func:`~wsss_contrast.functional.feature_affinity` gives: the pixels around start no pair.
        radius: of the offsets, see :func:`~wsss_contrast.functional.affinity_offsets`.
        beta: the power of each affinity, above 0. PSA 8, IRN 10.
        logt: binary logarithm of the number of steps. PSA and IRN 8, SEAM and PPC 6.

    Returns:
        (N, C, h, w), between the lowest and the highest value of each map. Constant.

    Raises:
        ValueError: an affinity that does not go with the maps and the radius, or is negative or NaN (looked for on the
            CPU only); beta or logt out of range.
    """
    if not beta > 0:
        raise ValueError(f"`beta` must be above 0, got {beta}")
    if logt < 0:
        raise ValueError(f"`logt` must not be negative, got {logt}")
    walked, pixels = full_precision(maps).flatten(2), maps.shape[-2] * maps.shape[-1]
    weights = _weights(maps, affinity, radius) ** beta
    # On rows laid end to end an offset is a shift. What it carries over the end of a row has the weight 0.
    shifts = [down * maps.shape[-1] + right for down, right in affinity_offsets(radius)]
    steps = [(weights[:, k : k + 1, : pixels - shift], shift) for k, shift in enumerate(shifts) if 0 < shift < pixels]
    total = torch.ones_like(walked[:, :1])
    for weight, shift in steps:
        total[..., :-shift] += weight
        total[..., shift:] += weight
    for _ in range(2**logt):
        # By differences: the rounding of a sum of 69 values would add up over the steps, and maps would fade.
        change = torch.zeros_like(walked)
        for weight, shift in steps:
            difference = walked[..., shift:] - walked[..., :-shift]
            change[..., :-shift].addcmul_(weight, difference)
            change[..., shift:].addcmul_(weight, difference, value=-1)
        walked = change.div_(total).add_(walked)
    return walked.view(maps.shape)


def _weights(maps: Tensor, affinity: Tensor, radius: int) -> Tensor:
    """(N, offsets, h w), 0 for pairs that leave the map."""
    offsets, reach = affinity_offsets(radius), radius - 1
    height, width = maps.shape[-2:]
    sizes = (height, width), (height - reach, width - 2 * reach)
    if affinity.shape[:2] != (len(maps), len(offsets)) or affinity.shape[2:] not in sizes:
        raise ValueError(
            f"`affinity` must be of {len(maps)} images, {len(offsets)} offsets (radius {radius}) and of the size "
            f"{' or '.join(map(str, sizes))}, got {tuple(affinity.shape)}"
        )
    affinity = affinity.to(full_precision(maps).dtype)
    if affinity.device.type == "cpu" and not bool((affinity >= 0).all()):
        raise ValueError(f"`affinity` must not be negative or NaN, its lowest value is {float(affinity.min()):.3g}")
    if affinity.shape[2:] != sizes[0]:
        return F.pad(affinity, (reach, reach, 0, reach)).flatten(2)
    weights = torch.zeros_like(affinity)
    for index, (down, right) in enumerate(offsets):
        inside = slice(0, max(height - down, 0)), slice(max(-right, 0), max(width - max(right, 0), 0))
        weights[(slice(None), index, *inside)] = affinity[(slice(None), index, *inside)]
    return weights.flatten(2)
