"""Merging labels with segments: against its literal reading, on rows that a reader can check, and bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.literal import sepl as literal
from wsss_contrast.functional import merge_segments
from wsss_contrast.functional.sepl import POLICIES

each_policy = pytest.mark.parametrize("policy", POLICIES)


def merged(labels: list[int], segments: list[str], policy: str = "max_iou_imp2") -> list[int]:
    """Of a row of pixels; a segment is a row of # and dots."""
    rows = [[[pixel == "#" for pixel in segment]] for segment in segments]
    masks = torch.tensor(rows, dtype=torch.bool).reshape(len(rows), 1, len(labels))
    found: list[int] = merge_segments(torch.tensor([labels]), masks, policy)[0].tolist()
    return found


@given(seed=st.integers(0, 10_000), count=st.integers(0, 7), policy=st.sampled_from(POLICIES))
def test_equals_literal_reading(seed: int, count: int, policy: str) -> None:
    """Boxes of labels with some noise, and of segments that overlap; some are empty."""
    generator = torch.Generator().manual_seed(seed)

    def box() -> tuple[slice, slice]:
        top, bottom, left, right = torch.randint(0, 9, (4,), generator=generator).tolist()
        return slice(min(top, bottom), max(top, bottom)), slice(min(left, right), max(left, right))

    labels = torch.zeros(8, 8, dtype=torch.int64)
    for label in (3, 1, 7, 255):
        labels[box()] = label
    segments = torch.zeros(count, 8, 8, dtype=torch.bool)
    for segment in segments:
        segment[box()] = True
    if count and seed % 2:  # one that goes with a class but for noise
        segments[0] = (labels == 1) ^ (torch.rand(8, 8, generator=generator) < 0.1)
    assert torch.equal(merge_segments(labels, segments, policy), literal.merge(labels, segments, policy))


@each_policy
def test_the_order_of_the_segments_does_not_matter(policy: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        labels = torch.randint(0, 4, (3, 3), generator=generator).repeat_interleave(4, 0).repeat_interleave(4, 1)
        segments = torch.rand(6, 3, 3, generator=generator).gt(0.6).repeat_interleave(4, 1).repeat_interleave(4, 2)
        expected = merge_segments(labels, segments, policy)
        assert torch.equal(merge_segments(labels, segments.flip(0), policy), expected)


@each_policy
def test_segments_of_the_classes_alone_change_nothing(policy: str) -> None:
    labels = torch.tensor([[0, 1, 1], [2, 2, 1], [0, 0, 9]])
    segments = torch.stack([labels == label for label in (9, 1, 2)])
    assert torch.equal(merge_segments(labels, segments, policy), labels)


def test_more_than_half_of_a_segment() -> None:
    assert merged([1, 1, 0, 0, 1, 0], ["####.."], "max_iou_imp") == [0, 0, 0, 0, 1, 0]  # half is not enough
    assert merged([1, 1, 1, 0, 1, 0], ["####.."], "max_iou_imp") == [1, 1, 1, 1, 1, 0]


def test_most_of_a_class() -> None:
    """85 % of the class, exactly, in a segment of which it is the smaller part."""
    labels = [1] * 20 + [0] * 30
    segment = "#" * 17 + "..." + "#" * 30
    assert merged(labels, [segment]) == [1] * 50
    assert merged(labels, [segment], "max_iou_imp") == [0] * 17 + [1] * 3 + [0] * 30
    assert merged(labels, ["#" * 16 + "...." + "#" * 30]) == [0] * 16 + [1] * 4 + [0] * 30


def test_pixels_without_a_segment_are_kept() -> None:
    assert merged([1, 1, 1, 2, 2, 2], ["....##"], "max_iou_imp2") == [1, 1, 1, 2, 2, 2]
    assert merged([1, 1, 1, 2, 2, 2], ["....##"], "max_iou") == [0, 0, 0, 0, 2, 2]


def test_a_segment_goes_to_the_lowest_class_only() -> None:
    """The second class finds the segment taken; it is no cover any more, either, so the class keeps its pixels."""
    assert merged([2, 1, 1, 1, 1], ["#####"]) == [2, 1, 1, 1, 1]
    assert merged([2, 1, 1, 1, 1], ["#####"], "max_iou") == [1, 1, 1, 1, 1]
    assert merged([1, 2, 2, 2, 2, 0], ["######"]) == [1, 2, 2, 2, 2, 1]  # all of the first class, if it is one pixel
    assert merged([1, 2, 2, 2, 2, 0], ["######"], "max_iou_imp") == [2, 2, 2, 2, 2, 2]


def test_a_later_class_overwrites() -> None:
    assert merged([1, 1, 2, 2, 2], ["###..", "..###"]) == [1, 1, 2, 2, 2]
    assert merged([2, 2, 1, 1, 1], ["###..", "..###"]) == [2, 2, 2, 1, 1]


def test_no_label_is_dropped() -> None:
    assert merged([255, 255, 1, 1, 255], ["..##."]) == [0, 0, 1, 1, 0]
    assert merged([255, 1, 1, 1, 255], [".####"]) == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("labels", [[0, 0, 0], [255, 255, 0]])
def test_without_a_class_all_is_background(labels: list[int]) -> None:
    assert merged(labels, ["##.", ".##"]) == [0, 0, 0]


def test_without_segments() -> None:
    assert merged([1, 0, 3, 255], [], "max_iou") == [0, 0, 0, 0]
    assert merged([1, 0, 3, 255], [], "max_iou_imp") == merged([1, 0, 3, 255], []) == [1, 0, 3, 0]
    assert merged([1, 0, 3, 255], ["...."]) == [1, 0, 3, 0]  # and with an empty one


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
def test_labels_keep_their_type(kind: torch.dtype) -> None:
    labels = torch.tensor([[1, 254, 0]], dtype=kind)
    before = labels.clone()
    found = merge_segments(labels, torch.ones(1, 1, 3, dtype=torch.bool))
    assert found.dtype == kind
    assert found.tolist() == [[1, 254, 1]]
    assert torch.equal(labels, before)


LABELS, SEGMENTS = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(4, 2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("labels", "segments", "message"),
    [
        (LABELS.float(), SEGMENTS, r"`labels` must be integers \(H, W\), got torch.float32 \(2, 3\)"),
        (LABELS.bool(), SEGMENTS, r"`labels` must be integers \(H, W\), got torch.bool"),
        (LABELS[None], SEGMENTS, r"`labels` must be integers \(H, W\), got torch.int64 \(1, 2, 3\)"),
        (LABELS, SEGMENTS.int(), r"`segments` must be bool \(N, 2, 3\) like the labels, got torch.int32 \(4, 2, 3\)"),
        (LABELS, SEGMENTS[0], r"`segments` must be bool \(N, 2, 3\) like the labels, got torch.bool \(2, 3\)"),
        (LABELS, SEGMENTS.mT, r"`segments` must be bool \(N, 2, 3\) like the labels, got torch.bool \(4, 3, 2\)"),
    ],
)
def test_bad_input(labels: Tensor, segments: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge_segments(labels, segments)


def test_unknown_policy() -> None:
    with pytest.raises(ValueError, match="unknown policy 'max_iou_imp3'; there are max_iou, max_iou_imp, max_iou_imp2"):
        merge_segments(LABELS, SEGMENTS, "max_iou_imp3")
