"""Parts with weights or state. Backbones and what is made of them need timm; the others need torch only."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .affinity_head import AffinityHead, AffinityNetwork
from .attention_affinity import AttentionAffinityHead
from .deeplab import DeepLabV3PlusHeads
from .ema_teacher import EMATeacher
from .inter_pixel_heads import DisplacementHead, EdgeHead, InterPixelNetwork
from .memory_bank import ClassMemoryBank
from .pixel_correlation import PixelCorrelationModule
from .projector import Projector

if TYPE_CHECKING:
    from .backbone import TimmBackbone
    from .resnet38d import ResNet38d, convert_mxnet_weights
    from .segmentation import DeepLab, DeepLabV3Plus, LargeFOVHead, SummedASPPHead

__all__ = [
    "AffinityHead",
    "AffinityNetwork",
    "AttentionAffinityHead",
    "ClassMemoryBank",
    "DeepLab",
    "DeepLabV3Plus",
    "DeepLabV3PlusHeads",
    "DisplacementHead",
    "EMATeacher",
    "EdgeHead",
    "InterPixelNetwork",
    "LargeFOVHead",
    "PixelCorrelationModule",
    "Projector",
    "ResNet38d",
    "SummedASPPHead",
    "TimmBackbone",
    "convert_mxnet_weights",
]

_OF_TIMM = {
    "ResNet38d": "resnet38d",
    "TimmBackbone": "backbone",
    "convert_mxnet_weights": "resnet38d",
    **dict.fromkeys(("DeepLab", "DeepLabV3Plus", "LargeFOVHead", "SummedASPPHead"), "segmentation"),
}
"""Where those are that need timm. They are imported on first use, so that the other parts do not need it."""


def __getattr__(name: str) -> Any:
    if name in _OF_TIMM:
        return getattr(import_module(f".{_OF_TIMM[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
