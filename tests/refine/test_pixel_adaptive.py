"""Pixel-adaptive refinement as a refiner; the formulas are in tests/functional/test_pixel_adaptive.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from wsss_contrast.functional import pixel_affinity, propagate
from wsss_contrast.refine import PixelAdaptiveRefinement

SMALL: dict[str, Any] = {"steps": 3, "dilations": (1, 2)}


def photos(images: int = 3, height: int = 10, width: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (images, 3, height, width), generator=generator, dtype=torch.uint8)


def scores(images: int = 3, classes: int = 5, height: int = 10, width: int = 12) -> Tensor:
    return torch.rand(images, classes, height, width, generator=torch.Generator().manual_seed(1))


# All classes; two that do not stand in front; the background alone.
PRESENT = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 1, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)


def test_each_class_present_is_refined_and_the_others_are_0() -> None:
    settings = {"color_smoothness": 0.5, "position_smoothness": 1.0, "position_weight": 0.2}
    refined = PixelAdaptiveRefinement(**SMALL, **settings)(photos(), scores(), PRESENT)
    expected = propagate(scores(), pixel_affinity(photos(), (1, 2), 0.5, 1.0, 0.2), (1, 2), 3)
    torch.testing.assert_close(refined, expected * PRESENT[:, :, None, None])
    assert (refined[~PRESENT] == 0).all()
    assert (refined[PRESENT] > 0).all()


def test_the_paper_has_15_steps_and_six_distances() -> None:
    refined = PixelAdaptiveRefinement()(photos(), scores(), PRESENT)
    expected = propagate(scores(), pixel_affinity(photos()))
    torch.testing.assert_close(refined, expected * PRESENT[:, :, None, None])


def test_scores_of_absent_classes_count_for_nothing() -> None:
    refine = PixelAdaptiveRefinement(**SMALL)
    changed = torch.where(PRESENT[:, :, None, None], scores(), 1e6)
    assert torch.equal(refine(photos(), changed, PRESENT), refine(photos(), scores(), PRESENT))


def test_a_photo_does_not_depend_on_the_others_of_its_batch() -> None:
    refine = PixelAdaptiveRefinement(**SMALL)
    together = refine(photos(), scores(), PRESENT)
    for n in range(3):
        alone = refine(photos()[n : n + 1], scores()[n : n + 1], PRESENT[n : n + 1])
        torch.testing.assert_close(together[n : n + 1], alone)


def test_no_more_classes_than_needed_are_refined(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(maps: Tensor, *args: Any) -> Tensor:
        seen.append(maps.shape[1])
        return propagate(maps, *args)

    monkeypatch.setattr("wsss_contrast.refine.pixel_adaptive.propagate", spy)
    refine = PixelAdaptiveRefinement(**SMALL)
    refine(photos(), scores(), PRESENT)
    refine(photos()[1:], scores()[1:], PRESENT[1:])
    refine(photos()[2:], scores()[2:], PRESENT[2:])
    assert seen == [5, 2, 1]


def test_a_photo_of_the_background_alone() -> None:
    refined = PixelAdaptiveRefinement(**SMALL)(photos(1), torch.full((1, 4, 10, 12), 0.3), PRESENT[2:, :4])
    torch.testing.assert_close(refined[:, 0], torch.full((1, 10, 12), 0.3))
    assert (refined[:, 1:] == 0).all()


def test_no_photos_and_no_classes() -> None:
    refined = PixelAdaptiveRefinement(**SMALL)(photos(0), scores(0), PRESENT[:0])
    assert refined.shape == (0, 5, 10, 12)
    assert (PixelAdaptiveRefinement(**SMALL)(photos(), scores(), torch.zeros_like(PRESENT)) == 0).all()


@pytest.mark.parametrize("at", [13, 19])
def test_the_border_moves_to_that_of_the_photo(at: int) -> None:
    photo = torch.full((1, 3, 24, 32), 40, dtype=torch.uint8)
    photo[..., 16:] = 200
    late = torch.full((1, 3, 24, 32), 0.2)
    late[:, 0, :, :at] = late[:, 1, :, at:] = 0.8
    before = late.clone()
    refined = PixelAdaptiveRefinement()(photo, late, torch.tensor([[True, True, False]]))
    assert torch.equal(refined[0].argmax(dim=0), (torch.arange(32) >= 16).long().expand(24, -1))
    assert torch.equal(late, before)  # the argument is as it was


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_to_float32(half: torch.dtype) -> None:
    refine = PixelAdaptiveRefinement(**SMALL)
    refined = refine(photos(), scores().to(half), PRESENT)
    assert refined.dtype == torch.float32
    assert torch.equal(refined, refine(photos(), scores().to(half).float(), PRESENT))


def test_it_has_no_weights() -> None:
    assert not PixelAdaptiveRefinement().state_dict()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"steps": 0}, r"`steps`.*got 0"),
        ({"dilations": ()}, r"`dilations`.*got \(\)"),
        ({"dilations": (1, 0)}, r"`dilations`.*got \(1, 0\)"),
        ({"color_smoothness": 0.0}, r"`color_smoothness`.*got 0\.0"),
        ({"position_smoothness": -1.0}, r"`position_smoothness`.*got -1\.0"),
        ({"color_smoothness": float("nan")}, r"`color_smoothness`.*got nan"),
        ({"position_weight": -0.1}, r"`position_weight`.*got -0\.1"),
        ({"position_weight": float("nan")}, r"`position_weight`.*got nan"),
    ],
    ids=str,
)
def test_wrong_arguments(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelAdaptiveRefinement(**argument)


def test_its_text_tells_settings_apart() -> None:
    """A folder of masks remembers what made it by this text."""
    others: list[dict[str, Any]] = [
        {"steps": 14},
        {"dilations": (1, 2)},
        {"color_smoothness": 0.2},
        {"position_smoothness": 0.2},
        {"position_weight": 0.3},
    ]
    texts = [repr(PixelAdaptiveRefinement(**settings)) for settings in [{}, *others]]
    assert len(set(texts)) == len(texts)
    assert repr(PixelAdaptiveRefinement(dilations=[1, 2, 4, 8, 12, 24])) == texts[0]
