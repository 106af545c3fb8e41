"""Parts with weights or state. ``TimmBackbone`` needs timm; the others need torch only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .affinity_head import AffinityHead, AffinityNetwork
from .deeplab import DeepLabV3PlusHeads
from .ema_teacher import EMATeacher
from .inter_pixel_heads import DisplacementHead, EdgeHead, InterPixelNetwork
from .memory_bank import ClassMemoryBank
from .pixel_correlation import PixelCorrelationModule
from .projector import Projector

if TYPE_CHECKING:
    from .backbone import TimmBackbone

__all__ = [
    "AffinityHead",
    "AffinityNetwork",
    "ClassMemoryBank",
    "DeepLabV3PlusHeads",
    "DisplacementHead",
    "EMATeacher",
    "EdgeHead",
    "InterPixelNetwork",
    "PixelCorrelationModule",
    "Projector",
    "TimmBackbone",
]


def __getattr__(name: str) -> Any:
    if name == "TimmBackbone":  # imported on first use, so that the other parts do not need timm
        from .backbone import TimmBackbone

        return TimmBackbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
