"""Checks of a loss's arguments: shapes and dtypes always, values on CPU tensors only (no wait for a device)."""

from __future__ import annotations

import torch
from torch import Tensor

from wsss_contrast.functional import NO_LABEL
from wsss_contrast.functional.maps import readable


def check_maps(**maps: Tensor) -> None:
    """Each is a floating (N, C, h, w) tensor with at least one channel and pixel, finite, and all share N."""
    batch: dict[str, int] = {}
    for name, value in maps.items():
        if not isinstance(value, Tensor) or value.dim() != 4 or not value.is_floating_point():
            got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"`{name}` must be a floating (N, C, h, w) tensor, got {got}")
        if 0 in value.shape[1:]:
            raise ValueError(f"`{name}` must have channels and pixels, got shape {tuple(value.shape)}")
        batch[name] = value.shape[0]
        if readable(value) and not _finite(value):
            raise ValueError(f"`{name}` has NaN or infinite values")
    if len(set(batch.values())) > 1:
        raise ValueError(f"the batch sizes differ: {batch}")


def check_same_channels(**maps: Tensor) -> None:
    """All have the same number of channels."""
    channels = {name: value.shape[1] for name, value in maps.items()}
    if len(set(channels.values())) > 1:
        raise ValueError(f"the numbers of channels differ: {channels}")


def check_tags(tags: Tensor, batch: int, classes: int) -> None:
    """``tags`` is a multi-hot (N, K) tensor that goes with the maps."""
    if not isinstance(tags, Tensor) or tuple(tags.shape) != (batch, classes):
        got = tuple(tags.shape) if isinstance(tags, Tensor) else type(tags).__name__
        raise ValueError(f"`tags` must be a multi-hot (N, K) tensor of shape {(batch, classes)}, got {got}")
    if readable(tags) and not bool(((tags == 0) | (tags == 1)).all()):
        raise ValueError(f"`tags` must be 0 or 1, got values in [{float(tags.min())}, {float(tags.max())}]")


def check_labels(labels: Tensor, batch: int, classes: int) -> None:
    """``labels`` is an (N, H, W) int64 tensor of ids below ``classes``, or 255."""
    if not isinstance(labels, Tensor) or labels.dim() != 3 or len(labels) != batch or labels.dtype != torch.int64:
        got = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"`labels` must be an int64 (N, H, W) tensor of {batch} images, got {got}")
    if readable(labels):
        wrong = labels[((labels < 0) | (labels >= classes)) & (labels != NO_LABEL)]
        if wrong.numel():
            ids = wrong.unique()[:5].tolist()
            raise ValueError(f"`labels` must be ids 0 to {classes - 1} or {NO_LABEL}, got {ids}")


def check_valid(valid: Tensor | None, maps: Tensor) -> None:
    """``valid`` is a bool mask (N, h, w) of the pixels of ``maps`` (N, C, h, w), or ``None``."""
    shape = (maps.shape[0], *maps.shape[2:])
    if valid is not None and (valid.shape != shape or valid.dtype != torch.bool):
        raise ValueError(
            f"a mask of valid pixels must be bool of shape {tuple(shape)}, got {valid.dtype} {tuple(valid.shape)}"
        )


def check_warped(valid: Tensor | None, *maps: Tensor) -> None:
    """With a mask of valid pixels, all maps are on the target view's pixels."""
    sizes = {tuple(value.shape[-2:]) for value in maps}
    if valid is not None and len(sizes) > 1:
        raise ValueError(f"with `valid`, the source's maps must be warped to the target's size, got {sorted(sizes)}")


def check_smoothing(label_smoothing: float) -> None:
    """It is in [0, 1)."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"`label_smoothing` must be in [0, 1), got {label_smoothing}")


def check_fraction(**values: float) -> None:
    """Each is in (0, 1]."""
    for name, value in values.items():
        if not 0 < value <= 1:
            raise ValueError(f"`{name}` must be in (0, 1], got {value}")


def _finite(x: Tensor) -> bool:
    # A sum reads the tensor once and is finite only if all values are; a finite tensor's may overflow.
    return bool(torch.isfinite(x.detach().sum())) or bool(torch.isfinite(x).all())
