"""Checks of a loss's arguments: shapes and dtypes always, values on CPU tensors only (no wait for a device)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from wsss_contrast.functional import NO_LABEL
from wsss_contrast.functional.maps import readable


def shape_of(value: object) -> tuple[int, ...] | str:
    """The shape of a tensor, and the type of what is none."""
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def kind(value: object) -> str:
    """The type and shape of a tensor, and the type of what is none."""
    return f"{value.dtype} {shape_of(value)}" if isinstance(value, Tensor) else type(value).__name__


def check_maps(**maps: Tensor) -> None:
    """Each is a floating (N, C, h, w) tensor with at least one channel and pixel, finite, and all share N."""
    batch: dict[str, int] = {}
    for name, value in maps.items():
        if not isinstance(value, Tensor) or value.dim() != 4 or not value.is_floating_point():
            raise ValueError(f"`{name}` must be a floating (N, C, h, w) tensor, got {kind(value)}")
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
        raise ValueError(f"`tags` must be a multi-hot (N, K) tensor of shape {(batch, classes)}, got {shape_of(tags)}")
    if tags.is_complex():
        raise ValueError(f"`tags` must be 0 or 1, got {tags.dtype}")
    if readable(tags) and not bool(((tags == 0) | (tags == 1)).all()):
        raise ValueError(f"`tags` must be 0 or 1, got values in [{float(tags.min())}, {float(tags.max())}]")


def check_labels(labels: Tensor, batch: int, classes: int) -> None:
    """``labels`` is an (N, H, W) int64 tensor of ids below ``classes``, or 255."""
    fits = isinstance(labels, Tensor) and labels.dim() == 3 and len(labels) == batch and 0 not in labels.shape[1:]
    if not fits or labels.dtype != torch.int64:
        raise ValueError(f"`labels` must be an int64 (N, H, W) tensor of {batch} images, got {kind(labels)}")
    if readable(labels):
        wrong = labels[((labels < 0) | (labels >= classes)) & (labels != NO_LABEL)]
        if wrong.numel():
            ids = wrong.unique()[:5].tolist()
            raise ValueError(f"`labels` must be ids 0 to {classes - 1} or {NO_LABEL}, got {ids}")


def check_valid(valid: Tensor | None, maps: Tensor, name: str = "valid") -> None:
    """``valid`` is a bool mask (N, h, w) of the pixels of ``maps`` (N, C, h, w), or ``None``."""
    if valid is not None:
        check_mask((maps.shape[0], *maps.shape[2:]), **{name: valid})


def check_mask(shape: tuple[int, ...], **masks: Tensor) -> None:
    """Each is bool, of this shape."""
    for name, mask in masks.items():
        if not isinstance(mask, Tensor) or mask.shape != shape or mask.dtype != torch.bool:
            raise ValueError(f"`{name}` must be bool of shape {shape}, got {kind(mask)}")


def check_warped(valid: Tensor | None, *maps: Tensor) -> None:
    """With a mask of valid pixels, all maps are on the target view's pixels."""
    sizes = {tuple(value.shape[-2:]) for value in maps}
    if valid is not None and len(sizes) > 1:
        raise ValueError(f"with `valid`, the source's maps must be warped to the target's size, got {sorted(sizes)}")


def check_sizes(valid: Tensor | None, **sizes: tuple[int, int] | None) -> None:
    """Each is a height and a width, at least 1, or ``None``, which it must be with a mask of valid pixels."""
    for name, size in sizes.items():
        if size is None:
            continue
        pair = isinstance(size, tuple | list) and len(size) == 2
        if not pair or not all(isinstance(side, int) and side > 0 for side in size):
            raise ValueError(f"`{name}` must be a height and a width, at least 1, got {size!r}")
        if valid is not None:
            raise ValueError(f"`{name}` must be None where `valid` is given, whose pixels are the maps', got {size}")


def check_view_sizes(valid: Tensor | None, sizes: tuple[tuple[int, int], tuple[int, int]] | None) -> None:
    """``sizes`` are those of two views, see :func:`check_sizes`."""
    if sizes is not None and (not isinstance(sizes, tuple | list) or len(sizes) != 2 or None in sizes):
        raise ValueError(f"`sizes` must be those of the source and of the target, got {sizes!r}")
    for size in sizes or ():
        check_sizes(valid, sizes=size)


def check_smoothing(label_smoothing: float) -> None:
    """It is in [0, 1)."""
    check_numbers(label_smoothing=label_smoothing)
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"`label_smoothing` must be in [0, 1), got {label_smoothing}")


def check_fraction(**values: float) -> None:
    """Each is in (0, 1]."""
    check_numbers(**values)
    for name, value in values.items():
        if not 0 < value <= 1:
            raise ValueError(f"`{name}` must be in (0, 1], got {value}")


def check_share(**values: float) -> None:
    """Each is in [0, 1]."""
    check_numbers(**values)
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must be in [0, 1], got {value}")


def check_numbers(**values: float) -> None:
    """Each is a number, and not infinite. NaN passes: it is in no range, so what checks the range refuses it."""
    for name, value in values.items():
        if not isinstance(value, Real) or abs(value) == math.inf:
            raise ValueError(f"`{name}` must be a finite number, got {value!r}")


def check_whole(**values: int) -> None:
    """Each is a whole number."""
    for name, value in values.items():
        if not isinstance(value, Integral):
            raise ValueError(f"`{name}` must be a whole number, got {value!r}")


def check_choice(choices: tuple[Any, ...], **values: Any) -> None:
    """Each is one of ``choices``, and of its type: a comparison with a tensor is no answer."""
    for name, value in values.items():
        if not isinstance(value, tuple(map(type, choices))) or value not in choices:
            *others, last = map(repr, choices)
            raise ValueError(f"`{name}` must be {', '.join(others)} or {last}, got {value!r}")


def check_generator(generator: torch.Generator | None) -> None:
    """It is one, or ``None``."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"`generator` must be a torch.Generator, got {generator!r}")


def check_draws(draws: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> None:
    """They are random numbers of these shapes."""
    parts: list[Any] = list(draws) if isinstance(draws, tuple | list) else [draws]
    found = [*map(shape_of, parts)]
    if found != shapes:
        raise ValueError(f"`draws` must have the shapes {shapes}, got {found}")
    for part in parts:
        if not part.is_floating_point():
            raise ValueError(f"`draws` must be floating, got {part.dtype}")


def check_below_one(draws: Tensor) -> None:
    """They are in [0, 1), so that they choose one of what there is."""
    if readable(draws) and not bool(((draws >= 0) & (draws < 1)).all()):
        raise ValueError(f"`draws` must be in [0, 1), got values in [{float(draws.min())}, {float(draws.max())}]")


def _finite(x: Tensor) -> bool:
    # A sum reads the tensor once and is finite only if all values are; a finite tensor's may overflow.
    return bool(torch.isfinite(x.detach().sum())) or bool(torch.isfinite(x).all())
