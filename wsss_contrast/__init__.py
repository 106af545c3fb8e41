"""Pluggable regularizers for weakly supervised semantic segmentation.

Import what you need from a subpackage: ``wsss_contrast.losses`` needs torch only.
"""

__version__ = "0.1.0"
