"""EPS: explicit pseudo-pixel supervision by saliency maps (CVPR 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from wsss_contrast.data import DataError
from wsss_contrast.functional import split_background
from wsss_contrast.losses import SaliencyLoss

from .cam import CAM


def _probabilities(outputs: Mapping[str, Any]) -> Tensor:
    maps: Tensor = outputs["classifier"]
    return maps.softmax(dim=1)


class EPS(CAM):
    """EPS over any timm backbone: maps of the classes and of the background add up to a saliency map.

    The classifier has a channel more, the last, for the background. The loss is classification of the classes + the
    saliency loss. Seeds are the classes' probabilities, each map over its largest value. Batches have ``saliency``
    (N, 1, H, W), in [0, 1], beside what those of :class:`~wsss_contrast.modules.CAM` have; data modules of this library
    give it with a folder ``saliency``. Validation and prediction need none.

    Logged: ``train/classification``, ``train/saliency``, ``train/loss``.

    Args:
        num_classes: K, foreground classes.
        overlap_threshold: tau, see :class:`~wsss_contrast.losses.SaliencyLoss`.
        mixing: lambda: 0.5 for VOC, 0.9 for COCO.
        dropout: see :class:`~wsss_contrast.modules.CAM`; EPS has none.
        kwargs: see :class:`~wsss_contrast.modules.CAM`.
    """

    background: Literal[-1] = -1
    normalize = "max"

    def __init__(
        self,
        num_classes: int,
        overlap_threshold: float = 0.4,
        mixing: float = 0.5,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, dropout=dropout, **kwargs)
        self.save_hyperparameters()
        self.saliency = SaliencyLoss(overlap_threshold, mixing, self.background)

    @property
    def regularizer_taps(self) -> dict[str, Any]:
        """As of CAM; the maps are probabilities, which seeds are made of, too."""
        return super().regularizer_taps | {"cams": _probabilities}

    def seed_maps(self, images: Tensor) -> Tensor:
        return split_background(self(images).softmax(dim=1), self.background)

    def training_step(self, batch: dict[str, Any]) -> Tensor:
        if "saliency" not in batch:
            raise DataError("EPS learns from saliency maps, and the batch has none: give the data a folder `saliency`")
        cams, tags = self(batch["image"]), batch["tags"]
        losses = {
            "classification": self.classification(split_background(cams, self.background), tags),
            "saliency": self.saliency(cams, tags, batch["saliency"]),
        }
        self.log_dict({f"train/{name}": value for name, value in losses.items()})
        loss: Tensor = losses["classification"] + losses["saliency"]
        self.log("train/loss", loss, prog_bar=True)
        return loss
