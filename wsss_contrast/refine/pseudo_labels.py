"""Pseudo-labels from activation maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from wsss_contrast.functional import (
    NO_LABEL,
    best_class,
    full_precision,
    power_background,
    present_classes,
    with_background,
)
from wsss_contrast.functional.maps import EPS


class Refiner(Protocol):
    """What moves the borders of masks to those of the photo: any function or object that is called like this.

    One with an attribute ``keeps_constants`` that is true refines each class by itself and leaves a constant as it is:
    it is called once for two thresholds. One with an attribute ``concurrency`` above 1 may be called from that many
    threads at once; :class:`~wsss_contrast.callbacks.MaskWriter` does so. One with an attribute ``wants_names`` that is
    true is called with ``names`` as well, the photos' names.
    """

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
    soft: bool = False,
    names: Sequence[str] | None = None,
) -> Tensor:
    """Labels of normalised maps.

    The background competes with the maps of the tagged classes as a constant score: once low, once high (IRN; CSRM,
    Sec. 3.1). Both are refined, and a pixel gets its best class. Where even the high one loses, the label is the
    class; where even the low one wins, it is background; between them it is 255.

    Soft labels are distributions over the classes. Here the score of the background falls with that of the best class,
    to 0 at 1, and equals it at the high threshold. It is refined with the maps, and the thresholds come after: a pixel
    counts where the best class is the likeliest and exceeds the high one, or none exceeds the low one. CSRM's Eq. 6
    reads as soft labels thresholded after the CRF; its released code has the hard ones.

    Args:
        photos: (N, 3, H, W), uint8 from 0 to 255. Only a refiner needs them.
        cams: (N, K, H, W), 0 to 1 in each map: of :func:`~wsss_contrast.refine.multi_scale_cams`, or
            :func:`~wsss_contrast.functional.max_normalize`.
        tags: (N, K) multi-hot. A photo without a tag is all background.
        background_threshold: the low score of the background, in [0, 1).
        foreground_threshold: the high one; by default the same, and no pixel is 255.
        refine: a refiner, see :class:`Refiner`.
        soft: give soft labels.
        names: of the photos. Only a refiner that wants names needs them.

    Returns:
        (N, H, W), int64. 0 is background, 1 to K are the classes, 255 is neither. Ties go to the lowest. If
        ``soft``, (N, 1 + K, H, W), the background first, which adds up to 1 at a pixel that counts and is 0 at others.

    Raises:
        ValueError: thresholds that are not 0 <= low <= high < 1, tensors that do not go together, no names for a
            refiner that wants them, or NaN in the maps (looked for on the CPU only).
    """
    high = background_threshold if foreground_threshold is None else foreground_threshold
    if not 0 <= background_threshold <= high < 1:
        raise ValueError(f"thresholds must be 0 <= low <= high < 1, got {background_threshold} and {high}")
    cams, present = check_maps(photos, cams, tags, refine, names)
    if soft:
        cams = cams.masked_fill(~present[:, 1:, None, None], 0)
        scores = with_background(cams, max(high, EPS) / (1 - high) * power_background(cams, 1))
        if refine is not None:
            (scores,) = refined(refine, photos, [scores], present, names)
            scores = scores.clamp(min=0).masked_fill(~present[:, :, None, None], 0)
        background, best = scores[:, :1], scores[:, 1:].amax(dim=1, keepdim=True)
        total = scores.sum(dim=1, keepdim=True)
        counts = (((best > high) & (best > background)) | (best <= background_threshold)) & (total > 0)
        return torch.where(counts, scores / total, 0)

    def against(threshold: float) -> Tensor:
        return with_background(cams, torch.full_like(cams[:, :1], threshold))

    thresholds = [high] if high == background_threshold else [high, background_threshold]
    if refine is not None and getattr(refine, "keeps_constants", False):
        cams, refine = refined(refine, photos, [against(high)], present, names)[0][:, 1:], None
    of_thresholds = [against(threshold) for threshold in thresholds]
    if refine is not None:
        of_thresholds = refined(refine, photos, of_thresholds, present, names)
    labels = [best_class(scores, present) for scores in of_thresholds]
    foreground, background = labels[0], labels[-1]
    return torch.where(foreground > 0, foreground, torch.where(background == 0, 0, NO_LABEL))


def check_maps(
    photos: Tensor, cams: Tensor, tags: Tensor, refine: Refiner | None, names: Sequence[str] | None
) -> tuple[Tensor, Tensor]:
    """The maps without negative values, and the classes present; raises where something does not go together."""
    if tags.shape != cams.shape[:2]:
        raise ValueError(f"`tags` must be of shape {tuple(cams.shape[:2])} like the maps, got {tuple(tags.shape)}")
    if refine is not None and (photos.dtype != torch.uint8 or photos.shape != (len(cams), 3, *cams.shape[2:])):
        raise ValueError(
            f"`photos` must be uint8 and of shape {(len(cams), 3, *cams.shape[2:])}, "
            f"got {photos.dtype} and {tuple(photos.shape)}"
        )
    if getattr(refine, "wants_names", False) and (names is None or len(names) != len(cams)):
        raise ValueError(f"the refiner {refine!r} wants the names of {len(cams)} photos, got {names}")
    if cams.device.type == "cpu" and bool(cams.isnan().any()):
        raise ValueError("`cams` have NaN values")
    return full_precision(cams).clamp(min=0), present_classes(tags)


def refined(
    refine: Refiner, photos: Tensor, scores: Sequence[Tensor], present: Tensor, names: Sequence[str] | None
) -> list[Tensor]:
    """Several scores of the same photos, refined together: one with processes uses them for a single photo, too."""
    times = len(scores)
    more: dict[str, Any] = {"names": [*(names or ())] * times} if getattr(refine, "wants_names", False) else {}
    all_scores = refine(photos.repeat(times, 1, 1, 1), torch.cat([*scores]), present.repeat(times, 1), **more)
    return list(all_scores.tensor_split(times))
