"""Operations on activation maps against their literal reading."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.literal import maps as literal
from wsss_contrast import functional as W


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("source", [(1, 1), (4, 3), (5, 7)])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (4, 3), (9, 2)])
def test_resize(source: tuple[int, int], size: tuple[int, int]) -> None:
    maps = normal(0, 2, 3, *source).requires_grad_()
    got, want = W.resize(maps, size), literal.resize(maps, *size)
    torch.testing.assert_close(got, want)
    weight = normal(1, 2, 3, *size)
    slope, expected = (torch.autograd.grad((x * weight).sum(), maps)[0] for x in (got, want))
    torch.testing.assert_close(slope, expected)


def test_present_classes() -> None:
    for tags in (torch.tensor([[0, 1], [0, 0]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]])):
        assert W.present_classes(tags).tolist() == [[True, False, True], [True, False, False]]


def test_best_class_is_the_first_of_the_highest_that_can_win() -> None:
    scores = normal(0, 2, 4, 3, 5).round()  # many ties
    present = torch.tensor([[True, False, True, True], [False, True, False, False]])
    for can_win in (None, present):
        best = W.best_class(scores, can_win)
        for n, y, x in [(n, y, x) for n in range(2) for y in range(3) for x in range(5)]:
            allowed = [c for c in range(4) if can_win is None or can_win[n, c]]
            assert best[n, y, x] == max(allowed, key=lambda c: float(scores[n, c, y, x]))


def test_resize_to_the_same_size_and_of_an_empty_batch() -> None:
    maps = normal(0, 2, 3, 4, 5)
    assert W.resize(maps, (4, 5)) is maps
    empty = torch.zeros(0, 3, 4, 5, requires_grad=True)
    resized = W.resize(empty, (2, 7))
    assert resized.shape == (0, 3, 2, 7)
    assert resized.requires_grad


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    "maps",
    [
        normal(2, 2, 3, 4, 5),
        normal(3, 1, 1, 1, 1),
        normal(4, 2, 2, 3, 3).abs() + 5,
        normal(5, 2, 2, 3, 3) * 1e-5,
        -normal(6, 1, 2, 3, 3).abs(),
        torch.zeros(1, 2, 3, 3).double(),
        torch.full((1, 1, 2, 2), 7.0).double(),
    ],
    ids=["mixed", "one pixel", "far from 0", "near the margin", "negative", "zero", "constant"],
)
def test_normalize_cams(maps: Tensor, signed: bool) -> None:
    maps = maps.clone().requires_grad_()
    got, want = W.normalize_cams(maps, signed), literal.normalize(maps, signed)
    torch.testing.assert_close(got, want)
    weight = normal(7, *maps.shape)
    slope, expected = (torch.autograd.grad((x * weight).sum(), maps)[0] for x in (got, want))
    torch.testing.assert_close(slope, expected)
    assert slope.isfinite().all()


def test_range_of_normalized_maps() -> None:
    maps = normal(8, 3, 4, 6, 6) * 20
    usual, signed = W.normalize_cams(maps), W.normalize_cams(maps, signed=True)
    assert usual.min() == 0
    assert 0.99 < usual.amax(dim=(-2, -1)).min() <= usual.max() < 1
    assert -1 <= signed.min() < 0
    assert (W.normalize_cams(torch.zeros(1, 1, 2, 2), signed=True) == -1).all()
    assert (W.normalize_cams(torch.zeros(1, 1, 2, 2)) == 0).all()


def literal_max_normalize(maps: Tensor) -> Tensor:
    values = []
    for of_class in maps.flatten(0, 1):
        high = max(max(value.item(), 0.0) for value in of_class.flatten())
        values += [max(value.item(), 0.0) / (high + 1e-5) for value in of_class.flatten()]
    return torch.tensor(values, dtype=torch.float64).reshape(maps.shape)


@pytest.mark.parametrize("scale", [1e-5, 1.0, 300.0])
def test_max_normalize(scale: float) -> None:
    maps = normal(15, 2, 3, 4, 5) * scale
    maps[0, 1] = -maps[0, 1].abs()
    maps[1, 2] = 0
    normalized = W.max_normalize(maps)
    torch.testing.assert_close(normalized, literal_max_normalize(maps))
    assert normalized.min() == 0
    assert normalized.max() < 1
    assert (normalized[0, 1] == 0).all()
    assert (normalized[1, 2] == 0).all()


def test_mask_by_tags() -> None:
    maps = normal(9, 2, 3, 4, 4)
    for kind in (torch.bool, torch.uint8, torch.int64, torch.float32):
        masked = W.mask_by_tags(maps, torch.tensor([[1, 0, 1], [0, 0, 1]]).to(kind))
        assert masked.dtype == maps.dtype
        assert torch.equal(masked[0, 0], maps[0, 0])
        assert torch.equal(masked[1, 2], maps[1, 2])
        assert (masked[0, 1] == 0).all()
        assert (masked[1, :2] == 0).all()


@pytest.mark.parametrize("index", [0, -1])
def test_background_is_joined_and_split_again(index: int) -> None:
    foreground, background = normal(10, 2, 3, 4, 4), normal(11, 2, 1, 4, 4)
    joined = W.with_background(foreground, background, index)
    assert torch.equal(joined[:, [index]], background)
    assert torch.equal(W.split_background(joined, index), foreground)
    assert W.split_background(foreground, None) is foreground


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_raised_to_float32(half: torch.dtype) -> None:
    maps = normal(12, 2, 3, 4, 4).to(half)
    assert W.full_precision(maps).dtype == torch.float32
    assert W.full_precision(maps.double()).dtype == torch.float64
    assert torch.equal(W.normalize_cams(maps), W.normalize_cams(maps.float()))
    assert torch.equal(W.max_normalize(maps), W.max_normalize(maps.float()))


def test_gradcheck() -> None:
    maps, background = normal(13, 2, 2, 3, 4).requires_grad_(), normal(14, 2, 1, 3, 4).requires_grad_()
    tags = torch.tensor([[1, 0], [1, 1]])
    assert torch.autograd.gradcheck(W.normalize_cams, maps)
    assert torch.autograd.gradcheck(lambda x: W.normalize_cams(x, signed=True), maps)
    assert torch.autograd.gradcheck(W.max_normalize, maps)
    assert torch.autograd.gradcheck(lambda x: W.resize(x, (2, 5)), maps)
    assert torch.autograd.gradcheck(lambda x: W.mask_by_tags(x, tags), maps)
    assert torch.autograd.gradcheck(W.with_background, (maps, background))
    assert torch.autograd.gradcheck(lambda x: W.split_background(x, -1), maps)
