"""Callbacks to hang on a ``Trainer``."""

from .activation_consistency import ActivationConsistencyCallback
from .attention_affinity import AttentionAffinityCallback, timm_attention
from .ema_teacher import EMATeacherCallback
from .mask_writer import MaskWriter
from .optimizers import OptimizerError
from .patch_token_contrast import PatchTokenContrastCallback
from .prototype_contrast import PrototypeContrastCallback
from .regularizer import RegularizerCallback
from .saliency import SaliencyCallback
from .taps import TapError
from .taught import TaughtRegularizer
from .unreliable_contrast import UnreliablePixelContrastCallback
from .weak_to_strong import WeakToStrongCallback

__all__ = [
    "ActivationConsistencyCallback",
    "AttentionAffinityCallback",
    "EMATeacherCallback",
    "MaskWriter",
    "OptimizerError",
    "PatchTokenContrastCallback",
    "PrototypeContrastCallback",
    "RegularizerCallback",
    "SaliencyCallback",
    "TapError",
    "TaughtRegularizer",
    "UnreliablePixelContrastCallback",
    "WeakToStrongCallback",
    "timm_attention",
]
