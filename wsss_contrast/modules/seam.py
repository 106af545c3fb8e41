"""SEAM: self-supervised equivariant attention (CVPR 2020)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from wsss_contrast.functional import resize, split_background
from wsss_contrast.losses import EquivariantCrossRegularization, EquivariantRegularization, MinPooling
from wsss_contrast.nn import PixelCorrelationModule

from .cam import CAM


class SEAM(CAM):
    """SEAM over any timm backbone: two views of a photo, a pixel correlation module, and the losses ER and ECR.

    The loss is Eq. 6 of the paper: classification (with the released code's min-pooling term) + ER + ECR, all weights
    1, at image resolution. Seeds are the refined maps. Arguments, batches and validation are those of
    :class:`~wsss_contrast.modules.CAM`.

    Args:
        num_classes: K, foreground classes.
        view_size: side of the target view in pixels, to which the whole training crop is resized (PPC: 128 of 448).
        kwargs: see :class:`~wsss_contrast.modules.CAM`.
    """

    def __init__(self, num_classes: int, view_size: int = 128, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        self.save_hyperparameters()
        if view_size < 1:
            raise ValueError(f"`view_size` must be at least 1, got {view_size}")
        self.view_size = view_size
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

    def refined(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Raw maps (N, K, h, w) and refined maps (N, 1 + K, h, w), background first."""
        features, low = self.backbone(images)
        cams = self.classifier(self.dropout(features))
        return cams, self.pcm(cams, images, low)

    def seed_maps(self, images: Tensor) -> Tensor:
        return split_background(self.refined(images)[1], 0)

    def training_step(self, batch: dict[str, Any]) -> Tensor:
        images, tags = batch["image"], batch["tags"]
        cams, refined = [], []
        for view in (images, resize(images, (self.view_size, self.view_size))):
            size = (view.shape[-2], view.shape[-1])
            raw, spread = self.refined(view)
            cams.append(resize(raw, size))
            refined.append(resize(spread, size))
        losses = {
            "classification": (self.classification(cams[0], tags) + self.classification(cams[1], tags)) / 2,
            "min_pooling": sum(self.min_pooling(split_background(maps, 0), tags) for maps in refined) / 2,
            "er": self.equivariant(cams[0], cams[1], tags),
            "ecr": self.equivariant_cross(cams[0], refined[0], cams[1], refined[1], tags),
        }
        self.log_dict({f"train/{name}": value for name, value in losses.items()})
        loss = sum(losses.values())
        assert isinstance(loss, Tensor)
        self.log("train/loss", loss, prog_bar=True)
        return loss
