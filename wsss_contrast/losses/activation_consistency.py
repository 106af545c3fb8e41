"""Activation maps that follow the segmentation (CSRM)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsss_contrast import distributed, functional
from wsss_contrast._checks import check_labels, check_maps, check_smoothing


class ActivationConsistency(nn.Module):
    """Consistency of segmentation and activation maps: L_s2c, Eqs. 8 and 9 of CSRM (VISAPP 2025).

    The teacher's confident labels (:func:`~wsss_contrast.functional.confident_labels`) supervise the raw activation
    maps, joined by the student's background logit. Gradient flows through the activation maps only.

    Args:
        label_smoothing: share of each label that is spread over all classes, in [0, 1).

    Distributed contract: the mean over pixels is that of the joined batch; a rank returns its own share times the
    number of ranks.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        check_smoothing(label_smoothing)
        self.label_smoothing = label_smoothing

    def forward(self, cams: Tensor, background: Tensor, labels: Tensor) -> Tensor:
        """A scalar, at least 0; a zero with a graph where no pixel has a label.

        Args:
            cams: (N, K, h, w) raw activation maps, resized to the labels.
            background: (N, 1, h', w'), the student's background logit, likewise.
            labels: (N, H, W) int64 ids 0 to K, 255 for none.

        Raises:
            ValueError: shapes or types that do not go together, NaN, labels of no class.
        """
        check_maps(cams=cams, background=background)
        if background.shape[1] != 1:
            raise ValueError(f"`background` must have one channel, got {tuple(background.shape)}")
        check_labels(labels, len(cams), cams.shape[1] + 1)
        size = (labels.shape[-2], labels.shape[-1])
        with torch.autocast(cams.device.type, enabled=False):
            maps = functional.resize(functional.full_precision(cams), size)
            background = functional.resize(functional.full_precision(background.detach()), size).to(maps.dtype)
            logits = functional.with_background(maps, background)
            nll = functional.segmentation_nll(logits, labels, self.label_smoothing)
            return distributed.joined_mean(nll.sum(), (labels != functional.NO_LABEL).sum())
