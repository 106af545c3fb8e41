"""From activation maps to masks."""

from .by_name import label_maker, refiner
from .dense_crf import CRF_SETTINGS, CRFSettings, DenseCRF, hard_unaries, mean_field, soft_unaries
from .multi_scale import merge_scales, multi_scale_cams, multi_scale_logits, stream
from .pixel_adaptive import PixelAdaptiveRefinement
from .processes import WorkerError
from .pseudo_labels import Refiner, pseudo_labels
from .random_walk import IRN, PSA
from .sepl import SEPL
from .sure_labels import LABELS, irn_labels, psa_labels

__all__ = [
    "CRF_SETTINGS",
    "IRN",
    "LABELS",
    "PSA",
    "SEPL",
    "CRFSettings",
    "DenseCRF",
    "PixelAdaptiveRefinement",
    "Refiner",
    "WorkerError",
    "hard_unaries",
    "irn_labels",
    "label_maker",
    "mean_field",
    "merge_scales",
    "multi_scale_cams",
    "multi_scale_logits",
    "psa_labels",
    "pseudo_labels",
    "refiner",
    "soft_unaries",
    "stream",
]
