"""Pseudo-labels of hand-made maps. A photo is a row of pixels, so a label can be told from its column."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wsss_contrast.functional import max_normalize
from wsss_contrast.refine import PixelAdaptiveRefinement, Refiner, pseudo_labels


def row(*classes: list[float]) -> Tensor:
    """(1, K, 1, W) of the values of each class."""
    return torch.tensor(classes)[None, :, None]


def photos(cams: Tensor) -> Tensor:
    return torch.zeros(len(cams), 3, *cams.shape[2:], dtype=torch.uint8)


def label(cams: Tensor, tags: list[int], low: float, high: float | None = None, refine: Refiner | None = None) -> list:
    labels = pseudo_labels(photos(cams), cams, torch.tensor([tags]), low, high, refine)
    assert labels.dtype == torch.int64
    assert labels.shape == (1, *cams.shape[2:])
    return labels[0, 0].tolist()


CAT = [0.1, 0.5, 0.9, 0.4, 0.2]
DOG = [0.2, 0.2, 0.3, 0.8, 0.7]


def test_one_threshold() -> None:
    assert label(row(CAT, DOG), [1, 1], 0.35) == [0, 1, 1, 2, 2]
    assert label(row(CAT, DOG), [1, 1], 0.6) == [0, 0, 1, 2, 2]
    assert label(row(CAT, DOG), [1, 1], 0.0) == [2, 1, 1, 2, 2]


def test_two_thresholds_leave_255_between() -> None:
    assert label(row(CAT, DOG), [1, 1], 0.35, 0.75) == [0, 255, 1, 2, 255]
    assert label(row(CAT, DOG), [1, 1], 0.05, 0.85) == [255, 255, 1, 255, 255]
    assert label(row(CAT, DOG), [1, 1], 0.35, 0.35) == label(row(CAT, DOG), [1, 1], 0.35)


def test_ties_go_to_the_lowest_id() -> None:
    """The background before the classes, and they in their order."""
    cams = row([0.5, 0.5, 0.75, 0.25], [0.25, 0.5, 0.75, 0.5])
    assert label(cams, [1, 1], 0.5) == [0, 0, 1, 0]
    assert label(cams, [1, 1], 0.5, 0.75) == [0, 0, 255, 0]
    assert label(cams, [1, 1], 0.25) == [1, 1, 1, 2]


def test_a_photo_without_tags_is_background() -> None:
    assert label(row(CAT, DOG), [0, 0], 0.0) == [0] * 5
    assert label(row(CAT, DOG), [0, 0], 0.1, 0.9) == [0] * 5


def test_absent_classes_never_win() -> None:
    assert label(row(CAT, DOG), [1, 0], 0.35) == [0, 1, 1, 1, 0]
    assert label(row(CAT, DOG), [0, 1], 0.35, 0.75) == [0, 0, 0, 2, 255]


def test_not_even_where_a_refiner_raises_their_scores() -> None:
    def raise_dog(photos: Tensor, scores: Tensor, present: Tensor) -> Tensor:
        return scores + 10 * torch.tensor([0.0, 0.0, 1.0])[:, None, None]

    assert label(row(CAT, DOG), [1, 1], 0.35, refine=raise_dog) == [2] * 5
    assert label(row(CAT, DOG), [1, 0], 0.35, refine=raise_dog) == [0, 1, 1, 1, 0]
    below = [
        lambda photos, scores, present: scores - 10,  # an absent class at 0 would be above all
        lambda photos, scores, present: (scores - 10) * present[:, :, None, None],
    ]
    for refine in below:
        assert label(row(CAT, DOG), [1, 0], 0.35, refine=refine) == [0, 1, 1, 1, 0]


def test_signed_maps() -> None:
    """Of `multi_scale_cams`: the minimum is below 0 and an untagged class is -1. Both count as 0."""
    cams = row([-0.2, 0.5, 0.9], [-1.0, -1.0, -1.0])
    assert label(cams, [1, 0], 0.35) == [0, 1, 1]
    assert label(cams, [1, 0], 0.0) == [0, 1, 1]
    seen = []

    def spy(photos: Tensor, scores: Tensor, present: Tensor) -> Tensor:
        seen.append(scores.min().item())
        return scores

    label(cams, [1, 0], 0.35, refine=spy)
    assert seen == [0]


def test_photos_of_a_batch_have_their_own_tags() -> None:
    cams = row(CAT, DOG).expand(3, -1, -1, -1)
    labels = pseudo_labels(photos(cams), cams, torch.tensor([[1, 0], [0, 1], [1, 1]]), 0.35)
    assert labels[:, 0].tolist() == [[0, 1, 1, 1, 0], [0, 0, 0, 2, 2], [0, 1, 1, 2, 2]]


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.float16])
def test_tags_of_any_kind(kind: torch.dtype) -> None:
    cams = row(CAT, DOG)
    assert pseudo_labels(photos(cams), cams, torch.tensor([[1, 0]]).to(kind), 0.35).tolist() == [[[0, 1, 1, 1, 0]]]


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_maps_meet_an_exact_threshold(half: torch.dtype) -> None:
    """0.3 is rounded up in both kinds: above the threshold, and not tied with a rounded one."""
    cams = row([0.3, 0.1]).to(half)
    assert label(cams, [1], 0.3) == [1, 0]
    seen = []

    def spy(photos: Tensor, scores: Tensor, present: Tensor) -> Tensor:
        seen.append((scores.dtype, scores[0, 0, 0, 0].item()))
        return scores

    label(cams, [1], 0.3, refine=spy)
    assert seen == [(torch.float32, torch.tensor(0.3).item())]


# --- with a refiner


class Spy:
    """Writes down what it is given, and gives the scores back."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, photos: Tensor, scores: Tensor, present: Tensor) -> Tensor:
        self.calls.append((photos, scores, present))
        return scores


@pytest.mark.parametrize(
    ("low", "high", "constants"),
    [(0.25, None, [0.25]), (0.25, 0.25, [0.25]), (0.25, 0.75, [0.75, 0.25])],
)
def test_the_refiner_is_called_once(low: float, high: float | None, constants: list[float]) -> None:
    """With the photos of each threshold."""
    refine, cams = Spy(), row(CAT, DOG).repeat(2, 1, 1, 1)
    cams[1] /= 2
    given, tags = photos(cams), torch.tensor([[1, 0], [0, 1]])
    given[1] = 9
    labels = pseudo_labels(given, cams, tags, low, high, refine)
    assert torch.equal(labels, pseudo_labels(given, cams, tags, low, high))
    ((seen, scores, present),) = refine.calls
    times = len(constants)
    assert torch.equal(seen, torch.cat([given] * times))
    assert (scores[:, 0] == torch.tensor(constants).repeat_interleave(2)[:, None, None]).all()  # the background first
    assert torch.equal(scores[:, 1:], torch.cat([cams] * times))
    assert present.dtype == torch.bool
    assert present.tolist() == [[True, True, False], [True, False, True]] * times


def test_no_photos() -> None:
    cams = torch.zeros(0, 2, 1, 5)
    for refine in (None, Spy(), PixelAdaptiveRefinement()):
        assert pseudo_labels(photos(cams), cams, torch.zeros(0, 2), 0.25, 0.75, refine).shape == (0, 1, 5)


def test_pixel_adaptive_refinement_is_done_once_for_two_thresholds() -> None:
    """It leaves a constant as it is, so the score of the background changes nothing else."""
    generator, refine, calls = torch.Generator().manual_seed(0), PixelAdaptiveRefinement(steps=3), []
    given = torch.randint(0, 256, (2, 3, 16, 20), generator=generator, dtype=torch.uint8)
    cams, tags = torch.rand(2, 3, 16, 20, generator=generator), torch.tensor([[1, 0, 1], [0, 0, 0]])
    refine.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    labels = pseudo_labels(given, cams, tags, 0.6, 0.7, refine)
    assert calls == [2]
    assert set(labels[0].unique().tolist()) == {0, 1, 3, 255}
    # As a function, it is one like any other.
    assert torch.equal(labels, pseudo_labels(given, cams, tags, 0.6, 0.7, refine.forward))


def test_the_foreground_wins_where_the_low_background_does_too() -> None:
    """After a refiner, a pixel can be a class against the high score and background against the low one."""

    def upside_down(photos: Tensor, scores: Tensor, present: Tensor) -> Tensor:
        background = 1 - scores[:, :1]
        return torch.cat([background, scores[:, 1:]], dim=1)

    # Against 1 - 0.9 = 0.1 pixels 2 and 3 are cat; against 1 - 0.2 = 0.8 pixels 1 and 2 are background.
    assert label(row([0.05, 0.5, 0.95]), [1], 0.2, 0.9, upside_down) == [0, 1, 1]


def test_pixel_adaptive_refinement_moves_the_border() -> None:
    photo = torch.full((1, 3, 24, 32), 40, dtype=torch.uint8)
    photo[..., 16:] = 200
    maps = torch.zeros(1, 2, 24, 32)
    maps[:, 1, :, 19:] = 5.0
    tags = torch.tensor([[0, 1]])
    refined = pseudo_labels(photo, max_normalize(maps), tags, 0.3, refine=PixelAdaptiveRefinement())
    assert torch.equal(refined[0], 2 * (torch.arange(32) >= 16).long().expand(24, -1))


def test_needs_no_gradient() -> None:
    refine = Spy()
    cams = row(CAT, DOG).requires_grad_()
    pseudo_labels(photos(cams), cams, torch.ones(1, 2), 0.3, refine=refine)
    assert not refine.calls[0][1].requires_grad


# --- soft labels


def soft(cams: Tensor, tags: list[int], low: float, high: float | None = None, refine: Refiner | None = None) -> list:
    """The distribution at each pixel."""
    labels = pseudo_labels(photos(cams), cams, torch.tensor([tags]), low, high, refine, soft=True)
    assert labels.dtype == torch.float32
    assert labels.shape == (1, 1 + cams.shape[1], *cams.shape[2:])
    return [pytest.approx(pixel) for pixel in labels[0, :, 0].T.tolist()]


NONE = [0.0, 0.0, 0.0]


def test_soft_labels_by_hand() -> None:
    def all_of(high: float) -> list[list[float]]:
        """The score of the background is 0 where a class has 1, and the threshold where the best class has it."""
        background = [high / (1 - high) * falling for falling in (0.8, 0.5, 0.1, 0.2, 0.3)]
        pixels = zip(background, [0.1, 0.5, 0.9, 0.4, 0.2], [0.2, 0.2, 0.3, 0.8, 0.7], strict=True)
        return [[value / sum(pixel) for value in pixel] for pixel in pixels]

    assert soft(row(CAT, DOG), [1, 1], 0.35) == all_of(0.35)
    some = all_of(0.75)
    assert soft(row(CAT, DOG), [1, 1], 0.35, 0.75) == [some[0], NONE, some[2], some[3], NONE]
    assert soft(row(CAT, DOG), [1, 1], 0.15, 0.85) == [NONE, NONE, all_of(0.85)[2], NONE, NONE]


def test_soft_labels_at_the_thresholds() -> None:
    """Above the high one, not above the low one."""
    assert soft(row([0.25, 0.375, 0.5, 0.625]), [1], 0.25, 0.5) == [[0.75, 0.25], [0, 0], [0, 0], [0.375, 0.625]]


def test_soft_labels_of_classes_present() -> None:
    of_cat = [[0.9, 0.1, 0], [0.5, 0.5, 0], [0.1, 0.9, 0], [0.6, 0.4, 0], [0.8, 0.2, 0]]
    assert soft(row(CAT, DOG), [1, 0], 0.25, 0.5) == [of_cat[0], NONE, of_cat[2], NONE, of_cat[4]]
    assert soft(row(CAT, DOG), [0, 0], 0.0, 0.5) == [[1, 0, 0]] * 5
    assert soft(row([-0.2, 0.75, 1.5], [-1.0, 3.0, -1.0]), [1, 0], 0.5) == [[1, 0, 0], [0.25, 0.75, 0], [0, 1, 0]]


def test_soft_labels_of_thresholds_of_zero() -> None:
    labels = pseudo_labels(photos(row([0.0, 0.5])), row([0.0, 0.5]), torch.ones(1, 1), 0.0, soft=True)
    assert labels.argmax(dim=1).tolist() == [[[0, 1]]]
    assert torch.equal(labels.sum(dim=1), torch.ones(1, 1, 2))


def test_soft_and_hard_labels_are_of_the_same_classes() -> None:
    """Also between the high threshold and a half, where one minus the score is the larger."""
    cams = row([0.02, 0.2, 0.36, 0.4, 0.45, 0.49, 0.51, 0.9])
    hard = pseudo_labels(photos(cams), cams, torch.ones(1, 1), 0.05, 0.35)
    shares = pseudo_labels(photos(cams), cams, torch.ones(1, 1), 0.05, 0.35, soft=True)
    assert hard[0, 0].tolist() == [0, 255, 1, 1, 1, 1, 1, 1]
    assert torch.equal(shares.argmax(dim=1)[hard != 255], hard[hard != 255])
    assert torch.equal(shares.sum(dim=1) == 0, hard == 255)


def test_soft_labels_are_thresholded_after_the_refiner() -> None:
    calls = []

    def refine(photos: Tensor, scores: Tensor, present: Tensor) -> Tensor:
        calls.append((scores[0, :, 0].T.tolist(), present.tolist()))
        return torch.tensor([[0.1, 0.9, 0.3], [0.6, 0.55, 5.0], [0.9, 0.2, 5.0], [0.0, 0.0, 5.0]]).T[None, :, None]

    cams = row([0.9, 0.1, 0.1, 0.1], [0.3, 0.3, 0.3, 0.3])
    assert soft(cams, [1, 0], 0.25, 0.5, refine) == [[0.1, 0.9, 0], NONE, [0.9 / 1.1, 0.2 / 1.1, 0], NONE]
    assert len(calls) == 1
    assert calls[0][0] == [pytest.approx(pixel) for pixel in [[0.1, 0.9, 0], *[[0.9, 0.1, 0]] * 3]]
    assert calls[0][1] == [[True, True, False]]


# --- errors


@pytest.mark.parametrize("soft_ones", [False, True])
def test_maps_with_nan(soft_ones: bool) -> None:
    """The largest of all for `argmax`: its class would win."""
    cams = row([0.2, float("nan"), 0.9])
    with pytest.raises(ValueError, match="`cams` have NaN"):
        pseudo_labels(photos(cams), cams, torch.ones(1, 1), 0.3, soft=soft_ones)


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (-0.1, None, r"0 <= low <= high < 1, got -0\.1 and -0\.1"),
        (1.0, None, r"got 1\.0 and 1\.0"),
        (0.5, 0.4, r"got 0\.5 and 0\.4"),
        (0.5, 1.0, r"got 0\.5 and 1\.0"),
        (float("nan"), None, "got nan and nan"),
        (0.5, float("nan"), r"got 0\.5 and nan"),
    ],
)
def test_wrong_thresholds(low: float, high: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label(row(CAT, DOG), [1, 1], low, high)


def test_tags_that_do_not_go_with_the_maps() -> None:
    cams = row(CAT, DOG).expand(2, -1, -1, -1)
    for tags in (torch.ones(2, 3), torch.ones(1, 2), torch.ones(2)):
        with pytest.raises(ValueError, match=r"`tags` must be of shape \(2, 2\)"):
            pseudo_labels(photos(cams), cams, tags, 0.3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(1, 3, 1, 5), r"uint8 .*\(1, 3, 1, 5\), got torch\.float32 and \(1, 3, 1, 5\)"),
        (torch.zeros(1, 3, 1, 4, dtype=torch.uint8), r"got torch\.uint8 and \(1, 3, 1, 4\)"),
        (torch.zeros(2, 3, 1, 5, dtype=torch.uint8), r"got torch\.uint8 and \(2, 3, 1, 5\)"),
        (torch.zeros(1, 1, 1, 5, dtype=torch.uint8), r"got torch\.uint8 and \(1, 1, 1, 5\)"),
    ],
)
def test_photos_that_a_refiner_cannot_use(given: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pseudo_labels(given, row(CAT, DOG), torch.ones(1, 2), 0.3, refine=Spy())
    assert pseudo_labels(given, row(CAT, DOG), torch.ones(1, 2), 0.3).shape == (1, 1, 5)  # nobody else needs them
