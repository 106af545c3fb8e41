"""Pixel-to-prototype contrast attached to any host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wsss_contrast.functional import split_background, warp
from wsss_contrast.losses import PrototypeContrast
from wsss_contrast.nn import Projector

from .regularizer import RegularizerCallback
from .taps import Layout, Tap


class _Parts(nn.Module):
    """The projector and the loss, as one submodule of the host."""

    def __init__(self, projector: Projector, loss: PrototypeContrast) -> None:
        super().__init__()
        self.projector = projector
        self.loss = loss


class PrototypeContrastCallback(RegularizerCallback):
    """Attaches pixel-to-prototype contrast (PPC, CVPR 2022) to a host.

    ``Trainer(callbacks=[PrototypeContrastCallback()])`` is enough for the modules of this library. A host that
    forwards two views is tapped twice; for a host that forwards one, the second view is made. Taps, names and errors
    are described at :class:`~wsss_contrast.callbacks.RegularizerCallback`.

    Args:
        features: tap of the (N, C, h, w) features that the CAM layer reads.
        cams: tap of the activation maps, raw or refined. No gradient reaches them. Neither: the host's own taps (all
            modules of this library declare them).
        labels: key of the tags in the batch.
        images: key of the images.
        background: whether and where ``cams`` carry a background channel: ``None``, 0 or -1.
        layout: order of the maps' dimensions.
        in_channels: width of ``features``; by default that of the CAM layer's input.
        embedding_dim: D, width of the projector.
        lr_factor: rate of the projector over that of the tapped CAM layer.
        view_size: side of the second view in pixels, for a host that forwards one.
        view_flip: mirror that view, every other time. Refused where the host forwards two views.
        view_degrees: rotate it by up to that many degrees. Pixels outside of the photo take no part in the loss.
        view_translate: shift it by up to that many pixels of the first view.
        warmup_steps: the terms are multiplied by 0 before that many optimiser steps. The paper has no warm-up and
            trains for 10,000 steps; in a short run the first maps are no labels yet.
        backward: see :class:`~wsss_contrast.callbacks.RegularizerCallback`.
        loss: the contrast with settings of your own; its ``background`` must be ``None``, the callback takes the
            channel off. A memory of it (``bank``) is of one class more than there are tags and of ``embedding_dim``
            columns; it is saved in checkpoints, and it fills during the warm-up, too.
        name: of the logged terms and the checkpoint entry.
        seed: of the random draws.
    """

    def __init__(
        self,
        features: Tap | None = None,
        cams: Tap | None = None,
        labels: str | int = "tags",
        images: str | int = "image",
        background: Literal[0, -1] | None = None,
        layout: Layout = "NCHW",
        in_channels: int | None = None,
        embedding_dim: int = 128,
        lr_factor: float = 1.0,
        view_size: int = 128,
        view_flip: bool = False,
        view_degrees: float = 0.0,
        view_translate: float = 0.0,
        warmup_steps: int = 0,
        backward: int | None = None,
        loss: PrototypeContrast | None = None,
        name: str = "prototype_contrast",
        seed: int = 0,
    ) -> None:
        super().__init__(
            {"features": features, "cams": cams},
            labels=labels,
            images=images,
            background=background,
            layout=layout,
            in_channels=in_channels,
            lr_factor=lr_factor,
            view_size=view_size,
            view_flip=view_flip,
            view_degrees=view_degrees,
            view_translate=view_translate,
            warmup_steps=warmup_steps,
            backward=backward,
            name=name,
            seed=seed,
        )
        self.embedding_dim = embedding_dim
        self.loss = loss or PrototypeContrast()
        if self.loss.background is not None:
            raise ValueError(
                f"`loss.background` must be None, got {self.loss.background}: say where the maps carry a background "
                "with the callback's `background`"
            )

    def build(self, in_channels: int) -> nn.Module:
        return _Parts(Projector(in_channels, self.embedding_dim), self.loss)

    def regularize(
        self, views: Sequence[Mapping[str, Tensor]], tags: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        parts: Any = self.parts
        inputs = []
        for view in views:
            width = parts.projector.in_channels
            if view["features"].shape[1] != width:
                raise ValueError(
                    f"`features` has {view['features'].shape[1]} channels, the projector was made for {width}; "
                    "pass `in_channels`, or a new callback for another host"
                )
            cams = split_background(view["cams"], self._at.background)
            if cams.shape[1] != tags.shape[1]:
                raise ValueError(
                    f"`cams` has {view['cams'].shape[1]} channels for {tags.shape[1]} tags "
                    f"with background={self._at.background}"
                )
            inputs += [parts.projector(view["features"]), cams]
        matrix, valid = views[1].get("matrix"), None
        if matrix is not None:  # the source's maps, on the target's pixels
            size = (inputs[2].shape[-2], inputs[2].shape[-1])
            inputs[0], valid = warp(inputs[0], matrix, size)
            inputs[1], _ = warp(inputs[1], matrix, size)
        terms: dict[str, Tensor] = parts.loss(
            *inputs, tags, source_valid=valid, target_valid=valid, generator=generator
        )
        return terms
