"""SEPL as a refiner: alone, after another one, and in `predict`, which tells it the photos' names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from wsss_contrast.data import DataError, SegmentFolder
from wsss_contrast.functional import merge_segments
from wsss_contrast.refine import SEPL, PixelAdaptiveRefinement, pseudo_labels

from ..callbacks.test_mask_writer import NAMES, images, model, predict, shapes

GENERATOR = torch.Generator().manual_seed(0)
SEGMENTS = {name: torch.rand(4, 3, 4, generator=GENERATOR) < 0.5 for name in ("cat", "dog")}
CAMS = torch.rand(2, 3, 3, 4, generator=GENERATOR)
PHOTOS = torch.randint(0, 256, (2, 3, 3, 4), generator=GENERATOR, dtype=torch.uint8)
TAGS = torch.tensor([[1, 0, 1], [1, 1, 0]])


def segments(name: str, size: tuple[int, int]) -> Tensor:
    assert size == (3, 4)
    return SEGMENTS[name]


def invert(photos: Tensor, scores: Tensor, present: Tensor) -> Tensor:
    """The best class becomes the worst of those present."""
    return 1 - scores


def expected(policy: str, threshold: float = 0.4) -> Tensor:
    plain = pseudo_labels(PHOTOS, CAMS, TAGS, threshold)
    assert len(plain.unique()) > 2
    merged = [merge_segments(mask, SEGMENTS[name], policy) for mask, name in zip(plain, SEGMENTS, strict=True)]
    return torch.stack(merged)


@pytest.mark.parametrize("policy", ["max_iou", "max_iou_imp", "max_iou_imp2"])
def test_labels_are_the_merged_ones_of_each_photo(policy: str) -> None:
    found = pseudo_labels(PHOTOS, CAMS, TAGS, 0.4, refine=SEPL(segments, policy), names=["cat", "dog"])
    assert torch.equal(found, expected(policy))
    turned = pseudo_labels(PHOTOS, CAMS, TAGS, 0.4, refine=SEPL(segments, policy), names=["dog", "cat"])
    assert not torch.equal(turned, found)


def test_two_thresholds_and_soft_labels() -> None:
    """Both scores of the background are merged; a soft label is sure of its class."""
    found = pseudo_labels(PHOTOS, CAMS, TAGS, 0.2, 0.7, SEPL(segments), names=["cat", "dog"])
    high, low = expected("max_iou_imp2", 0.7), expected("max_iou_imp2", 0.2)
    assert torch.equal(found, torch.where(high > 0, high, torch.where(low == 0, 0, 255)))
    soft = pseudo_labels(PHOTOS, CAMS, TAGS, 0.2, 0.7, SEPL(segments), soft=True, names=["cat", "dog"])
    assert set(soft.unique().tolist()) == {0.0, 1.0}
    assert (soft.sum(dim=1) == 1).all()


def test_another_refiner_comes_first() -> None:
    inverted = pseudo_labels(PHOTOS, CAMS, TAGS, 0.4, refine=invert)
    found = pseudo_labels(PHOTOS, CAMS, TAGS, 0.4, refine=SEPL(segments, before=invert), names=["cat", "dog"])
    for mask, of_refiner, name in zip(found, inverted, SEGMENTS, strict=True):
        assert torch.equal(mask, merge_segments(of_refiner, SEGMENTS[name]))
    assert not torch.equal(found, expected("max_iou_imp2"))


def test_one_that_wants_names_comes_first() -> None:
    told = []

    class Named:
        wants_names = True

        def __call__(self, photos: Tensor, scores: Tensor, present: Tensor, names: list[str]) -> Tensor:
            told.append(names)
            return scores

    found = pseudo_labels(PHOTOS, CAMS, TAGS, 0.4, refine=SEPL(segments, before=Named()), names=["cat", "dog"])
    assert told == [["cat", "dog"]]
    assert torch.equal(found, pseudo_labels(PHOTOS, CAMS, TAGS, 0.4, refine=SEPL(segments), names=["cat", "dog"]))


def test_it_works_as_many_batches_at_once_as_the_refiner_before_and_closes_it() -> None:
    class Several(PixelAdaptiveRefinement):
        concurrency, closed = 3, False

        def close(self) -> None:
            self.closed = True

    before = Several(steps=1)
    refine = SEPL(segments, before=before)
    refine.close()
    assert (refine.concurrency, before.closed) == (3, True)
    alone = SEPL(segments)
    alone.close()
    assert alone.concurrency == 1


@pytest.mark.parametrize("names", [None, [], ["cat"], ["cat", "dog", "cat"]])
def test_names_are_needed(names: list[str] | None) -> None:
    with pytest.raises(ValueError, match=r"the refiner SEPL\(.*\) wants the names of 2 photos, got "):
        pseudo_labels(PHOTOS, CAMS, TAGS, 0.4, refine=SEPL(segments), names=names)
    scores, present = torch.ones(2, 4, 3, 4), torch.ones(2, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"SEPL needs the name of each photo, got \d names for 2 photos"):
        SEPL(segments)(PHOTOS, scores, present, names or [])


def test_names_are_for_those_who_want_them() -> None:
    found = pseudo_labels(PHOTOS, CAMS, TAGS, 0.4, refine=invert, names=["cat", "dog"])
    assert torch.equal(found, pseudo_labels(PHOTOS, CAMS, TAGS, 0.4, refine=invert))


def test_unknown_policy() -> None:
    with pytest.raises(ValueError, match="unknown policy 'max' of SEPL; there are max_iou, max_iou_imp, max_iou_imp2"):
        SEPL(segments, "max")


# --- predict


def write_halves(folder: Path) -> None:
    """Of each photo the upper part, the number of whose rows is the photo's own, and the lower one."""
    for number, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        mask = np.zeros((48, 48), np.uint8)
        mask[: 8 * (number + 1)] = 255
        Image.fromarray(mask).save(folder / name / "0.png")
        Image.fromarray(255 - mask).save(folder / name / "1.png")


@pytest.mark.parametrize("batch_size", [1, 2])
def test_predict_tells_the_names(batch_size: int, tmp_path: Path) -> None:
    """The masks are those without it, merged with each photo's own."""
    write_halves(tmp_path / "segments")
    out, module, merges = tmp_path / "masks", model(), 0
    read = SegmentFolder(tmp_path / "segments")
    module.refine = SEPL(read)
    assert predict(out, module, shapes(eval_batch_size=batch_size)) == NAMES
    predict(tmp_path / "plain")
    for name in NAMES:
        plain = torch.from_numpy(np.array(Image.open(tmp_path / "plain" / f"{name}.png")))
        found = np.asarray(Image.open(out / f"{name}.png"))
        np.testing.assert_array_equal(found, merge_segments(plain, read(name, (48, 48))).numpy())
        merges += bool((found != plain.numpy()).any())
    assert merges

    # The folder of masks belongs to what made them.
    with pytest.raises(FileExistsError, match=r": refine;"):
        predict(out)
    module.refine = SEPL(SegmentFolder(tmp_path / "segments"), "max_iou")
    with pytest.raises(FileExistsError, match=r": refine;"):
        predict(out, module)


def test_a_photo_without_masks_is_named_and_the_run_goes_on_later(tmp_path: Path) -> None:
    write_halves(tmp_path / "segments")
    out, module, missing = tmp_path / "masks", model(), tmp_path / "segments" / NAMES[2]
    missing.rename(tmp_path / "elsewhere")
    module.refine = SEPL(SegmentFolder(tmp_path / "segments"))
    with pytest.raises(DataError, match=f"segments: the photo {NAMES[2]} must have a folder {NAMES[2]}/"):
        predict(out, module)
    assert images(out).keys() == {f"{name}.png" for name in NAMES[:2]}
    (tmp_path / "elsewhere").rename(missing)
    assert predict(out, module) == NAMES[2:]
