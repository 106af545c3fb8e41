"""Operations on class activation maps (CAMs) that more than one method uses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5
"""The margin that SEAM, PSA and PPC share in their map normalisations."""


def full_precision(x: Tensor) -> Tensor:
    """Half-precision tensors as float32, all others as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def unit(vectors: Tensor, dim: int = -1) -> Tensor:
    """Vectors over their length. One below 1e-8 stays as it is: divided, its gradient would leave half precision."""
    length: Tensor = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return vectors / torch.where(length > 1e-8, length, 1.0)


def readable(x: Tensor) -> bool:
    """Whether values can be read without waiting for a device, and without a break in a traced graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def present_classes(tags: Tensor) -> Tensor:
    """The background and the tagged classes: tags (N, K), multi-hot, to (N, 1 + K) bool."""
    return F.pad(tags > 0, (1, 0), value=True)


def best_class(scores: Tensor, present: Tensor | None = None) -> Tensor:
    """The channel of the highest score at each pixel, the first of equal ones.

    Args:
        scores: (N, C, h, w).
        present: (N, C) bool, the channels that can win; all by default.

    Returns:
        (N, h, w), int64.
    """
    if present is not None:
        scores = scores.masked_fill(~present[:, :, None, None], -torch.inf)
    return scores.max(dim=1).indices  # `argmax` over channels takes five times as long on a CPU


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize to ``size`` (height, width) with aligned corners, as SEAM and PPC resize all their maps.

    Args:
        maps: (N, C, h, w).
        size: height and width of the result.
    """
    if maps.shape[-2:] == size:
        return maps
    if maps.shape[0] == 0:  # an empty rank: `interpolate` refuses an empty batch
        return maps.new_zeros(*maps.shape[:2], *size) + maps.sum()
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)


def normalize_cams(cams: Tensor, signed: bool = False, valid: Tensor | None = None) -> Tensor:
    r"""Min-max normalisation of each map over its pixels, after a ReLU: ``max_norm`` of SEAM. Differentiable.

    .. math::

        \hat m(i) = \operatorname{relu}\Big(\frac{p(i) - \min p - \varepsilon}{\max p - \min p + \varepsilon}\Big),
        \quad p = \operatorname{relu}(m),\ \varepsilon = 10^{-5}

    Args:
        cams: (N, C, h, w), any range.
        signed: leave out the last ReLU, as PPC's released code and the field's multi-scale merge do. Pixels at
            the minimum become negative, -low / (high - low), and a map without a positive value -1 everywhere.
        valid: (N, h, w) bool, the pixels that the minimum and maximum are taken over; the values at the others have
            no meaning. All by default.

    Returns:
        (N, C, h, w), in [0, 1); below 1 if ``signed``.

    >>> normalize_cams(torch.tensor([[[[0.0, 1.0, 2.0]]]])).round(decimals=3)
    tensor([[[[0.0000, 0.5000, 1.0000]]]])
    """
    positive = full_precision(cams).relu()
    if valid is None:
        high = positive.amax(dim=(-2, -1), keepdim=True)
        low = positive.amin(dim=(-2, -1), keepdim=True)
    else:
        positive = positive * valid[:, None]
        high = positive.amax(dim=(-2, -1), keepdim=True)
        # No pixel is above the highest one, so it can stand in for those that do not count.
        low = torch.where(valid[:, None], positive, high.detach()).amin(dim=(-2, -1), keepdim=True)
    if signed:
        positive = positive.masked_fill(positive < low + EPS, 0.0)
    above = positive - low - EPS
    # The ReLU before the division: pixels that do not count may lie so far below that the quotient's gradient is NaN.
    return (above if signed else above.relu()) / (high - low + EPS)


def max_normalize(cams: Tensor) -> Tensor:
    r"""Each map over its largest value, after a ReLU: :math:`p / (\max p + 10^{-5})` with :math:`p = \max(m, 0)`.

    CSRM (Sec. 3.1), IRN. A map without a positive value is 0 everywhere.

    Args:
        cams: (N, C, h, w), any range.

    Returns:
        (N, C, h, w), in [0, 1).
    """
    positive = full_precision(cams).relu()
    return positive / (positive.amax(dim=(-2, -1), keepdim=True) + EPS)


def nearest_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (N, H, W) at another size: each pixel takes that at ``floor(i H / h)``, as nearest interpolation does."""
    for dim, length in zip((-2, -1), size, strict=True):
        full = labels.shape[dim]
        if full != length:
            chosen = torch.arange(length, device=labels.device) * full // length
            labels = labels.index_select(dim, chosen)
    return labels


def mask_by_tags(maps: Tensor, tags: Tensor) -> Tensor:
    """Zero the maps of the classes that an image is not tagged with.

    Args:
        maps: (N, K, h, w) foreground maps.
        tags: (N, K) multi-hot image tags.
    """
    return maps * tags.to(maps.dtype)[:, :, None, None]


def tagged_channels(tags: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
    """The tags and maps of no more channels than an image has tags: on a photo most classes of a data set are not.

    What masks its maps by the tags has the same result, in a fraction of the time. On a device, where the number of
    tags is not known without a wait, all channels are kept.

    Args:
        tags: (N, K) multi-hot.
        maps: (N, K, ...) each, any size.

    Returns:
        The tags (N, M) of the M channels that are kept for an image, its tagged ones first, in the order of their ids,
        and of each maps the same channels.
    """
    if not readable(tags) or tags.numel() == 0:
        return tags, *maps
    tagged = tags != 0
    most = max(int(tagged.sum(dim=1).max()), 1)
    if most == tags.shape[1]:
        return tags, *maps
    kept = tagged.byte().sort(dim=1, descending=True, stable=True).indices[:, :most]
    every = kept[:, :, None, None]
    return tags.gather(1, kept), *(m.gather(1, every.expand(-1, -1, *m.shape[2:])) for m in maps)


def with_background(foreground: Tensor, background: Tensor, index: int = 0) -> Tensor:
    """Join foreground maps (N, K, h, w) and a background map (N, 1, h, w) that goes first (0) or last (-1)."""
    return torch.cat([background, foreground] if index == 0 else [foreground, background], dim=1)


def split_background(maps: Tensor, index: int | None) -> Tensor:
    """The foreground channels of maps (N, C, h, w) whose background is the first channel (0), the last (-1) or none."""
    if index is None:
        return maps
    return maps[:, 1:] if index == 0 else maps[:, :-1]
