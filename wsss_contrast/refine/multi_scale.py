"""Multi-scale and flip inference of activation maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_contrast.functional import full_precision, mask_by_tags, normalize_cams


def merge_scales(maps: Sequence[Tensor], tags: Tensor, size: tuple[int, int]) -> Tensor:
    """Sum maps of several scales at the photo's size, mask them by the tags and normalise each class (SEAM, PPC).

    Args:
        maps: (N, K, h_s, w_s) foreground maps a scale, flips undone.
        tags: (N, K) multi-hot.
        size: height and width of the photo.

    Returns:
        (N, K, H, W). Tagged classes are below 1, negative at their minimum; untagged classes are -1 everywhere.

    Raises:
        ValueError: no maps, or tags of another shape.
    """
    if not maps:
        raise ValueError("`maps` must have the maps of at least one scale")
    if tags.shape != maps[0].shape[:2]:
        raise ValueError(f"`tags` must be of shape {tuple(maps[0].shape[:2])} like the maps, got {tuple(tags.shape)}")
    sized = [F.interpolate(full_precision(m), size=size, mode="bilinear", align_corners=False) for m in maps]
    return normalize_cams(mask_by_tags(torch.stack(sized).sum(dim=0), tags), signed=True)


@torch.no_grad()
def multi_scale_cams(
    cam_forward: Callable[[Tensor], Tensor],
    images: Tensor,
    tags: Tensor,
    scales: Sequence[float] = (0.5, 1.0, 1.5, 2.0),
    flip: bool = True,
) -> Tensor:
    """Maps of a photo from several scales, each also mirrored (SEAM and PPC use scales 0.5, 1, 1.5, 2 with flips).

    Args:
        cam_forward: from images (N, 3, H', W') to foreground maps (N, K, h, w).
        images: (N, 3, H, W) normalised photos.
        tags: (N, K) multi-hot; at test time the given or the predicted tags.
        scales: factors of the photo's size. Photos are resized bicubically with antialiasing.
        flip: add the horizontally mirrored photo at each scale.

    Returns:
        (N, K, H, W), see :func:`merge_scales`.
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"`scales` must be positive and not empty, got {tuple(scales)}")
    size = (images.shape[-2], images.shape[-1])
    maps = []
    for scale in scales:
        scaled_size = [max(round(side * scale), 1) for side in size]
        scaled = images
        if scale != 1:
            scaled = F.interpolate(images, size=scaled_size, mode="bicubic", align_corners=False, antialias=True)
        cams = cam_forward(torch.cat([scaled, scaled.flip(-1)]) if flip else scaled)
        cams = F.interpolate(full_precision(cams), size=scaled_size, mode="bilinear", align_corners=True)
        maps.append(cams[: len(images)])
        if flip:
            maps.append(cams[len(images) :].flip(-1))
    return merge_scales(maps, tags, size)
