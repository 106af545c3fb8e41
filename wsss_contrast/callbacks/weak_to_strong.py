"""Segmentation that follows the teacher's, on any host (CSRM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wsss_contrast.functional import best_class, entropy, resize, tag_probabilities
from wsss_contrast.losses import WeakToStrong

from .taps import Tap
from .taught import TaughtRegularizer


class WeakToStrongCallback(TaughtRegularizer):
    """Attaches :class:`~wsss_contrast.losses.WeakToStrong` (CSRM's Eqs. 10 to 12) to a host.

    The teacher labels the unlabelled images of the batch, as they are. To show it a weaker augmentation of the same
    geometry, override :meth:`~wsss_contrast.callbacks.TaughtRegularizer.teach`.

    Args:
        segmentation: tap of the (N, 1 + K, h, w) segmentation logits, the background first.
        mask_by_tags: whether the teacher's labels are of tagged classes only.
        loss: the loss with settings of your own.
        name: of the logged term and the checkpoint entry.
        kwargs: see :class:`~wsss_contrast.callbacks.TaughtRegularizer`.
    """

    term = "weak_to_strong"

    def __init__(
        self,
        segmentation: Tap,
        mask_by_tags: bool = False,
        loss: WeakToStrong | None = None,
        name: str = "weak_to_strong",
        **kwargs: Any,
    ) -> None:
        super().__init__({"segmentation": segmentation}, name=name, **kwargs)
        self.mask_by_tags = mask_by_tags
        self.loss = loss or WeakToStrong()

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
        logits = resize(teacher["segmentation"], (images.shape[-2], images.shape[-1]))[labeled:]
        labels = best_class(tag_probabilities(logits, tags[labeled:] if self.mask_by_tags else None))
        uncertainty = entropy(tag_probabilities(logits, None))
        share = self.schedule.unreliable_share(progress)
        term: Tensor = self.loss(student["segmentation"][labeled:], labels, uncertainty, share)
        return term
