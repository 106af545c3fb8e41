"""SeedMIoU against a loop over thresholds, images and pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from wsss_contrast.metrics import THRESHOLDS, SeedCurve, SeedMIoU

FEW = (0.0, 0.2, 0.25, 0.5, 0.75)


def literal_iou(images: list[tuple[Tensor, Tensor]], classes: int, threshold: float) -> list[float]:
    """IoU of background and each class from counts over all images, NaN for one that occurs nowhere."""
    both, either = [0] * (classes + 1), [0] * (classes + 1)
    for cams, masks in images:
        for cam, mask in zip(cams, masks, strict=True):
            for row in range(mask.shape[0]):
                for column in range(mask.shape[1]):
                    truth = int(mask[row, column])
                    if truth == 255:
                        continue
                    scores = [threshold, *cam[:, row, column].tolist()]
                    predicted = scores.index(max(scores))  # the first of equals: the background, then low ids
                    both[truth] += predicted == truth
                    for k in {truth, predicted}:
                        either[k] += 1
    return [b / e if e else math.nan for b, e in zip(both, either, strict=True)]


def literal_curve(
    images: list[tuple[Tensor, Tensor]], classes: int, thresholds: tuple[float, ...], count_absent: bool
) -> tuple[Tensor, Tensor]:
    iou = torch.tensor([literal_iou(images, classes, torch.tensor(t).item()) for t in thresholds], dtype=torch.float64)
    mean = iou.nan_to_num(0.0).mean(1) if count_absent else iou.nanmean(1)
    return iou, mean


def random_images(seed: int, classes: int, sizes: list[tuple[int, int]], levels: int) -> list[tuple[Tensor, Tensor]]:
    """Maps on a grid of ``levels`` values, so that ties between classes and with thresholds are common."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for height, width in sizes:
        cams = torch.randint(-1, levels + 1, (2, classes, height, width), generator=generator) / levels
        masks = torch.randint(0, classes + 1, (2, height, width), generator=generator)
        masks[masks == 2] = 0  # class 2 is never true
        masks[torch.rand(masks.shape, generator=generator) < 0.2] = 255
        images.append((cams, masks))
    return images


def assert_same_curve(curve: SeedCurve, expected: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(curve.iou, expected[0], rtol=1e-12, atol=0, equal_nan=True)
    torch.testing.assert_close(curve.miou, expected[1], rtol=1e-12, atol=0, equal_nan=True)


@pytest.mark.parametrize("count_absent", [False, True])
@pytest.mark.parametrize("thresholds", [FEW, THRESHOLDS], ids=["few", "sweep"])
@pytest.mark.parametrize("levels", [4, 1000])
def test_equals_literal_counts(levels: int, thresholds: tuple[float, ...], count_absent: bool) -> None:
    images = random_images(0, 3, [(4, 5), (3, 6)], levels)
    metric = SeedMIoU(3, thresholds, count_absent)
    for cams, masks in images:
        metric.update(cams, masks)
    assert_same_curve(metric.compute(), literal_curve(images, 3, thresholds, count_absent))


@pytest.mark.parametrize(("count_absent", "miou"), [(False, 1.0), (True, 2 / 4)])
def test_class_that_occurs_nowhere(count_absent: bool, miou: float) -> None:
    metric = SeedMIoU(3, [0.5, 0.6], count_absent)
    metric.update(torch.tensor([[[[0.9, 0.1]], [[-1.0, -1.0]], [[-1.0, -1.0]]]]), torch.tensor([[[1, 0]]]))
    curve = metric.compute()
    assert curve.iou[0].isnan().tolist() == [False, False, True, True]
    assert curve.miou[0] == miou


def test_class_that_is_predicted_only_counts_as_zero() -> None:
    metric = SeedMIoU(2, [0.5, 0.6])
    metric.update(torch.tensor([[[[0.9, 0.0]], [[0.0, 0.9]]]]), torch.tensor([[[1, 0]]]))
    assert metric.compute().iou[0].tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_score_at_the_threshold_is_background(threshold: float) -> None:
    """So says argmax with the background first; the next larger float is foreground."""
    exact = torch.tensor(threshold, dtype=torch.float32)
    above = torch.nextafter(exact, torch.tensor(2.0))
    metric = SeedMIoU(1, [threshold])
    metric.update(torch.stack([exact, above]).view(1, 1, 1, 2), torch.tensor([[[0, 1]]]))
    assert float(metric.compute().miou) == 1.0


def test_ties_between_classes_go_to_the_lowest_id() -> None:
    metric = SeedMIoU(3, [0.5])
    metric.update(torch.tensor([[[[0.1]], [[0.9]], [[0.9]]]]), torch.tensor([[[2]]]))
    assert float(metric.compute().miou) == 1.0


def test_several_updates_equal_one_and_reset_forgets() -> None:
    images = random_images(1, 3, [(4, 5), (4, 5)], 10)
    several, one = SeedMIoU(3), SeedMIoU(3)
    several.update(*images[1])
    several.reset()
    for image in images:
        several.update(*image)
    one.update(torch.cat([cams for cams, _ in images]), torch.cat([masks for _, masks in images]))
    assert torch.equal(several.histogram, one.histogram)
    assert_same_curve(several.compute(), (one.compute().iou, one.compute().miou))


def test_merged_states_equal_joined_images() -> None:
    """What the ranks of a distributed run do."""
    images = random_images(2, 3, [(4, 5), (3, 6)], 10)
    ranks, joined = [SeedMIoU(3), SeedMIoU(3)], SeedMIoU(3)
    for rank, image in zip(ranks, images, strict=True):
        rank.update(*image)
        joined.update(*image)
    ranks[0].merge_state(ranks[1])
    assert_same_curve(ranks[0].compute(), (joined.compute().iou, joined.compute().miou))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_mask_types(dtype: torch.dtype) -> None:
    cams, masks = random_images(3, 3, [(4, 5)], 10)[0]
    metric, expected = SeedMIoU(3, FEW), literal_curve([(cams, masks)], 3, FEW, False)
    metric.update(cams, masks.to(dtype))
    assert_same_curve(metric.compute(), expected)


def test_all_pixels_ignored_gives_nan_without_error() -> None:
    metric = SeedMIoU(2, FEW)
    metric.update(torch.zeros(1, 2, 2, 2), torch.full((1, 2, 2), 255))
    assert metric.compute().miou.isnan().all()


def test_curve_best_is_the_lowest_of_equals_and_at_reads_a_threshold() -> None:
    curve = SeedCurve(torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3, 2), torch.tensor([0.2, 0.7, 0.7]))
    assert curve.best == 1
    assert curve.at(0.2) == pytest.approx(0.7)
    assert curve.at(float(torch.tensor(0.1))) == pytest.approx(0.2)
    with pytest.raises(ValueError, match=r"0\.25 is none of the 3 thresholds"):
        curve.at(0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "`num_classes` must be at least 1, got 0"),
        ({"num_classes": 2, "thresholds": ()}, r"`thresholds` must be rising and not empty, got \(\)"),
        ({"num_classes": 2, "thresholds": (0.3, 0.2)}, r"rising and not empty, got \(0\.3, 0\.2\)"),
        ({"num_classes": 2, "thresholds": (0.3, 0.3)}, r"rising and not empty, got \(0\.3, 0\.3\)"),
    ],
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SeedMIoU(**options)


@pytest.mark.parametrize(
    ("cams", "masks", "message"),
    [
        (torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2), r"`cams` must be \(N, 2, H, W\), got \(1, 3, 2, 2\)"),
        (torch.zeros(2, 2, 2), torch.zeros(1, 2, 2), r"got \(2, 2, 2\)"),
        (
            torch.zeros(1, 2, 2, 2),
            torch.zeros(1, 2, 3),
            r"`masks` \(1, 2, 3\) do not go with `cams` \(1, 2, 2, 2\)",
        ),
        (
            torch.zeros(1, 2, 1, 2),
            torch.tensor([[[0, 7]]]),
            r"`masks` have ids \[0, 7\], expected 0 to 2 and 255",
        ),
        (torch.zeros(1, 2, 1, 2), torch.tensor([[[0, -1]]]), r"`masks` have ids \[-1, 0\]"),
    ],
)
def test_wrong_inputs(cams: Tensor, masks: Tensor, message: str) -> None:
    metric = SeedMIoU(2)
    with pytest.raises(ValueError, match=message):
        metric.update(cams, masks)


@pytest.mark.parametrize("count_absent", [False, True])
def test_single_threshold_keeps_its_axis(count_absent: bool) -> None:
    """torchmetrics squeezes results of one element; the curve says (T,) and (T, C)."""
    metric = SeedMIoU(1, [0.5], count_absent)
    metric.update(torch.tensor([[[[0.9, 0.1]]]]), torch.tensor([[[1, 0]]]))
    curve = metric.compute()
    assert (curve.thresholds.shape, curve.iou.shape, curve.miou.shape) == ((1,), (1, 2), (1,))
    assert curve.miou[curve.best] == curve.at(0.5) == 1
