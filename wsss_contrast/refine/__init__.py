"""From activation maps to masks."""

from .by_name import refiner
from .dense_crf import CRF_SETTINGS, CRFSettings, DenseCRF, hard_unaries, mean_field, soft_unaries
from .multi_scale import merge_scales, multi_scale_cams, multi_scale_logits, stream
from .pixel_adaptive import PixelAdaptiveRefinement
from .processes import WorkerError
from .pseudo_labels import Refiner, pseudo_labels
from .sepl import SEPL

__all__ = [
    "CRF_SETTINGS",
    "SEPL",
    "CRFSettings",
    "DenseCRF",
    "PixelAdaptiveRefinement",
    "Refiner",
    "WorkerError",
    "hard_unaries",
    "mean_field",
    "merge_scales",
    "multi_scale_cams",
    "multi_scale_logits",
    "pseudo_labels",
    "refiner",
    "soft_unaries",
    "stream",
]
