"""The dense CRF on hard labels: what it must do on a photo of two flat colours."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from wsss_contrast.refine import dense_crf


@pytest.fixture
def photo() -> np.ndarray:
    """Dark on the left, bright on the right."""
    image = np.full((24, 32, 3), 40, np.uint8)
    image[:, 16:] = 200
    return image


def test_the_border_moves_to_that_of_the_photo(photo: np.ndarray) -> None:
    pytest.importorskip("pydensecrf", reason="the extra `crf` is not installed")
    labels = np.zeros((24, 32), np.uint8)
    labels[:, 18:] = 7  # two columns too late
    labels[0, 0] = 255
    refined = dense_crf(photo, labels)
    assert refined.dtype == np.uint8
    assert (refined[:, :16] == 0).all()
    assert (refined[:, 16:] == 7).all()
    assert (labels[:, 16:18] == 0).all()  # the argument is as it was


def test_a_mask_of_one_class_stays(photo: np.ndarray) -> None:
    pytest.importorskip("pydensecrf", reason="the extra `crf` is not installed")
    labels = np.full((24, 32), 3, np.uint8)
    labels[2, 2] = 255
    assert np.array_equal(dense_crf(photo, labels), labels)


def test_reading_only_arrays_and_more_classes_pass(photo: np.ndarray) -> None:
    pytest.importorskip("pydensecrf", reason="the extra `crf` is not installed")
    photo.flags.writeable = False
    labels = np.repeat(np.array([0, 5, 20, 254], np.uint8), 8)[None].repeat(24, axis=0)
    assert set(np.unique(dense_crf(photo, labels))) <= {0, 5, 20, 254}


def test_bad_input_is_named(photo: np.ndarray) -> None:
    pytest.importorskip("pydensecrf", reason="the extra `crf` is not installed")
    labels = np.zeros((24, 32), np.uint8)
    with pytest.raises(ValueError, match=r"image.*float64"):
        dense_crf(photo.astype(float), labels)
    with pytest.raises(ValueError, match=r"\(24, 31\).*\(24, 32, 3\)"):
        dense_crf(photo, labels[:, 1:])
    with pytest.raises(ValueError, match=r"confidence.*1\.5"):
        dense_crf(photo, labels, confidence=1.5)


def test_without_the_extra_it_says_what_to_install(photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(ImportError, match=r"pip install 'wsss-contrast\[crf\]'"):
        dense_crf(photo, np.zeros((24, 32), np.uint8))
