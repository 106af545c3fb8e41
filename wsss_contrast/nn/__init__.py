"""Parts with weights. ``Projector`` and ``PixelCorrelationModule`` need torch only; ``TimmBackbone`` needs timm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .pixel_correlation import PixelCorrelationModule
from .projector import Projector

if TYPE_CHECKING:
    from .backbone import TimmBackbone

__all__ = ["PixelCorrelationModule", "Projector", "TimmBackbone"]


def __getattr__(name: str) -> Any:
    if name == "TimmBackbone":  # imported on first use, so that the other parts do not need timm
        from .backbone import TimmBackbone

        return TimmBackbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
