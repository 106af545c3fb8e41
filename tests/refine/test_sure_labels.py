"""Labels of the pixels that maps are sure of. A photo is a row of pixels, so a label can be told from its column."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wsss_contrast.functional import affinity_seeds
from wsss_contrast.refine import LABELS, DenseCRF, PixelAdaptiveRefinement, irn_labels, psa_labels, pseudo_labels

from .test_pseudo_labels import photos, row


def random(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Two photos of 12 x 16, maps of three classes, and tags."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 256, (2, 3, 12, 16), generator=generator, dtype=torch.uint8)
    return colours, torch.rand(2, 3, 12, 16, generator=generator) ** 3, torch.tensor([[1, 0, 1], [0, 1, 0]])


def test_of_irn_are_pseudo_labels_at_its_thresholds() -> None:
    maps = row([0.04, 0.06, 0.29, 0.31], [0.0, 0.0, 0.0, 0.5])
    assert irn_labels(photos(maps), maps, torch.tensor([[1, 0]])).tolist() == [[[0, 255, 255, 1]]]
    given = random()
    refine = PixelAdaptiveRefinement(steps=2)
    expected = pseudo_labels(*given, 0.05, 0.30, refine)
    assert torch.equal(irn_labels(*given, refine=refine), expected)
    assert not torch.equal(irn_labels(*given), expected)
    assert torch.equal(irn_labels(*given, 0.2, 0.4), pseudo_labels(*given, 0.2, 0.4))


def test_of_psa_by_hand() -> None:
    """v beats (1 - v)^4 from 0.276 on, and (1 - v)^24 from 0.094 on."""
    maps = row([0.0, 0.08, 0.1, 0.27, 0.28, 0.9], [0.0, 0.0, 0.0, 0.0, 0.5, 1.0])
    assert psa_labels(photos(maps), maps, torch.tensor([[1, 0]])).tolist() == [[[0, 0, 255, 255, 1, 1]]]
    assert psa_labels(photos(maps), maps, torch.tensor([[1, 1]])).tolist() == [[[0, 0, 255, 255, 2, 2]]]
    assert psa_labels(photos(maps), maps, torch.tensor([[0, 0]])).tolist() == [[[0] * 6]]  # a photo of none
    # The powers that were given: 0.08 is background still, with 32 it is not.
    assert psa_labels(photos(maps), maps, torch.tensor([[1, 0]]), 1, 32).tolist() == [[[0, 255, 255, 255, 255, 1]]]


def test_of_psa_are_refined_together() -> None:
    """In one call, with the background's two scores, and only the classes present count."""
    colours, maps, tags = random()
    calls = []

    def mirrored(given: Tensor, scores: Tensor, present: Tensor, names: list[str]) -> Tensor:
        calls.append((given, scores, present, names))
        return scores.flip(-1)

    mirrored.wants_names = True  # type: ignore[attr-defined]
    found = psa_labels(colours, maps, tags, refine=mirrored, names=["a", "b"])
    ((given, scores, present, names),) = calls
    assert torch.equal(given, colours.repeat(2, 1, 1, 1))
    assert present.tolist() == [[True, True, False, True], [True, False, True, False]] * 2
    assert names == ["a", "b", "a", "b"]
    highest = torch.stack([maps[0, [0, 2]].amax(0), maps[1, 1]])
    torch.testing.assert_close(scores[:2, 0], (1 - highest) ** 4)
    torch.testing.assert_close(scores[2:, 0], (1 - highest) ** 24)
    assert torch.equal(found, psa_labels(colours, maps, tags).flip(-1))
    with pytest.raises(ValueError, match="wants the names of 2 photos"):
        psa_labels(colours, maps, tags, refine=mirrored)


def test_of_psa_after_its_crf() -> None:
    """Step by step. Scores are soft, so that the CRF of PSA takes them as they are."""
    colours, maps, tags = random()
    present = torch.tensor([[True, True, False, True], [True, False, True, False]])
    crf = DenseCRF("psa")
    labels = []
    for alpha in (4, 24):
        background = (1 - (maps * tags[:, :, None, None]).amax(1, keepdim=True)) ** alpha
        refined = crf(colours, torch.cat([background, maps], 1), present)
        labels.append(refined.masked_fill(~present[:, :, None, None], -1).argmax(1))
    expected = affinity_seeds(*labels)
    assert torch.equal(psa_labels(colours, maps, tags, refine=crf), expected)


@pytest.mark.parametrize("name", ["irn", "psa"])
def test_both(name: str) -> None:
    """Negative values, as of min-max normalised maps, count as 0; no photos give no labels."""
    colours, maps, tags = random()
    make = LABELS[name]
    signed = torch.where(maps < 0.01, -1.0, maps)
    assert torch.equal(make(colours, signed, tags), make(colours, maps.where(maps >= 0.01, 0), tags))
    assert set(make(colours, maps, tags)[0].unique().tolist()) == {0, 1, 3, 255}
    empty = make(colours[:0], maps[:0], tags[:0], refine=PixelAdaptiveRefinement(steps=1))
    assert (empty.shape, empty.dtype) == ((0, 12, 16), torch.int64)
    with pytest.raises(ValueError, match="`cams` have NaN values"):
        make(colours, maps * torch.nan, tags)
    with pytest.raises(ValueError, match=r"`tags` must be of shape \(2, 3\) like the maps"):
        make(colours, maps, tags[:1])


@pytest.mark.parametrize(("low", "high"), [(0, 4), (-1, 4), (24, 4)])
def test_powers_out_of_range(low: float, high: float) -> None:
    with pytest.raises(ValueError, match=f"powers must be 0 < low <= high, got {low} and {high}"):
        psa_labels(*random(), low, high)
