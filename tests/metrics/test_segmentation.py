"""Scores from a confusion matrix against a count over pixels, torchmetrics and recorded values."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_confusion_matrix,
    multiclass_jaccard_index,
    multiclass_precision,
    multiclass_recall,
)

from wsss_contrast.metrics import SegmentationScores, segmentation_scores

CLASSES = 5
RECORDED = Path(__file__).parents[3] / "shared" / "golden" / "csrm" / "miou.pt"


def random_masks(seed: int = 0, most: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Prediction and truth (3, 6, 7), which agree at about half of the pixels; a tenth of the truth is 255."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, most, (3, 6, 7), generator=generator)
    other = torch.randint(0, most, truth.shape, generator=generator)
    predicted = torch.where(torch.rand(truth.shape, generator=generator) < 0.5, truth, other)
    return predicted, truth.masked_fill(torch.rand(truth.shape, generator=generator) < 0.1, 255)


def confusion_of(predicted: Tensor, truth: Tensor, classes: int = CLASSES) -> Tensor:
    return multiclass_confusion_matrix(predicted.long(), truth.long(), classes, ignore_index=255)


def literal_scores(predicted: Tensor, truth: Tensor, classes: int) -> list[list[float]]:
    """IoU, precision and recall of each class, pixel by pixel; NaN for 0 / 0."""
    columns: list[list[float]] = [[], [], []]
    for k in range(classes):
        both = either = of_prediction = of_truth = 0
        for p, t in zip(predicted.flatten().tolist(), truth.flatten().tolist(), strict=True):
            if t == 255:
                continue
            both += p == k and t == k
            either += k in (p, t)
            of_prediction += p == k
            of_truth += t == k
        for column, whole in zip(columns, (either, of_prediction, of_truth), strict=True):
            column.append(both / whole if whole else math.nan)
    return columns


def assert_equal(scores: SegmentationScores, expected: list[list[float]]) -> None:
    for found, values in zip((scores.iou, scores.precision, scores.recall), expected, strict=True):
        wanted = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0, equal_nan=True)


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_a_count_over_pixels(seed: int) -> None:
    predicted, truth = random_masks(seed)
    expected = literal_scores(predicted, truth, CLASSES)
    scores = segmentation_scores(confusion_of(predicted, truth))
    assert_equal(scores, expected)
    assert scores.miou == pytest.approx(sum(expected[0]) / CLASSES, rel=1e-12)


def test_a_class_that_occurs_nowhere_is_left_out_or_counts_as_zero() -> None:
    predicted, truth = random_masks(most=3)
    confusion = confusion_of(predicted, truth)
    expected = literal_scores(predicted, truth, CLASSES)
    for count_absent, classes in ((False, 3), (True, CLASSES)):
        scores = segmentation_scores(confusion, count_absent)
        assert_equal(scores, expected)
        assert scores.iou.isnan().tolist() == [False, False, False, True, True]
        assert scores.miou == pytest.approx(sum(expected[0][:3]) / classes, rel=1e-12)


def test_a_class_that_is_never_predicted_and_one_that_is_not_in_the_truth() -> None:
    """Both have an IoU, 0, which counts in the mean."""
    scores = segmentation_scores(torch.tensor([[6, 0, 2], [4, 0, 0], [0, 0, 0]]))
    assert_equal(scores, [[0.5, 0.0, 0.0], [0.6, math.nan, 0.0], [0.75, 0.0, math.nan]])
    assert scores.miou == pytest.approx(0.5 / 3)


def test_counts_that_float32_does_not_hold() -> None:
    """A VOC split has some 10^9 pixels; float32 counts to 2^24."""
    scores = segmentation_scores(torch.tensor([[2**31 + 1, 1], [0, 1]]))
    assert scores.iou.tolist() == [(2**31 + 1) / (2**31 + 2), 0.5]


def test_agrees_with_torchmetrics() -> None:
    predicted, truth = random_masks(7)
    scores = segmentation_scores(confusion_of(predicted, truth))
    functions = (multiclass_jaccard_index, multiclass_precision, multiclass_recall)
    for found, function in zip((scores.iou, scores.precision, scores.recall), functions, strict=True):
        expected = function(predicted, truth, CLASSES, average="none", ignore_index=255)
        torch.testing.assert_close(found, expected.double(), rtol=1e-6, atol=0)
    mean = multiclass_jaccard_index(predicted, truth, CLASSES, ignore_index=255)
    assert scores.miou == pytest.approx(float(mean), rel=1e-6)


@pytest.mark.skipif(not RECORDED.is_file(), reason="needs the file ../shared/golden/csrm/miou.pt")
def test_equals_recorded_values() -> None:
    """CSRM's evaluator counts an absent class as 0."""
    case = torch.load(RECORDED, weights_only=True)["small"]
    classes = case["num_classes"]
    scores = segmentation_scores(confusion_of(case["pred"], case["gt"], classes), count_absent=True)
    torch.testing.assert_close(100 * scores.iou.nan_to_num(0.0), case["iou_percent"], rtol=1e-9, atol=0)
    assert bool(scores.iou.isnan().any())
    assert 100 * scores.miou == pytest.approx(case["miou_percent"], rel=1e-9)
    assert 100 * float(scores.iou.nan_to_num(0.0)[1:].mean()) == pytest.approx(case["miou_fg_percent"], rel=1e-9)
