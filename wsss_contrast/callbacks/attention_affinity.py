"""AFA's affinity loss on any vision transformer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn

from wsss_contrast.data import as_photos
from wsss_contrast.functional import (
    attention_scores,
    mask_by_tags,
    nearest_labels,
    normalize_cams,
    resize,
    split_background,
)
from wsss_contrast.losses import AttentionAffinity
from wsss_contrast.nn import AttentionAffinityHead
from wsss_contrast.refine import Refiner, pseudo_labels

from .regularizer import RegularizerCallback, entry
from .taps import Tap, TapError


def timm_attention(*blocks: str) -> Callable[[Mapping[str, Any]], Tensor]:
    """A tap of the attention scores of a timm transformer's blocks, of all heads, before the softmax.

    It reads queries and keys where the block would normalise them, which fused attention passes as well. Without
    rotary embedding, which some transformers add afterwards (DINOv3).

    Args:
        blocks: their names in the host, as ``"backbone.net.blocks.11"``.
    """

    def tap(outputs: Mapping[str, Any]) -> Tensor:
        scores = [attention_scores(outputs[f"{name}.attn.q_norm"], outputs[f"{name}.attn.k_norm"]) for name in blocks]
        return torch.cat(scores, dim=1)

    return tap


class AttentionAffinityCallback(RegularizerCallback):
    """Attaches :class:`~wsss_contrast.losses.AttentionAffinity` (AFA, CVPR 2022) to a vision transformer.

    A head that makes affinity of attention is added, and learns from the pseudo-labels of the host's activation maps.
    The gradient goes through the attention into the transformer.

    Logged: ``positive`` and ``negative`` with their weight.

    Args:
        attention: tap of attention scores (N, heads, T, T), see :func:`timm_attention`.
        cams: tap of the raw activation maps. No gradient reaches them.
        heads: how many attention maps there are, of all layers tapped.
        background: whether and where ``cams`` carry a background channel: ``None``, 0 or -1.
        background_threshold: of the pseudo-labels.
        foreground_threshold: of the pseudo-labels.
        refine: refines them; AFA has :class:`~wsss_contrast.refine.PixelAdaptiveRefinement`.
        weight: of the loss.
        labels: key of the tags in the batch.
        images: key of the images.
        loss: the loss with settings of your own.
        name: of the logged terms and the checkpoint entry.
        kwargs: see :class:`~wsss_contrast.callbacks.RegularizerCallback`; ``layout`` is ``"NLC"`` here.
    """

    views = 1

    def __init__(
        self,
        attention: Tap,
        cams: Tap,
        heads: int,
        background: Literal[0, -1] | None = None,
        background_threshold: float = 0.35,
        foreground_threshold: float = 0.55,
        refine: Refiner | None = None,
        weight: float = 0.1,
        labels: str | int = "tags",
        images: str | int = "image",
        loss: AttentionAffinity | None = None,
        name: str = "attention_affinity",
        **kwargs: Any,
    ) -> None:
        given: dict[str, Any] = {"layout": "NLC", "in_channels": heads, **kwargs}
        taps = {"attention": attention, "cams": cams}
        super().__init__(taps, labels=labels, images=images, background=background, name=name, **given)
        if not 0 <= background_threshold <= foreground_threshold < 1:
            raise ValueError(
                "thresholds must be 0 <= background <= foreground < 1, "
                f"got {background_threshold} and {foreground_threshold}"
            )
        self.delta = (background_threshold, foreground_threshold)
        self.refine = refine
        self.weight = weight
        self.loss = loss or AttentionAffinity()
        self._images: Tensor | None = None

    def build(self, in_channels: int) -> nn.Module:
        return AttentionAffinityHead(in_channels)

    def attach(self, module: L.LightningModule) -> None:
        super().attach(module)
        if self._linear is not None:
            raise TapError(f"{self.state_key}: `cams` taps a linear layer; tap or compute its maps, (N, K, h, w)")

    def before_step(self, module: Any, batch: Any) -> None:
        self._images = entry(batch, self.images, "images")

    def regularize(
        self, views: Sequence[Mapping[str, Tensor]], tags: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        parts: Any = self.parts
        images, self._images = self._images, None
        assert images is not None
        images, cams = images[: len(tags)], split_background(views[0]["cams"], self._at.background)
        size = (cams.shape[-2], cams.shape[-1])
        with torch.no_grad():
            large = (images.shape[-2], images.shape[-1])
            maps = mask_by_tags(normalize_cams(resize(cams, large)), tags)
            photos = images if self.refine is None else as_photos(images)
            labels = nearest_labels(pseudo_labels(photos, maps, tags, *self.delta, refine=self.refine), size)
        affinity = parts([views[0]["attention"]], size[0] * size[1])
        return {name: term * self.weight for name, term in self.loss(affinity, labels).items()}
