"""Multi-scale and flip inference of activation maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
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
    return normalize_cams(mask_by_tags(torch.stack(_to_size(maps, size)).sum(dim=0), tags), signed=True)


def _to_size(maps: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
    return [F.interpolate(full_precision(m), size=size, mode="bilinear", align_corners=False) for m in maps]


def multi_scale_cams(
    cam_forward: Callable[[Tensor], Tensor],
    images: Tensor | Sequence[Tensor],
    tags: Tensor,
    scales: Sequence[float] = (0.5, 1.0, 1.5, 2.0),
    flip: bool = True,
) -> Any:
    """Maps of photos from several scales, each also mirrored (SEAM and PPC use scales 0.5, 1, 1.5, 2 with flips).

    Args:
        cam_forward: from images (N, 3, H', W') to foreground maps (N, K, h, w): any network.
        images: (N, 3, H, W) normalised photos; or a list of photos (3, H, W) of different sizes. Those of one size go
            through the network together.
        tags: (N, K) multi-hot; at test time the given or the predicted tags.
        scales: factors of the photo's size. Photos are resized bicubically with antialiasing.
        flip: add the horizontally mirrored photo at each scale.

    Returns:
        (N, K, H, W), see :func:`merge_scales`; for a list, a list of (K, H, W).

    Raises:
        ValueError: scales that are not positive, or tags that do not go with the photos or their maps.
    """

    def infer(photos: Tensor, of: Tensor) -> Tensor:
        size = (photos.shape[-2], photos.shape[-1])
        return merge_scales(_maps(cam_forward, photos, scales, flip), of, size)

    if len(tags) != len(images):
        raise ValueError(f"`tags` must have a row for each of the {len(images)} photos, got {tuple(tags.shape)}")
    return _by_size(infer, images, tags)


def multi_scale_logits(
    forward: Callable[[Tensor], Tensor],
    images: Tensor | Sequence[Tensor],
    scales: Sequence[float] = (0.5, 1.0, 1.5, 2.0),
    flip: bool = True,
) -> Any:
    """Segmentation logits of photos: the mean over scales and mirror images, at the photo's size (CSRM).

    CSRM's released code adds the logits of a photo and of its mirror image: twice these.

    Args:
        forward: from images (N, 3, H', W') to logits (N, C, h, w): any network.
        images: (N, 3, H, W) normalised photos, or a list of photos (3, H, W), as in :func:`multi_scale_cams`.
        scales: factors of the photo's size.
        flip: add the horizontally mirrored photo at each scale.

    Returns:
        (N, C, H, W); for a list, a list of (C, H, W).
    """

    def infer(photos: Tensor) -> Tensor:
        size = (photos.shape[-2], photos.shape[-1])
        return torch.stack(_to_size(_maps(forward, photos, scales, flip), size)).mean(dim=0)

    return _by_size(infer, images)


def stream_cams(
    cam_forward: Callable[[Tensor], Tensor],
    batches: Iterable[Mapping[str, Any]],
    scales: Sequence[float] = (0.5, 1.0, 1.5, 2.0),
    flip: bool = True,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Iterator[tuple[str, Tensor]]:
    """Maps of a whole data set, photo after photo, of any network. None is kept.

    Args:
        cam_forward: from images (N, 3, H', W') to foreground maps (N, K, h, w).
        batches: dicts of ``image``, ``tags`` and ``name``: a ``DataLoader`` of
            :class:`~wsss_contrast.data.SameSizeBatches`.
        scales: as in :func:`multi_scale_cams`.
        flip: as there.
        device: where the network is.
        progress: show a bar.

    Yields:
        name and maps (K, H, W) of each photo.
    """
    for batch in track(batches, "photos", disable=not progress):
        images, tags = batch["image"].to(device), batch["tags"].to(device)
        yield from zip(batch["name"], multi_scale_cams(cam_forward, images, tags, scales, flip), strict=True)


@torch.no_grad()
def _maps(forward: Callable[[Tensor], Tensor], images: Tensor, scales: Sequence[float], flip: bool) -> list[Tensor]:
    """Maps of each scale and of each mirrored one, flips undone, at the size of the scaled photo."""
    if not scales or min(scales) <= 0:
        raise ValueError(f"`scales` must be positive and not empty, got {tuple(scales)}")
    size = [images.shape[-2], images.shape[-1]]
    maps = []
    for scale in scales:
        scaled_size = [max(round(side * scale), 1) for side in size]
        scaled = images
        if scale != 1:
            scaled = F.interpolate(images, size=scaled_size, mode="bicubic", align_corners=False, antialias=True)
        out = full_precision(forward(torch.cat([scaled, scaled.flip(-1)]) if flip else scaled))
        sized = F.interpolate(out, scaled_size, mode="bilinear", align_corners=True)
        maps.append(sized[: len(images)])
        if flip:
            maps.append(sized[len(images) :].flip(-1))
    return maps


def _by_size(infer: Callable[..., Tensor], images: Tensor | Sequence[Tensor], *others: Tensor) -> Any:
    """Call with the photos of one size together; the results in their order."""
    if isinstance(images, Tensor):
        return infer(images, *others)
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(tuple(image.shape), []).append(index)
    results: list[Tensor] = [torch.empty(0)] * len(images)
    for group in groups.values():
        of_group = infer(torch.stack([images[index] for index in group]), *(other[group] for other in others))
        for index, result in zip(group, of_group, strict=True):
            results[index] = result
    return results
