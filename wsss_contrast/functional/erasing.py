"""Erasing a class from an image by its activation map, as OC-CSE (ICCV 2021) and P-NOC do."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .maps import EPS, full_precision


def erasing_masks(
    maps: Tensor, erased: Tensor, size: tuple[int, int], normalize: Literal["batch", "map"] = "batch"
) -> Tensor:
    r"""Where a class is: its map after a ReLU, resized to the image and divided by the largest value plus 1e-5.

    Args:
        maps: (N, K, h, w) raw foreground maps; the gradient flows to those of the erased classes.
        erased: (N, K) one-hot, the class to erase; zeros for none.
        size: height and width of the image.
        normalize: ``"batch"``: by the largest value of the whole batch, so that an image where the class is faint loses
            little. ``"map"``: by the map's own.

    Returns:
        (N, 1, H, W), in [0, 1).
    """
    chosen = (full_precision(maps).relu() * erased.to(maps.dtype)[:, :, None, None]).sum(dim=1, keepdim=True)
    large = F.interpolate(chosen, size=size, mode="bilinear", align_corners=False)
    highest = large.amax(dim=(2, 3), keepdim=True)
    if normalize == "batch" and len(maps):
        highest = highest.amax(dim=0, keepdim=True)
    return large / (highest + EPS)


def erase(images: Tensor, masks: Tensor, threshold: float | None = None) -> Tensor:
    """Images without what the masks cover.

    Args:
        images: (N, 3, H, W), normalised: what is erased becomes the mean colour.
        masks: (N, 1, H, W), of :func:`erasing_masks`.
        threshold: pixels whose mask exceeds it are erased, the others stay as they are. ``None``: each pixel loses the
            share that its mask says.
    """
    kept = 1 - masks if threshold is None else masks <= threshold
    return images * kept.to(images.dtype)


def draw_tag(tags: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One tag of each image, drawn uniformly: one-hot (N, K); zeros where there is none.

    Args:
        tags: (N, K) multi-hot.
        generator: for the draws.
    """
    numbers = torch.rand(tags.shape, generator=generator, device=tags.device)
    present = tags > 0
    chosen = torch.where(present, numbers, -1.0).max(dim=1).indices
    return F.one_hot(chosen, tags.shape[1]).to(tags.dtype) * present.any(dim=1, keepdim=True)
