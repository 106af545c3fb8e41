"""Refiners by name."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wsss_contrast.data import DataError, SegmentFolder
from wsss_contrast.refine import CRF_SETTINGS, SEPL, DenseCRF, PixelAdaptiveRefinement, label_maker, refiner

needs_crf = pytest.mark.skipif(find_spec("pydensecrf") is None, reason="the extra `crf` is not installed")


class Mine:
    """A refiner of one's own."""

    def __call__(self, photos: Tensor, scores: Tensor, present: Tensor) -> Tensor:
        return 2 * scores


def make_mine() -> Mine:
    return Mine()


def of_power(power: int) -> Mine:
    return Mine()


def no_refiner() -> str:
    return "par"


def test_none() -> None:
    assert refiner("none") is None


def test_pixel_adaptive_refinement() -> None:
    assert repr(refiner("par")) == repr(PixelAdaptiveRefinement())


@needs_crf
@pytest.mark.parametrize(("name", "settings"), [("crf", "ppc"), ("crf:psa", "psa"), ("crf:deeplab", "deeplab")])
def test_dense_crf(name: str, settings: str) -> None:
    made = refiner(name)
    assert isinstance(made, DenseCRF)
    with made:
        assert made.settings == CRF_SETTINGS[settings]


@pytest.mark.parametrize("attribute", ["Mine", "make_mine"])
def test_one_of_your_own(attribute: str) -> None:
    made = refiner(f"tests.refine.test_by_name.{attribute}")
    assert type(made).__name__ == "Mine"  # pytest may have imported this file under a name of its own
    assert made is not None
    assert made(torch.zeros(0), torch.ones(1), torch.zeros(0)).tolist() == [2]


@pytest.mark.parametrize("folder", ["sam", "a b/day:1", "."])
@pytest.mark.parametrize("policy", ["max_iou", "max_iou_imp", "max_iou_imp2"])
def test_sepl(policy: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path)
    expected = SEPL(SegmentFolder(tmp_path / folder), policy)
    assert repr(refiner(f"sepl:{policy}:{folder}")) == repr(expected)
    assert repr(refiner(f"sepl:{folder}")) == repr(SEPL(SegmentFolder(tmp_path / folder)))
    expected.before = PixelAdaptiveRefinement()
    assert repr(refiner(f"par+sepl:{policy}:{folder}")) == repr(expected)
    mine = refiner(f"tests.refine.test_by_name.Mine+sepl:{folder}")
    assert isinstance(mine, SEPL)
    assert type(mine.before).__name__ == "Mine"
    none = refiner(f"none+sepl:{folder}")
    assert isinstance(none, SEPL)
    assert none.before is None


@needs_crf
def test_sepl_after_a_dense_crf(tmp_path: Path) -> None:
    for name, settings in (("crf", "ppc"), ("crf:psa", "psa")):
        made = refiner(f"{name}+sepl:{tmp_path}")
        assert isinstance(made, SEPL)
        assert isinstance(made.before, DenseCRF)
        assert made.before.settings == CRF_SETTINGS[settings]


def test_sepl_without_its_folder(tmp_path: Path) -> None:
    for name in ("sepl:nowhere", "sepl:max_iou:nowhere", "par+sepl:nowhere"):
        with pytest.raises(DataError, match=r"^nowhere: no such folder of masks"):
            refiner(name)
    with pytest.raises(ValueError, match="unknown refiner 'pars'"):
        refiner(f"pars+sepl:{tmp_path}")
    with pytest.raises(ValueError, match=r"'sepl:min_iou:sam': .* no folder min_iou:sam, .* max_iou, max_iou_imp"):
        refiner("sepl:min_iou:sam")


def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sam").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert repr(refiner("sepl:max_iou:~/sam")) == repr(SEPL(SegmentFolder(tmp_path / "sam"), "max_iou"))
    with pytest.raises(ValueError, match=f"^{tmp_path}/last.ckpt: no such checkpoint"):
        refiner("irn:~/last.ckpt")


def test_labels() -> None:
    photos, cams, tags = (
        torch.zeros(1, 3, 1, 4, dtype=torch.uint8),
        torch.tensor([[[[0.02, 0.2, 0.4, 0.9]]]]),
        torch.ones(1, 1),
    )
    expected = {
        "irn": [0, 255, 1, 1],
        "irn:0.3:0.5": [0, 0, 255, 1],
        "irn:0.1:0.1": [0, 1, 1, 1],
        "psa": [0, 255, 1, 1],
        "psa:2:3": [0, 0, 1, 1],
    }
    for name, labels in expected.items():
        assert label_maker(name)(photos, cams, tags).flatten().tolist() == labels, name
    for name in (
        "none",
        "seam",
        "irn:0.1",
        "irn:0.5:0.1",
        "irn:a:b",
        "irn:-1:0.1",
        "psa:1:2:3",
        "irn:",
        "irn:nan:1",
        "irn:0.5:1",
        "psa:0:4",
    ):
        with pytest.raises(ValueError, match=rf"^unknown labels '{name}'; give irn, irn:BACKGROUND:FOREGROUND with"):
            label_maker(name)


UNKNOWN = ["pars", "", "None", "PAR", "par:3", "crfs", "crfs:psa", ".Mine", ".mine.Mine", "sepl", "sepl:", "par+sepl:"]
UNKNOWN += ["psa", "psa:", "irn", "irn:"]


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_name(name: str) -> None:
    known = (
        "none, par, crf, crf:SETTINGS, sepl:FOLDER, crf+sepl:FOLDER, psa:CHECKPOINT, psa:LOGT:CHECKPOINT, "
        "irn:CHECKPOINT, irn:LOGT:CHECKPOINT or package.module.Name"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(f'unknown refiner {name!r}; give {known}')}$"):
        refiner(name)


@needs_crf
def test_unknown_settings() -> None:
    with pytest.raises(ValueError, match="unknown CRF settings 'pcp'; there are ppc, irn"):
        refiner("crf:pcp")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere.Refiner", "No module named 'nowhere'"),
        ("tests.refine.nowhere.Refiner", "No module named 'tests.refine.nowhere'"),
        ("tests.refine.test_by_name.Yours", "has no attribute 'Yours'"),
    ],
)
def test_what_cannot_be_imported(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"refiner '{name}' can't be imported: .*{reason}"):
        refiner(name)


@pytest.mark.parametrize(
    ("attribute", "reason"),
    [
        ("of_power", r"can't be called without arguments: .* 'power'"),
        ("__name__", "can't be called without arguments: 'str' object is not callable"),
        ("no_refiner", "gives 'par', which can't be called"),
    ],
)
def test_what_is_no_refiner(attribute: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^refiner 'tests.refine.test_by_name.{attribute}' {reason}"):
        refiner(f"tests.refine.test_by_name.{attribute}")


def test_a_crf_needs_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    assert isinstance(refiner("crf:psa"), DenseCRF)
