"""Multi-scale and flip inference of activation maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from wsss_contrast.functional import full_precision, mask_by_tags, max_normalize, normalize_cams


def merge_scales(
    maps: Iterable[Tensor],
    tags: Tensor,
    size: tuple[int, int],
    normalize: Literal["min-max", "max"] = "min-max",
    multiple: int = 1,
) -> Tensor:
    """Sum maps of several scales at the photo's size, mask them by the tags and normalise each class.

    Args:
        maps: (N, K, h_s, w_s) foreground maps a scale, flips undone; taken one after the other.
        tags: (N, K) multi-hot.
        size: height and width of the photo.
        normalize: ``"min-max"`` (SEAM, PPC), or ``"max"`` (IRN, CSRM;
            :func:`~wsss_contrast.functional.max_normalize`).
        multiple: resize to the next multiple of the size and cut the photo's part out. The released code of IRN and
            CSRM has 16, which shifts maps by up to a stride.

    Returns:
        (N, K, H, W). With ``"min-max"``, tagged classes are below 1, negative at their minimum; untagged classes are
        -1 everywhere. With ``"max"``, tagged classes are in [0, 1), untagged ones 0.

    Raises:
        ValueError: no maps, or tags of another shape.
    """
    height, width = (-(-side // multiple) * multiple for side in size)
    total = _sum(maps, (height, width))[..., : size[0], : size[1]]
    if tags.shape != total.shape[:2]:
        raise ValueError(f"`tags` must be of shape {tuple(total.shape[:2])} like the maps, got {tuple(tags.shape)}")
    total = mask_by_tags(total, tags)
    return max_normalize(total) if normalize == "max" else normalize_cams(total, signed=True)


def _sum(maps: Iterable[Tensor], size: tuple[int, int]) -> Tensor:
    """One scale at a time: all together, with many classes, would be the largest tensor of a prediction."""
    total = None
    for of_scale in maps:
        sized = F.interpolate(full_precision(of_scale), size=size, mode="bilinear", align_corners=False)
        total = sized if total is None else total.add_(sized)
    if total is None:
        raise ValueError("`maps` must have the maps of at least one scale")
    return total


def multi_scale_cams(
    cam_forward: Callable[[Tensor], Tensor],
    images: Tensor | Sequence[Tensor],
    tags: Tensor,
    scales: Sequence[float] = (0.5, 1.0, 1.5, 2.0),
    flip: bool = True,
    normalize: Literal["min-max", "max"] = "min-max",
) -> Any:
    """Maps of photos from several scales, each also mirrored (SEAM and PPC use scales 0.5, 1, 1.5, 2 with flips).

    Args:
        cam_forward: from images (N, 3, H', W') to foreground maps (N, K, h, w): any network.
        images: (N, 3, H, W) normalised photos; or a list of photos (3, H, W) of different sizes. Those of one size go
            through the network together.
        tags: (N, K) multi-hot; at test time the given or the predicted tags.
        scales: factors of the photo's size. Photos are resized bicubically with antialiasing.
        flip: add the horizontally mirrored photo at each scale.
        normalize: see :func:`merge_scales`.

    Returns:
        (N, K, H, W), see :func:`merge_scales`; for a list, a list of (K, H, W).

    Raises:
        ValueError: scales that are not positive, or tags that do not go with the photos or their maps.
    """

    def infer(photos: Tensor, of: Tensor) -> Tensor:
        size = (photos.shape[-2], photos.shape[-1])
        return merge_scales(_maps(cam_forward, photos, scales, flip), of, size, normalize)

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
        return _sum(_maps(forward, photos, scales, flip), size).div_(len(scales) * (2 if flip else 1))

    return _by_size(infer, images)


def stream(
    infer: Callable[[dict[str, Any]], Iterable[Tensor]],
    batches: Iterable[dict[str, Any]],
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Iterator[tuple[str, Tensor]]:
    """Maps or logits of a whole data set, photo after photo, of any network. None is kept.

    The network is used as it is: call its ``eval()`` first, or batch norm goes on learning.

    Args:
        infer: from a batch to a tensor for each photo, with :func:`multi_scale_cams` or :func:`multi_scale_logits`.
        batches: dicts with ``name``, the names of the photos: a ``DataLoader`` of
            :class:`~wsss_contrast.data.SameSizeBatches`.
        device: where the network is. The tensors of a batch are moved there.
        progress: show a bar.

    Yields:
        name and tensor of each photo.

    >>> batches = [{"name": ["a", "b"], "image": torch.rand(2, 3, 8, 8), "tags": torch.ones(2, 3)}]
    >>> def infer(batch):
    ...     return multi_scale_cams(torch.relu, batch["image"], batch["tags"])
    >>> [(name, tuple(maps.shape)) for name, maps in stream(infer, batches, progress=False)]
    [('a', (3, 8, 8)), ('b', (3, 8, 8))]
    """
    for batch in track(batches, "photos", disable=not progress):
        there = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        yield from zip(batch["name"], infer(there), strict=True)


@torch.no_grad()
def _maps(forward: Callable[[Tensor], Tensor], images: Tensor, scales: Sequence[float], flip: bool) -> Iterator[Tensor]:
    """Maps of each scale and of each mirrored one, flips undone, at the size of the scaled photo."""
    if not scales or min(scales) <= 0:
        raise ValueError(f"`scales` must be positive and not empty, got {tuple(scales)}")
    size = [images.shape[-2], images.shape[-1]]
    for scale in scales:
        scaled_size = [max(round(side * scale), 1) for side in size]
        scaled = images
        if scale != 1:
            photos = full_precision(images)  # torch has no antialiasing in half precision on a CPU
            scaled = F.interpolate(photos, size=scaled_size, mode="bicubic", align_corners=False, antialias=True)
            scaled = scaled.to(images.dtype)
        out = full_precision(forward(torch.cat([scaled, scaled.flip(-1)]) if flip else scaled))
        sized = F.interpolate(out, scaled_size, mode="bilinear", align_corners=True)
        yield sized[: len(images)]
        if flip:
            yield sized[len(images) :].flip(-1)


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
