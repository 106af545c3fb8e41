"""torchmetrics metrics of the field's protocol."""

from .seed_miou import THRESHOLDS, SeedCurve, SeedMIoU

__all__ = ["THRESHOLDS", "SeedCurve", "SeedMIoU"]
