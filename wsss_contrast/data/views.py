"""The second view of a photo: PPC's transforms, Table 7 of the paper."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wsss_contrast.functional import resize, view_matrix, warp


class View(NamedTuple):
    """A moved batch of photos.

    Attributes:
        images: (N, 3, size, size).
        matrix: (N, 2, 3), which moves features and maps of the first view alike, see
            :func:`~wsss_contrast.functional.warp`; ``None`` where the view is a resize only.
    """

    images: Tensor
    matrix: Tensor | None


@dataclass(frozen=True)
class ViewTransform:
    """Draws a second view: a resize (the default of PPC and SEAM), and mirroring, rotation and translation (Table 7).

    Args:
        size: side of the second view in pixels; the whole photo is resized to it, whatever its shape.
        flip: mirror it, every other time.
        degrees: rotate it by an angle drawn from [-degrees, degrees] (the paper: 20).
        translate: shift it by up to that many pixels of the first view, each way (the paper: 16).

    Raises:
        ValueError: a size below 1, an angle or a shift below 0.

    >>> transform = ViewTransform(64, flip=True, degrees=20)
    >>> view = transform(torch.randn(2, 3, 128, 128), torch.Generator().manual_seed(0))
    >>> maps, valid = warp(torch.randn(2, 5, 16, 16), view.matrix, (8, 8))
    >>> view.images.shape, maps.shape, valid.shape
    (torch.Size([2, 3, 64, 64]), torch.Size([2, 5, 8, 8]), torch.Size([2, 8, 8]))
    """

    size: int = 128
    flip: bool = False
    degrees: float = 0.0
    translate: float = 0.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"the view's size must be at least 1, got {self.size}")
        if not 0 <= self.degrees <= 180:  # refuses NaN as well
            raise ValueError(f"the view's degrees must be in [0, 180], got {self.degrees}")
        if not 0 <= self.translate < math.inf:
            raise ValueError(f"the view's translation must be at least 0 and finite, got {self.translate}")

    @property
    def moves(self) -> bool:
        """Whether the view is more than a resize."""
        return bool(self.flip or self.degrees or self.translate)

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> View:
        """The second view of images (N, 3, H, W); ``generator`` may be on any device."""
        size = (self.size, self.size)
        if not self.moves:
            return View(resize(images, size), None)
        device = images.device if generator is None else generator.device
        draws = torch.rand((len(images), 4), generator=generator, device=device, dtype=torch.float32).to(images.device)
        matrix = view_matrix(
            (images.shape[-2], images.shape[-1]),
            flip=(draws[:, 0] < 0.5) & self.flip,
            degrees=(2 * draws[:, 1] - 1) * self.degrees,
            shift=(2 * draws[:, 2:] - 1) * self.translate,
        )
        return View(warp(images, matrix, size)[0].to(images.dtype), matrix)
