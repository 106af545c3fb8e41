"""EPS's saliency loss on any host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn

from wsss_contrast.losses import SaliencyLoss

from .regularizer import RegularizerCallback, entry
from .taps import Layout, Tap, TapError


class SaliencyCallback(RegularizerCallback):
    """Attaches :class:`~wsss_contrast.losses.SaliencyLoss` (EPS, CVPR 2021) to a host whose maps have a background.

    The batch has a saliency map for each image, as the data modules give it with a folder ``saliency``.
    Taps, names and errors are described at :class:`~wsss_contrast.callbacks.RegularizerCallback`.

    Args:
        cams: tap of the raw activation maps (N, 1 + K, h, w), before a softmax; they get the gradient.
        background: where they carry the background: 0 (first) or -1 (last).
        saliency: key of the saliency maps (N, 1, H, W), in [0, 1], in the batch.
        labels: key of the tags in the batch.
        images: key of the images.
        layout: order of the maps' dimensions.
        warmup_steps: the term is multiplied by 0 before that many optimiser steps.
        backward: see :class:`~wsss_contrast.callbacks.RegularizerCallback`.
        loss: the loss with settings of your own, of the same ``background``.
        name: of the logged term and the checkpoint entry.
    """

    views = 1

    def __init__(
        self,
        cams: Tap,
        background: Literal[0, -1] = -1,
        saliency: str | int = "saliency",
        labels: str | int = "tags",
        images: str | int = "image",
        layout: Layout = "NCHW",
        warmup_steps: int = 0,
        backward: int | None = None,
        loss: SaliencyLoss | None = None,
        name: str = "saliency",
    ) -> None:
        super().__init__(
            {"cams": cams},
            labels=labels,
            images=images,
            background=background,
            layout=layout,
            warmup_steps=warmup_steps,
            backward=backward,
            name=name,
        )
        self.saliency = saliency
        self.loss = loss or SaliencyLoss(background=background)
        if self.loss.background != background:
            raise ValueError(f"`background` is {background} here, but {self.loss.background} of `loss`")
        self._maps: Tensor | None = None

    def build(self, in_channels: int) -> nn.Module:
        return nn.Module()

    def attach(self, module: L.LightningModule) -> None:
        super().attach(module)
        if self._linear is not None:
            raise TapError(f"{self.state_key}: `cams` taps a linear layer, whose maps get no gradient")

    def before_step(self, module: L.LightningModule, batch: Any) -> None:
        self._maps = entry(batch, self.saliency, "saliency")

    def regularize(
        self, views: Sequence[Mapping[str, Tensor]], tags: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        saliency, self._maps = self._maps, None
        assert saliency is not None
        return {"saliency": self.loss(views[0]["cams"], tags, saliency[: len(tags)])}

    def _cam_layer_width(self, module: nn.Module) -> int:
        return 0  # no part is made of the CAM layer's input
