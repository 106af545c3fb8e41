"""Metrics of the field's protocol."""

from .seed_miou import THRESHOLDS, SeedCurve, SeedMIoU
from .segmentation import SegmentationScores, segmentation_scores

__all__ = ["THRESHOLDS", "SeedCurve", "SeedMIoU", "SegmentationScores", "segmentation_scores"]
