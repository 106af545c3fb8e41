"""Labels of the pixels that activation maps are sure of: what PSA and IRN learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wsss_contrast.functional import affinity_seeds, best_class, power_background, with_background

from .pseudo_labels import Refiner, check_maps, pseudo_labels, refined


@torch.no_grad()
def irn_labels(
    photos: Tensor,
    cams: Tensor,
    tags: Tensor,
    background_threshold: float = 0.05,
    foreground_threshold: float = 0.30,
    refine: Refiner | None = None,
    names: Sequence[str] | None = None,
) -> Tensor:
    """The labels of IRN (CVPR 2019, Sec. 4.2): :func:`~wsss_contrast.refine.pseudo_labels` with its thresholds.

    Arguments, result and errors are those of that function. The paper refines by ``DenseCRF("irn")``. Its thresholds
    are a third and twice of 0.15, the background threshold that is best for its maps; for other maps take a third and
    twice of theirs, or hardly a pixel may be background.
    """
    return pseudo_labels(photos, cams, tags, background_threshold, foreground_threshold, refine, names=names)


@torch.no_grad()
def psa_labels(
    photos: Tensor,
    cams: Tensor,
    tags: Tensor,
    low_alpha: float = 4.0,
    high_alpha: float = 24.0,
    refine: Refiner | None = None,
    names: Sequence[str] | None = None,
) -> Tensor:
    """The labels of PSA (CVPR 2018, Sec. 3.2): background and classes of which two scores of the background are sure.

    The background's score is :func:`~wsss_contrast.functional.power_background`, once with each power. Both are
    refined with the maps, a pixel gets its best class, and :func:`~wsss_contrast.functional.affinity_seeds` puts the
    two together. The paper refines by ``DenseCRF("psa")``.

    Args:
        photos: (N, 3, H, W), uint8 from 0 to 255. Only a refiner needs them.
        cams: (N, K, H, W), 0 to 1 in each map, as for :func:`~wsss_contrast.refine.pseudo_labels`.
        tags: (N, K) multi-hot. A photo without a tag is all background.
        low_alpha: of the strong background; what beats it is sure of its class.
        high_alpha: of the faint one; what it beats is sure background. SEAM's; PSA has 32.
        refine: a refiner, see :class:`~wsss_contrast.refine.Refiner`.
        names: of the photos. Only a refiner that needs names needs them.

    Returns:
        (N, H, W), int64. 0 is background, 1 to K are the classes, 255 is neither. Ties go to the lowest.

    Raises:
        ValueError: powers that are not 0 < low <= high, and what :func:`~wsss_contrast.refine.pseudo_labels` refuses.
    """
    if not 0 < low_alpha <= high_alpha:
        raise ValueError(f"powers must be 0 < low <= high, got {low_alpha} and {high_alpha}")
    cams, present = check_maps(photos, cams, tags, refine, names)
    cams = cams.masked_fill(~present[:, 1:, None, None], 0)
    scores = [with_background(cams, power_background(cams, alpha)) for alpha in (low_alpha, high_alpha)]
    if refine is not None:
        scores = refined(refine, photos, scores, present, names)
    low, high = (best_class(of_alpha, present) for of_alpha in scores)
    return affinity_seeds(low, high)


LABELS: dict[str, Callable[..., Tensor]] = {"irn": irn_labels, "psa": psa_labels}
"""By method; see :func:`~wsss_contrast.refine.label_maker`."""
