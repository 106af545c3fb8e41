"""The dense CRF on a photo of two flat colours, and in processes. Recorded values: tests/test_conformance.py."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from wsss_contrast.refine import CRF_SETTINGS, CRFSettings, DenseCRF, dense_crf, hard_unaries, mean_field, soft_unaries

needs_crf = pytest.mark.skipif(find_spec("pydensecrf") is None, reason="the extra `crf` is not installed")


@pytest.fixture(params=["extra", "torch"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra, and as it is without."""
    if request.param == "torch":
        monkeypatch.setitem(sys.modules, "pydensecrf", None)
    elif find_spec("pydensecrf") is None:
        pytest.skip("the extra `crf` is not installed")


either = pytest.mark.usefixtures("engine")


def photo(height: int = 24) -> np.ndarray:
    """Dark on the left, bright on the right."""
    image = np.full((height, 32, 3), 40, np.uint8)
    image[:, 16:] = 200
    return image


def late(classes: int = 3, at: int = 18, height: int = 24) -> np.ndarray:
    """Scores of the background on the left and of class 1 on the right; the border is two columns too late."""
    scores = np.full((classes, height, 32), 0.1, np.float32)
    scores[0, :, :at] = scores[1, :, at:] = 0.8
    return scores


PRESENT = np.array([True, True, False])


@either
@pytest.mark.parametrize("name", [name for name in CRF_SETTINGS if name != "seam_segmenter"])  # a single step
def test_the_border_moves_to_that_of_the_photo(name: str) -> None:
    scores = late()
    (refined,) = DenseCRF(name).stream([(photo(), scores, PRESENT)])
    assert refined.dtype == np.float32
    assert refined.shape == scores.shape
    best = refined.argmax(axis=0)
    assert (best[:, :16] == 0).all()
    assert (best[:, 16:] == 1).all()
    assert (refined[2] == 0).all()  # an absent class
    np.testing.assert_allclose(refined.sum(axis=0), 1, atol=1e-4)
    assert np.array_equal(scores, late())  # the argument is as it was


@either
def test_absent_classes_take_no_part() -> None:
    """Not even in how the rest of the confidence is shared."""
    (of_three,) = DenseCRF().stream([(photo(), late(3), PRESENT)])
    (of_two,) = DenseCRF().stream([(photo(), late(2), PRESENT[:2])])
    assert np.array_equal(of_three[:2], of_two)
    (of_all,) = DenseCRF().stream([(photo(), late(3), np.ones(3, bool))])
    assert not np.array_equal(of_all[:2], of_two)


@either
def test_a_photo_without_tags_is_background() -> None:
    (refined,) = DenseCRF().stream([(photo(), late(), np.array([True, False, False]))])
    assert (refined[0] == 1).all()
    assert (refined[1:] == 0).all()


@either
def test_batches_of_tensors() -> None:
    photos = torch.from_numpy(np.stack([photo(), photo()[:, ::-1]])).permute(0, 3, 1, 2)
    scores = torch.from_numpy(np.stack([late(), late()[..., ::-1]]))
    refined = DenseCRF()(photos, scores, torch.from_numpy(np.stack([PRESENT, PRESENT])))
    assert refined.shape == scores.shape
    torch.testing.assert_close(refined[0], refined[1].flip(-1), atol=2e-2, rtol=0)  # the lattice is not symmetric
    assert torch.equal(refined[0].argmax(0) == 1, torch.arange(32).expand(24, -1) >= 16)


@either
def test_no_photos_and_scores_that_are_being_trained() -> None:
    photos = torch.from_numpy(photo()[None]).permute(0, 3, 1, 2)
    scores, present = torch.from_numpy(late()[None]), torch.from_numpy(PRESENT[None])
    refined = DenseCRF()(photos, scores.clone().requires_grad_(), present)
    assert not refined.requires_grad
    assert torch.equal(refined, DenseCRF()(photos, scores, present))
    none = DenseCRF()(photos[:0], scores[:0], present[:0])
    assert (none.shape, none.dtype) == ((0, 3, 24, 32), torch.float32)


def test_unaries() -> None:
    scores = np.array([[[0.5, 0.0]], [[2.0, 1e-9]]], np.float32)
    np.testing.assert_allclose(soft_unaries(scores), -np.log([[[0.5, 1e-5]], [[2.0, 1e-5]]]), rtol=1e-6)
    hard = hard_unaries(np.array([[0, 2]]), 3, 0.7)
    np.testing.assert_allclose(np.exp(-hard[:, 0]).T, [[0.7, 0.15, 0.15], [0.15, 0.15, 0.7]], rtol=1e-6)


@needs_crf
def test_bad_input_is_named() -> None:
    unaries = soft_unaries(late())
    with pytest.raises(ValueError, match=r"photo.*float64"):
        mean_field(photo().astype(float), unaries)
    with pytest.raises(ValueError, match=r"\(3, 24, 31\).*\(24, 32, 3\)"):
        mean_field(photo(), unaries[..., 1:])
    with pytest.raises(ValueError, match=r"confidence.*1\.5"):
        CRFSettings((50, 5, 10), confidence=1.5)
    with pytest.raises(ValueError, match=r"iterations.*0"):
        CRFSettings((50, 5, 10), iterations=0)
    with pytest.raises(ValueError, match=r"processes.*-1"):
        DenseCRF(processes=-1)
    with pytest.raises(ValueError, match=r"'pcp'; there are ppc, irn"):
        DenseCRF("pcp")


@pytest.mark.parametrize("label", [-1, 3, 255])
def test_labels_that_are_no_class_are_named(label: int) -> None:
    with pytest.raises(ValueError, match=rf"from 0 to 2, got {label}$"):
        hard_unaries(np.array([[0, label]]), 3, 0.7)
    assert np.array_equal(hard_unaries(np.array([[0, 1]], np.uint16)[:, ::-1], 3, 0.7).argmin(axis=0), [[1, 0]])
    with pytest.raises(ValueError, match=r"num_classes.*at least 2, got 1"):
        hard_unaries(np.array([[0]]), 1, 0.7)


@needs_crf
@pytest.mark.parametrize("name", ["ppc", "psa", "ppc_affinity", "deeplab"])
def test_without_the_extra_it_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = torch.randint(0, 256, (2, 3, 24, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    photos = photos // 8 + torch.from_numpy(photo()).permute(2, 0, 1)
    scores = torch.from_numpy(np.stack([late(), late(at=12)]))
    present = torch.tensor([[True, True, False], [True, True, True]])
    crf = DenseCRF(name, processes=2)
    with crf:
        refined = crf(photos, scores, present)
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    crf = DenseCRF(name, processes=2)
    torch.testing.assert_close(crf(photos, scores, present), refined, atol=1e-4, rtol=0)
    assert crf.concurrency == 1
    alone = crf(photos, scores, torch.tensor([[True, False, False]] * 2))
    assert torch.equal(alone[:, 0], torch.ones(2, 24, 32))
    with pytest.raises(ImportError, match=r"pip install 'wsss-contrast\[crf\]'"):
        mean_field(photo(), soft_unaries(late()))


@either
def test_photos_as_libraries_give_them() -> None:
    """Mirrored, and read-only as `np.asarray` of an image is; never from 0 to 1."""
    mirrored = photo()[:, ::-1]
    mirrored.setflags(write=False)
    (refined,) = DenseCRF().stream([(mirrored, late()[..., ::-1], PRESENT)])
    assert (refined.argmax(axis=0)[:, 16:] == 0).all()
    with pytest.raises(ValueError, match=r"photo.*float32"):
        list(DenseCRF().stream([(photo() / np.float32(255), late(), PRESENT)]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_photos_and_scores_of_two_devices(engine: None) -> None:
    photos, scores, present = torch.from_numpy(photo()[None]), torch.from_numpy(late()[None]), torch.from_numpy(PRESENT)
    photos = photos.permute(0, 3, 1, 2)
    refined = DenseCRF()(photos, scores.cuda(), present[None])
    assert refined.device.type == "cuda"
    torch.testing.assert_close(refined.cpu(), DenseCRF()(photos, scores, present[None]), atol=1e-3, rtol=0)


# --- processes


@needs_crf
def test_processes_give_the_same_in_order() -> None:
    inputs = [(photo(20 + i), late(at=14 + i, height=20 + i), PRESENT) for i in range(6)]
    alone = list(DenseCRF().stream(inputs))
    with DenseCRF(processes=2) as crf:
        for _ in range(2):  # the processes live on
            together = list(crf.stream(inputs))
            assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    (again,) = crf.stream(inputs[:1])  # new ones
    crf.close()
    assert np.array_equal(again, alone[0])


@needs_crf
def test_a_process_for_each_cpu_that_this_one_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert DenseCRF(processes=None).concurrency == 6
    assert [DenseCRF(processes=n).concurrency for n in (0, 1, 3)] == [1, 1, 3]
    crf = DenseCRF(processes=None)
    monkeypatch.setattr(dense_crf, "world_size", lambda: 3)  # the ranks start after the refiner was made
    assert crf.concurrency == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # of two machines or more
    assert DenseCRF(processes=None).concurrency == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert DenseCRF(processes=None).concurrency == 1
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS, Windows
    assert DenseCRF(processes=None).concurrency == 8
