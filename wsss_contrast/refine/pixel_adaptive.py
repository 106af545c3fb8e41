"""Pixel-adaptive refinement (PAR) as a refiner."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsss_contrast.functional import pixel_affinity, propagate


class PixelAdaptiveRefinement(nn.Module):
    """PAR of AFA (Ru et al., CVPR 2022): scores are averaged over pixels of like colour nearby, again and again.

    A refiner, see :class:`~wsss_contrast.refine.Refiner`. It has no weights, and runs where its inputs are. Only the
    classes present take part. See :func:`~wsss_contrast.functional.pixel_affinity` for the kernel.

    Args:
        steps: how often. The paper has 15.
        dilations: distances of the eight neighbours, in pixels.
        color_smoothness: w1.
        position_smoothness: w2.
        position_weight: w3.

    >>> refine = PixelAdaptiveRefinement(steps=2)
    >>> scores, present = torch.rand(2, 4, 32, 32), torch.ones(2, 4, dtype=torch.bool)
    >>> refine(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), scores, present).shape
    torch.Size([2, 4, 32, 32])
    """

    keeps_constants = True  # each class is averaged by itself, see `Refiner`

    def __init__(
        self,
        steps: int = 15,
        dilations: Sequence[int] = (1, 2, 4, 8, 12, 24),
        color_smoothness: float = 0.3,
        position_smoothness: float = 0.3,
        position_weight: float = 0.01,
    ) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {steps}")
        if not dilations or min(dilations) < 1:
            raise ValueError(f"`dilations` must be positive and not empty, got {tuple(dilations)}")
        for name, value in (("color_smoothness", color_smoothness), ("position_smoothness", position_smoothness)):
            if not value > 0:
                raise ValueError(f"`{name}` must be positive, got {value}")
        if not position_weight >= 0:
            raise ValueError(f"`position_weight` must not be negative, got {position_weight}")
        self.steps = steps
        self.dilations = tuple(dilations)
        self.color_smoothness = color_smoothness
        self.position_smoothness = position_smoothness
        self.position_weight = position_weight

    def extra_repr(self) -> str:
        kernel = (self.color_smoothness, self.position_smoothness, self.position_weight)
        return f"steps={self.steps}, dilations={self.dilations}, kernel={kernel}"

    def forward(self, photos: Tensor, scores: Tensor, present: Tensor) -> Tensor:
        affinity = pixel_affinity(
            photos, self.dilations, self.color_smoothness, self.position_smoothness, self.position_weight
        )
        # As many channels as the photo with the most classes needs, each photo's own in front. Padding refuses none.
        most = max([1, *present.sum(dim=1).tolist()])
        order = present.long().argsort(dim=1, descending=True, stable=True)[:, :most, None, None]
        order = order.expand(-1, -1, *scores.shape[2:])
        refined = propagate(scores.gather(1, order), affinity, self.dilations, self.steps)
        return torch.zeros_like(scores, dtype=refined.dtype).scatter(1, order, refined) * present[:, :, None, None]
