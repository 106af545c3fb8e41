"""EPS's loss between activation maps and a saliency map."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from wsss_contrast import functional
from wsss_contrast._checks import check_choice, check_maps, check_share, check_tags
from wsss_contrast.functional.maps import readable


class SaliencyLoss(nn.Module):
    """The maps of classes and background add up to a saliency map: ``L_sal`` of EPS [1].

    The formula is :func:`~wsss_contrast.functional.saliency_loss`. The saliency map is resized to the activation maps,
    each pixel taking the nearest value.

    Args:
        overlap_threshold: tau, in [0, 1]: a tagged class is foreground where more than that share of its map is
            salient, else background.
        mixing: lambda, in [0, 1], the weight of the foreground's maps; the rest is the background's. 0.5 for VOC, 0.9
            for COCO.
        background: which channel of the maps is the background's, the first (0) or the last (-1).

    Distributed contract: a mean over images, so ranks with equal batches give the joined batch's value as the mean
    over ranks; nothing is gathered.

    [1] Railroad is not a Train: Saliency as Pseudo-pixel Supervision for Weakly Supervised Semantic Segmentation,
    CVPR 2021.
    """

    def __init__(self, overlap_threshold: float = 0.4, mixing: float = 0.5, background: Literal[0, -1] = -1) -> None:
        super().__init__()
        check_share(overlap_threshold=overlap_threshold, mixing=mixing)
        check_choice((0, -1), background=background)
        self.overlap_threshold = overlap_threshold
        self.mixing = mixing
        self.background = background

    def forward(self, cams: Tensor, tags: Tensor, saliency: Tensor) -> Tensor:
        """A scalar in [0, 1].

        Args:
            cams: (N, 1 + K, h, w) raw maps, before a softmax.
            tags: (N, K) multi-hot.
            saliency: (N, 1, H, W), in [0, 1], of any size.

        Raises:
            ValueError: shapes that do not go together, NaN, tags that are not 0 or 1, saliency out of range.
        """
        check_maps(cams=cams, saliency=saliency)
        if cams.shape[1] < 2 or saliency.shape[1] != 1:
            raise ValueError(
                "`cams` must have a background and classes, and `saliency` one channel, "
                f"got {tuple(cams.shape)} and {tuple(saliency.shape)}"
            )
        check_tags(tags, len(cams), cams.shape[1] - 1)
        if readable(saliency) and not bool(((saliency >= 0) & (saliency <= 1)).all()):
            low, high = float(saliency.min()), float(saliency.max())
            raise ValueError(f"`saliency` must be in [0, 1], got values in [{low:g}, {high:g}]")
        with torch.autocast(cams.device.type, enabled=False):
            size = (cams.shape[-2], cams.shape[-1])
            return functional.saliency_loss(
                cams,
                tags,
                functional.nearest_labels(saliency[:, 0], size),
                self.overlap_threshold,
                self.mixing,
                self.background,
            )
