"""Activation maps that follow the teacher's segmentation, on any host (CSRM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wsss_contrast.functional import confident_labels, resize, split_background, tag_probabilities
from wsss_contrast.losses import ActivationConsistency

from .taps import Tap
from .taught import TaughtRegularizer


class ActivationConsistencyCallback(TaughtRegularizer):
    """Attaches :class:`~wsss_contrast.losses.ActivationConsistency` (s2c, CSRM's Eqs. 8 and 9) to a host.

    Args:
        cams: tap of the raw activation maps.
        segmentation: tap of the (N, 1 + K, h, w) segmentation logits, the background first.
        mask_by_tags: whether the teacher's labels are of tagged classes only.
        loss: the loss with settings of your own.
        name: of the logged term and the checkpoint entry.
        kwargs: see :class:`~wsss_contrast.callbacks.TaughtRegularizer`.
    """

    term = "seg_to_cam"

    def __init__(
        self,
        cams: Tap,
        segmentation: Tap,
        mask_by_tags: bool = False,
        loss: ActivationConsistency | None = None,
        name: str = "activation_consistency",
        **kwargs: Any,
    ) -> None:
        super().__init__({"cams": cams, "segmentation": segmentation}, name=name, **kwargs)
        self.mask_by_tags = mask_by_tags
        self.loss = loss or ActivationConsistency()

    def compare(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        tags: Tensor,
        images: Tensor,
        labeled: int,
        progress: float,
        generator: torch.Generator,
    ) -> Tensor:
        size = (images.shape[-2], images.shape[-1])
        plain = tag_probabilities(resize(teacher["segmentation"], size), tags if self.mask_by_tags else None)
        labels = confident_labels(plain, self.schedule.confidence(progress))
        cams = split_background(student["cams"], self._at.background)
        # As a network does that is trained at image resolution, the background is resized before it is joined.
        term: Tensor = self.loss(cams, resize(student["segmentation"], size)[:, :1], labels)
        return term
