"""From activation maps to masks."""

from .multi_scale import merge_scales, multi_scale_cams

__all__ = ["merge_scales", "multi_scale_cams"]
