"""From activation maps to masks."""

from .dense_crf import dense_crf
from .multi_scale import merge_scales, multi_scale_cams

__all__ = ["dense_crf", "merge_scales", "multi_scale_cams"]
