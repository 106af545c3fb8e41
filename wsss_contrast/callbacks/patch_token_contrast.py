"""ToCo's contrast of patch tokens on any vision transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wsss_contrast.functional import mask_by_tags, multilabel_soft_margin, nearest_labels, normalize_cams
from wsss_contrast.losses import PatchTokenContrast
from wsss_contrast.refine import pseudo_labels

from .regularizer import RegularizerCallback
from .taps import Tap


class _Parts(nn.Module):
    """The classifier of the middle layer, whose activation maps are the labels."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1, bias=False)
        nn.init.xavier_uniform_(self.classifier.weight)


class PatchTokenContrastCallback(RegularizerCallback):
    """Attaches :class:`~wsss_contrast.losses.PatchTokenContrast` (ToCo, CVPR 2023) to a vision transformer.

    A classifier on the tokens of a middle layer is added, and trained from the tags. Where its activation maps are
    sure, their labels are those of the last layer's tokens.

    Logged: ``auxiliary``, the classification loss of the middle layer; ``positive`` and ``negative`` with their weight.

    Args:
        features: tap of the last layer's tokens.
        middle: tap of a middle layer's tokens; in ToCo the tenth of twelve.
        num_classes: K.
        in_channels: width of the middle layer's tokens.
        background_threshold: a token none of whose classes exceeds it is background.
        foreground_threshold: a token of which a class exceeds it is of that class; others have no label.
        weight: of the contrast.
        labels: key of the tags in the batch.
        images: key of the images.
        name: of the logged terms and the checkpoint entry.
        kwargs: see :class:`~wsss_contrast.callbacks.RegularizerCallback`; ``layout`` is ``"NLC"`` here.
    """

    views = 1

    def __init__(
        self,
        features: Tap,
        middle: Tap,
        num_classes: int,
        in_channels: int,
        background_threshold: float = 0.25,
        foreground_threshold: float = 0.7,
        weight: float = 0.2,
        labels: str | int = "tags",
        images: str | int = "image",
        name: str = "patch_token_contrast",
        **kwargs: Any,
    ) -> None:
        taps = {"features": features, "middle": middle}
        given: dict[str, Any] = {"layout": "NLC", **kwargs}
        super().__init__(taps, labels=labels, images=images, in_channels=in_channels, name=name, **given)
        if not 0 <= background_threshold <= foreground_threshold < 1:
            raise ValueError(
                "thresholds must be 0 <= background <= foreground < 1, "
                f"got {background_threshold} and {foreground_threshold}"
            )
        self.num_classes = num_classes
        self.delta = (background_threshold, foreground_threshold)
        self.weight = weight
        self.loss = PatchTokenContrast()

    def build(self, in_channels: int) -> nn.Module:
        return _Parts(in_channels, self.num_classes)

    def regularize(
        self, views: Sequence[Mapping[str, Tensor]], tags: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        parts: Any = self.parts
        features, middle = views[0]["features"], views[0]["middle"]
        cams = parts.classifier(middle)
        with torch.no_grad():
            maps = mask_by_tags(normalize_cams(cams), tags)
            labels = pseudo_labels(maps, maps, tags, *self.delta)
            labels = nearest_labels(labels, (features.shape[-2], features.shape[-1]))
        terms = {name: term * self.weight for name, term in self.loss(features, labels).items()}
        # The largest value of a map, as ToCo pools, and not its mean.
        return {"auxiliary": multilabel_soft_margin(cams.amax(dim=(2, 3)), tags), **terms}

    def _empty(self, tags: Tensor) -> dict[str, Tensor]:
        empty = super()._empty(tags)
        return dict.fromkeys(self._at.taps, empty["features"])
