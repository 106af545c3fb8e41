"""Scores of masks from a confusion matrix."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class SegmentationScores(NamedTuple):
    """Scores of C classes, the background first, from 0 to 1.

    A class that occurs neither in truth nor in prediction has no IoU (NaN). So has one that is never predicted no
    precision, and one that is not in the truth no recall.

    Attributes:
        iou: (C,).
        precision: (C,), the share of a class's predicted pixels that are right.
        recall: (C,), the share of a class's true pixels that are found.
        miou: mean IoU over the classes that occur, or over all with an absent one as 0.
    """

    iou: Tensor
    precision: Tensor
    recall: Tensor
    miou: float


def segmentation_scores(confusion: Tensor, count_absent: bool = False) -> SegmentationScores:
    """Scores over a whole split.

    Args:
        confusion: (C, C) counts of pixels, truth by prediction.
        count_absent: count a class that occurs nowhere as IoU 0 in the mean, as some released evaluators do.
    """
    counts = confusion.double()
    hits, truth, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    iou = hits / (truth + predicted - hits)
    mean = iou.nan_to_num(0.0).mean() if count_absent else iou.nanmean()
    return SegmentationScores(iou, hits / predicted, hits / truth, float(mean))
