"""Callbacks to hang on a ``Trainer``."""

from .mask_writer import MaskWriter
from .optimizers import OptimizerError
from .prototype_contrast import PrototypeContrastCallback
from .regularizer import RegularizerCallback
from .taps import TapError

__all__ = ["MaskWriter", "OptimizerError", "PrototypeContrastCallback", "RegularizerCallback", "TapError"]
