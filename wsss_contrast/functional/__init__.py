"""Every formula once: pure tensor functions that need torch only."""

from .classification import global_average_pool, multilabel_soft_margin
from .contrast import (
    IGNORE,
    all_negatives,
    assign_pixels,
    candidate_scores,
    candidate_scores_official,
    estimate_prototypes,
    merge_candidates,
    pixel_to_prototype_nll,
    sample_pixels,
    sample_pixels_official,
    semi_hard_negatives,
    semi_hard_negatives_official,
    top_candidates,
)
from .maps import (
    full_precision,
    mask_by_tags,
    max_normalize,
    normalize_cams,
    resize,
    split_background,
    with_background,
)
from .pixel_adaptive import neighbour_offsets, pixel_affinity, propagate
from .seam import (
    correlation_input,
    equivariant_cross_regularization,
    equivariant_regularization,
    min_pooling,
    pixel_correlation,
    suppress_non_maximum,
)
from .views import valid_pixels, view_matrix, warp

__all__ = [
    "IGNORE",
    "all_negatives",
    "assign_pixels",
    "candidate_scores",
    "candidate_scores_official",
    "correlation_input",
    "equivariant_cross_regularization",
    "equivariant_regularization",
    "estimate_prototypes",
    "full_precision",
    "global_average_pool",
    "mask_by_tags",
    "max_normalize",
    "merge_candidates",
    "min_pooling",
    "multilabel_soft_margin",
    "neighbour_offsets",
    "normalize_cams",
    "pixel_affinity",
    "pixel_correlation",
    "pixel_to_prototype_nll",
    "propagate",
    "resize",
    "sample_pixels",
    "sample_pixels_official",
    "semi_hard_negatives",
    "semi_hard_negatives_official",
    "split_background",
    "suppress_non_maximum",
    "top_candidates",
    "valid_pixels",
    "view_matrix",
    "warp",
    "with_background",
]
