"""SEAM: self-supervised equivariant attention (CVPR 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from wsss_contrast.data import ViewTransform
from wsss_contrast.functional import resize, split_background, valid_pixels, warp
from wsss_contrast.losses import EquivariantCrossRegularization, EquivariantRegularization, MinPooling
from wsss_contrast.nn import PixelCorrelationModule
from wsss_contrast.training import step_generator

from .cam import CAM


class SEAM(CAM):
    """SEAM over any timm backbone: two views of a photo, a pixel correlation module, and the losses ER and ECR.

    The loss is Eq. 6 of the paper: classification (with the released code's min-pooling term) + ER + ECR, all weights
    1, at image resolution. Seeds are the refined maps. Arguments, batches and validation are those of
    :class:`~wsss_contrast.modules.CAM`.

    ER compares maps that are scaled to a maximum of 1, so its gradient grows as the maps shrink: at the start it can
    hold back a classifier that knows nothing yet. The papers train for 10,000 steps and more; a short run may need
    ``warmup_steps``.

    Args:
        num_classes: K, foreground classes.
        view_size: side of the target view in pixels, to which the whole training crop is resized (PPC: 128 of 448).
        view_flip: mirror the target view, every other time (PPC, Table 7).
        view_degrees: rotate it by up to that many degrees. Pixels outside of the crop take no part in a loss.
        view_translate: shift it by up to that many pixels of the crop.
        warmup_steps: ER is multiplied by 0 before that many optimiser steps. The other terms that SEAM adds train its
            correlation module alone and are on from the start.
        kwargs: see :class:`~wsss_contrast.modules.CAM`.
    """

    def __init__(
        self,
        num_classes: int,
        view_size: int = 128,
        view_flip: bool = False,
        view_degrees: float = 0.0,
        view_translate: float = 0.0,
        warmup_steps: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        self.save_hyperparameters()
        if warmup_steps < 0:
            raise ValueError(f"`warmup_steps` must not be negative, got {warmup_steps}")
        self.warmup_steps = warmup_steps
        self.view = ViewTransform(view_size, view_flip, view_degrees, view_translate)
        self.view_matrix: Tensor | None = None  # of the last step's target view, for regularizers
        self.pcm = PixelCorrelationModule(self.backbone.low_channels)
        self.equivariant = EquivariantRegularization()
        self.equivariant_cross = EquivariantCrossRegularization()
        self.min_pooling = MinPooling()

    @property
    def heads(self) -> list[nn.Module]:
        return [self.classifier, self.pcm]

    @property
    def regularizer_taps(self) -> dict[str, Any]:
        return super().regularizer_taps | {"cams": "pcm", "background": 0}

    def refined(self, images: Tensor, matrix: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Raw maps (N, K, h, w) and refined maps (N, 1 + K, h, w), background first.

        ``matrix`` (N, 2, 3) is that of a moved view, whose pixels outside of the photo are left out.
        """
        features, low = self.backbone(images)
        cams = self.classifier(self.dropout(features))
        valid = None if matrix is None else valid_pixels(matrix, (cams.shape[-2], cams.shape[-1]))
        return cams, self.pcm(cams, images, low, valid)

    def seed_maps(self, images: Tensor) -> Tensor:
        return split_background(self.refined(images)[1], 0)

    def training_step(self, batch: dict[str, Any]) -> Tensor:
        images, tags = batch["image"], batch["tags"]
        trained = self._trainer is not None
        draws = step_generator(self.trainer, self.seed, images.device) if trained else None
        target, self.view_matrix = self.view(images, draws)
        source, moved = self.refined(images), self.refined(target, self.view_matrix)
        losses = self._losses(source, moved, tags, _size(images), _size(target))
        self.log_dict({f"train/{name}": value for name, value in losses.items()})
        losses["er"] = losses["er"] * float(self.global_step >= self.warmup_steps)
        loss = sum(losses.values())
        assert isinstance(loss, Tensor)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _losses(
        self,
        source: Sequence[Tensor],
        target: Sequence[Tensor],
        tags: Tensor,
        source_size: tuple[int, int],
        target_size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """All four are of maps at the size of the photos: raw and refined ones of two views."""
        sizes: tuple[tuple[int, int], tuple[int, int]] | None = (source_size, target_size)
        valid, seen = None, source
        if self.view_matrix is not None:  # the source's maps as the target view has them
            source = [resize(maps, source_size) for maps in source]
            target = [resize(maps, target_size) for maps in target]
            seen = [warp(maps, self.view_matrix, target_size)[0] for maps in source]
            sizes, valid = None, valid_pixels(self.view_matrix, target_size)
        first, second = sizes or (None, None)
        classification = self.classification(source[0], tags, size=first)
        min_pooling = self.min_pooling(split_background(source[1], 0), tags, size=first)
        return {
            "classification": (classification + self.classification(target[0], tags, valid, second)) / 2,
            "min_pooling": (min_pooling + self.min_pooling(split_background(target[1], 0), tags, valid, second)) / 2,
            "er": self.equivariant(seen[0], target[0], tags, valid, sizes),
            "ecr": self.equivariant_cross(*seen, *target, tags, valid, sizes),
        }


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]
