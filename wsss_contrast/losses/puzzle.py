"""Puzzle-CAM's consistency of an image's maps with those of its tiles."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from wsss_contrast import functional
from wsss_contrast._checks import check_choice, check_maps, check_same_channels, check_tags


class PuzzleReconstruction(nn.Module):
    """The reconstruction loss of Puzzle-CAM, ``L_re`` of the paper's loss design [1].

    The formula is :func:`~wsss_contrast.functional.puzzle_reconstruction`. Cut images with
    :func:`~wsss_contrast.functional.tile`, and lay their maps out with
    :func:`~wsss_contrast.functional.merge_tiles`.

    Args:
        reduction: ``"masking"``, the released code's default: maps of absent classes count as zeros in the mean.
            ``"selection"``: each image's mean is over the classes present in it.

    Distributed contract: a mean over images, so ranks with equal batches give the joined batch's value as the mean
    over ranks; nothing is gathered.

    [1] Puzzle-CAM: Improved localization via matching partial and full features, ICIP 2021.
    """

    def __init__(self, reduction: Literal["masking", "selection"] = "masking") -> None:
        super().__init__()
        check_choice(("masking", "selection"), reduction=reduction)
        self.reduction = reduction

    def forward(self, cams: Tensor, merged_cams: Tensor, tags: Tensor) -> Tensor:
        """A scalar, at least 0.

        Args:
            cams: (N, K, h, w) raw foreground maps of the images, before any ReLU.
            merged_cams: (N, K, h, w) those of their tiles, merged. Both get gradients.
            tags: (N, K) multi-hot.

        Raises:
            ValueError: shapes that do not go together, NaN, tags that are not 0 or 1.
        """
        check_maps(cams=cams, merged_cams=merged_cams)
        check_same_channels(cams=cams, merged_cams=merged_cams)
        if cams.shape[-2:] != merged_cams.shape[-2:]:
            whole, merged = (" x ".join(map(str, maps.shape[-2:])) for maps in (cams, merged_cams))
            raise ValueError(
                f"`merged_cams` must have the size of `cams`, got {merged} for {whole}; the sides of the images must "
                "be multiples of twice the stride of the maps"
            )
        check_tags(tags, cams.shape[0], cams.shape[1])
        with torch.autocast(cams.device.type, enabled=False):
            return functional.puzzle_reconstruction(cams, merged_cams, tags, self.reduction)
