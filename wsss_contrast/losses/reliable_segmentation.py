"""Segmentation learnt from reliable pixels of pseudo-labels (CSRM)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsss_contrast import distributed, functional
from wsss_contrast._checks import check_labels, check_maps, check_smoothing


class ReliableSegmentation(nn.Module):
    """Cross-entropy over the pixels that have a pseudo-label: L_s, Eqs. 6 and 7 of CSRM (VISAPP 2025).

    An image without a pixel of a foreground class is left out.

    Args:
        label_smoothing: share of each label that is spread over all classes, in [0, 1).
        per_image: the mean over pixels is taken in each image, and then over images; otherwise over the pixels of
            all images, as the released code does.

    Distributed contract: means are those of the joined batch; a rank returns its own share times the number of ranks.
    """

    def __init__(self, label_smoothing: float = 0.0, per_image: bool = True) -> None:
        super().__init__()
        check_smoothing(label_smoothing)
        self.label_smoothing = label_smoothing
        self.per_image = per_image

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """A scalar, at least 0; a zero with a graph where no image has a foreground pixel.

        Args:
            logits: (N, C, h, w), the background first. They are resized to the labels.
            labels: (N, H, W) int64 ids, 255 for none (:func:`~wsss_contrast.refine.pseudo_labels`); or (N, C, H, W)
                floating, a distribution over classes at each pixel, all 0 for none.

        Raises:
            ValueError: shapes or types that do not go together, NaN, labels of no class.
        """
        check_maps(logits=logits)
        if isinstance(labels, Tensor) and labels.is_floating_point():
            check_maps(labels=labels)
            if labels.shape[:2] != logits.shape[:2]:
                raise ValueError(f"soft labels {tuple(labels.shape)} do not go with logits {tuple(logits.shape)}")
        else:
            check_labels(labels, len(logits), logits.shape[1])
        with torch.autocast(logits.device.type, enabled=False):
            logits = functional.resize(functional.full_precision(logits), (labels.shape[-2], labels.shape[-1]))
            nll = functional.segmentation_nll(logits, labels, self.label_smoothing)
            counted = labels.sum(dim=1) > 0 if labels.is_floating_point() else labels != functional.NO_LABEL
            counted = counted & functional.has_foreground(labels)[:, None, None]
            nll = torch.where(counted, nll, 0.0)
            if not self.per_image:
                return distributed.joined_mean(nll.sum(), counted.sum())
            pixels = counted.sum(dim=(1, 2))
            return distributed.joined_mean((nll.sum(dim=(1, 2)) / pixels.clamp_min(1)).sum(), (pixels > 0).sum())
