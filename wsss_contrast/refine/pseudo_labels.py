"""Pseudo-labels from activation maps."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from wsss_contrast.functional import full_precision, with_background
from wsss_contrast.pictures import IGNORE


class Refiner(Protocol):
    """What moves the borders of masks to those of the photo: any function or object that is called like this."""

    def __call__(self, photos: Tensor, scores: Tensor, present: Tensor) -> Tensor:
        """Refine the scores of a batch.

        Args:
            photos: (N, 3, H, W), uint8 from 0 to 255.
            scores: (N, C, H, W), the background first, not negative.
            present: (N, C), bool: the background and the tagged classes.

        Returns:
            (N, C, H, W), scores; those of absent classes count for nothing.
        """


@torch.no_grad()
def pseudo_labels(
    photos: Tensor,
    cams: Tensor,
    tags: Tensor,
    background_threshold: float,
    foreground_threshold: float | None = None,
    refine: Refiner | None = None,
) -> Tensor:
    """Hard labels of normalised maps.

    The background competes with the maps of the tagged classes as a constant score: once low, once high (IRN; CSRM,
    Sec. 3.1). Both are refined, and a pixel gets its best class. Where even the high one loses, the label is the
    class; where even the low one wins, it is background; between them it is 255.

    Args:
        photos: (N, 3, H, W), uint8 from 0 to 255. Only a refiner needs them.
        cams: (N, K, H, W), 0 to 1 in each map: of :func:`~wsss_contrast.refine.multi_scale_cams`, or
            :func:`~wsss_contrast.functional.max_normalize`.
        tags: (N, K) multi-hot. A photo without a tag is all background.
        background_threshold: the low score of the background, in [0, 1).
        foreground_threshold: the high one; by default the same, and no pixel is 255.
        refine: a refiner, see :class:`Refiner`.

    Returns:
        (N, H, W), int64. 0 is background, 1 to K are the classes, 255 is neither. Ties go to the lowest.

    Raises:
        ValueError: thresholds that are not 0 <= low <= high < 1, or tensors that do not go together.
    """
    high = background_threshold if foreground_threshold is None else foreground_threshold
    if not 0 <= background_threshold <= high < 1:
        raise ValueError(f"thresholds must be 0 <= low <= high < 1, got {background_threshold} and {high}")
    if tags.shape != cams.shape[:2]:
        raise ValueError(f"`tags` must be of shape {tuple(cams.shape[:2])} like the maps, got {tuple(tags.shape)}")
    if refine is not None and (photos.dtype != torch.uint8 or photos.shape != (len(cams), 3, *cams.shape[2:])):
        raise ValueError(
            f"`photos` must be uint8 and of shape {(len(cams), 3, *cams.shape[2:])}, "
            f"got {photos.dtype} and {tuple(photos.shape)}"
        )
    present = torch.cat([tags.new_ones(len(tags), 1), tags], dim=1) > 0
    cams = full_precision(cams)

    def best(threshold: float) -> Tensor:
        constant = torch.full_like(cams[:, :1], threshold)
        scores = with_background(cams.clamp(min=0), constant)
        if refine is not None:
            scores = refine(photos, scores, present)
        return scores.masked_fill(~present[:, :, None, None], -torch.inf).argmax(dim=1)

    foreground = best(high)
    if high == background_threshold:
        return foreground
    background = best(background_threshold)
    return torch.where(foreground > 0, foreground, torch.where(background == 0, 0, IGNORE))
