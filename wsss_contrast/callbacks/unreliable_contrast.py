"""The contrast of unreliable pixels, on any host (CSRM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from wsss_contrast.data import as_photos
from wsss_contrast.functional import (
    best_class,
    mask_by_tags,
    max_normalize,
    resize,
    split_background,
    tag_probabilities,
)
from wsss_contrast.losses import UnreliablePixelContrast
from wsss_contrast.nn import EMATeacher
from wsss_contrast.refine import Refiner, pseudo_labels

from .taps import Tap
from .taught import TaughtRegularizer


class _Parts(nn.Module):
    """The representation head, its teacher, and the loss with its memory."""

    def __init__(self, head: nn.Module, loss: UnreliablePixelContrast) -> None:
        super().__init__()
        self.head = head
        self.teacher = EMATeacher(head)
        self.loss = loss


class UnreliablePixelContrastCallback(TaughtRegularizer):
    """Attaches :class:`~wsss_contrast.losses.UnreliablePixelContrast` (CSRM's Eq. 13) to a host.

    Labelled images get pseudo-labels from the teacher's activation maps
    (:func:`~wsss_contrast.refine.pseudo_labels`), the others the teacher's own. The teacher of the representation head
    follows with the decay of the host's teacher.

    Args:
        loss: the contrast; its memory is saved in checkpoints.
        features: tap of the (N, in_channels, h, w) features for a representation head, which the callback makes and
            trains; or of a representation (N, D, h, w) that the host makes itself, without ``in_channels``.
        cams: tap of the raw activation maps.
        segmentation: tap of the (N, 1 + K, h, w) segmentation logits, the background first, of the features' size.
        in_channels: width of the features.
        background_threshold: of the pseudo-labels.
        foreground_threshold: of the pseudo-labels.
        refine: refines them, see :class:`~wsss_contrast.refine.Refiner`.
        mask_labels_by_tags: whether the teacher's labels are of tagged classes only.
        name: of the logged term and the checkpoint entry.
        kwargs: see :class:`~wsss_contrast.callbacks.TaughtRegularizer`.
    """

    term = "contrast"

    def __init__(
        self,
        loss: UnreliablePixelContrast,
        features: Tap,
        cams: Tap,
        segmentation: Tap,
        in_channels: int | None = None,
        background_threshold: float = 0.05,
        foreground_threshold: float = 0.35,
        refine: Refiner | None = None,
        mask_labels_by_tags: bool = False,
        name: str = "unreliable_contrast",
        **kwargs: Any,
    ) -> None:
        taps = {"features": features, "cams": cams, "segmentation": segmentation}
        super().__init__(taps, in_channels=in_channels, name=name, **kwargs)
        self.loss = loss
        self.delta = (background_threshold, foreground_threshold)
        self.refine = refine
        self.mask_labels_by_tags = mask_labels_by_tags
        self._step = 0

    def build(self, in_channels: int) -> nn.Module:
        dim = self.loss.bank.embedding_dim
        head: nn.Module = nn.Identity()
        if in_channels:
            layers = [
                nn.Conv2d(in_channels, dim, 3, padding=1, bias=False),
                nn.GroupNorm(4, dim),
                nn.ReLU(inplace=True),
            ]
            head = nn.Sequential(*layers, nn.Conv2d(dim, dim, 1))
        return _Parts(head, self.loss)

    def _empty(self, tags: Tensor) -> dict[str, Tensor]:
        empty = super()._empty(tags)
        # A host that makes the representation itself has the memory's width.
        width = self._width or self.loss.bank.embedding_dim
        return empty | {"features": tags.new_zeros((0, width, 1, 1), dtype=torch.float32)}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        host_teacher = self.teacher_of(pl_module)
        if trainer.global_step > self._step and isinstance(self.parts, _Parts):
            self._step = trainer.global_step
            mine = self.parts.teacher
            mine.decay, mine.copy_steps, mine.ramp_start = (
                host_teacher.decay,
                host_teacher.copy_steps,
                host_teacher.ramp_start,
            )
            mine.update(self.parts.head, self._step)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._step = trainer.global_step

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
        parts: Any = self.parts
        size = (images.shape[-2], images.shape[-1])
        with torch.no_grad():
            known = tags if self.mask_labels_by_tags else None
            labels = best_class(tag_probabilities(resize(teacher["segmentation"], size), known))
            if labeled:
                cams = split_background(teacher["cams"], self._at.background)[:labeled]
                maps = max_normalize(resize(mask_by_tags(cams, tags[:labeled]), size))
                photos = as_photos(images[:labeled])
                labels[:labeled] = pseudo_labels(photos, maps, tags[:labeled], *self.delta, refine=self.refine)
            theirs = parts.teacher(teacher["features"])
        term: Tensor = parts.loss(
            parts.head(student["features"]),
            theirs,
            teacher["segmentation"],
            labels,
            tags,
            torch.arange(len(tags), device=tags.device) < labeled,
            self.schedule.unreliable_share(progress),
            generator=generator,
        )
        return term
