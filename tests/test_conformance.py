"""The library equals the reference values, and the tool that says so can fail."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT.parent / "shared" / "golden"
FILES = sorted(GOLDEN.glob("*/*.pt"))
needs_ppc = pytest.mark.skipif(not (GOLDEN / "ppc").is_dir(), reason="needs the folder ../shared/golden/ppc")


def load_tool(name: str) -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))  # as for a script that is run there
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


tool, cases_of = load_tool("conformance"), load_tool("conformance_cases")


@pytest.mark.skipif(not FILES, reason="needs the folders ../shared/golden/ppc and csrm")
@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_library_equals_reference(path: Path) -> None:
    cases = list(tool.check_file(path))
    failed = [str(case) for case in cases if case.failed]
    assert not failed, "\n".join(failed)
    assert not [case for case in cases if case.status == "unknown"], f"{path.name} is of no known name"


@needs_ppc
def test_every_part_of_the_small_files_is_compared() -> None:
    """No case of a claimed file is left out without saying so."""
    done = {(case.file, case.name) for path in FILES for case in tool.check_file(path) if case.compared}
    assert done >= {
        ("ppc_small_mixed.pt", "seam"),
        ("ppc_small_mixed.pt", "ppc functions"),
        ("ppc_small_mixed.pt", "ppc module"),
        ("ppc_single_class.pt", "seam"),
        ("ppc_stable_ties.pt", "ppc_small_mixed"),
        ("ppc_stable_ties.pt", "ppc_single_class"),
        ("eps_small.pt", "ppc functions"),
        ("eps_small.pt", "ppc module"),
        ("ms_cam_merge.pt", "merge"),
        ("ms_cam_merge.pt", "multi-scale"),
        ("eval_curve.pt", "curve"),
        ("poly_sgd.pt", "trajectory"),
        ("psa_12x12.pt", "affinity and loss"),
        ("psa_12x12.pt", "walk"),
        ("irn_24x24.pt", "affinity and losses"),
        ("irn_24x24.pt", "walk"),
    }


def scale(name: str, factor: float = 1.001) -> Callable[[dict[str, Any]], None]:
    """Change a float tensor, which ``a/b`` finds in nested dicts, by a thousandth of itself."""

    def change(reference: dict[str, Any]) -> None:
        *folders, leaf = name.split("/")
        for folder in folders:
            reference = reference[folder]
        reference[leaf] = reference[leaf] * factor

    return change


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    def change(reference: dict[str, Any]) -> None:
        *folders, leaf = name.split("/")
        for folder in folders:
            reference = reference[folder]
        del reference[leaf]

    return change


def shift(name: str) -> Callable[[dict[str, Any]], None]:
    """Change one label."""

    def change(reference: dict[str, Any]) -> None:
        *folders, leaf = name.split("/")
        for folder in folders:
            reference = reference[folder]
        values: Tensor = reference[leaf]
        values.view(-1)[0] = (values.view(-1)[0] + 1) % 21

    return change


def swap_pixel(reference: dict[str, Any]) -> None:
    """Take another hard pixel, one of another class."""
    first, second = list(reference["ppc"]["hard_idx2"])[:2]
    reference["ppc"]["hard_idx2"][first][0] = reference["ppc"]["hard_idx2"][second][0]


def nan_loss(reference: dict[str, Any]) -> None:
    reference["seam"]["loss_er"] = torch.tensor(float("nan"))


def tie(reference: dict[str, Any]) -> None:
    """The background's candidates are all tied: another choice is as good, but not the lowest index."""
    reference["ppc_small_mixed"]["top_indices1"][0] += 1


PERTURBED = [
    ("ppc_small_mixed.pt", "seam", scale("seam/cam_norm1")),
    ("ppc_small_mixed.pt", "seam", scale("seam/cam_rv_down2")),
    ("ppc_small_mixed.pt", "seam", scale("seam/pred1")),
    ("ppc_small_mixed.pt", "seam", scale("seam/loss_rvmin2")),
    ("ppc_small_mixed.pt", "seam", scale("seam/loss_ecr")),
    ("ppc_small_mixed.pt", "seam", scale("seam_grad/loss_er/cam_logit1")),
    ("ppc_small_mixed.pt", "seam", nan_loss),
    ("ppc_small_mixed.pt", "ppc functions", scale("ppc/cam_norm_ppc1")),
    ("ppc_small_mixed.pt", "ppc functions", scale("ppc/top_values1")),
    ("ppc_small_mixed.pt", "ppc functions", scale("ppc/prototypes2")),
    ("ppc_small_mixed.pt", "ppc functions", scale("ppc/v1")),
    ("ppc_small_mixed.pt", "ppc functions", scale("ppc/intra_pos_sim2")),
    ("ppc_small_mixed.pt", "ppc functions", scale("ppc/intra_nll1")),
    ("ppc_small_mixed.pt", "ppc functions", scale("ppc/loss_cp2")),
    ("ppc_small_mixed.pt", "ppc functions", scale("ppc/loss_cc1")),
    ("ppc_small_mixed.pt", "ppc functions", scale("ppc/loss_intra1")),
    ("ppc_small_mixed.pt", "ppc functions", scale("ppc/loss_intra_plain1")),
    ("ppc_small_mixed.pt", "ppc functions", shift("ppc/pseudo_label1")),
    ("ppc_small_mixed.pt", "ppc functions", shift("ppc/neg_idx2")),
    ("ppc_small_mixed.pt", "ppc functions", swap_pixel),
    ("ppc_small_mixed.pt", "ppc functions", drop("ppc/v1")),
    ("ppc_small_mixed.pt", "ppc functions", drop("ppc/rand_idx2")),
    ("ppc_small_mixed.pt", "ppc module", scale("ppc/loss_cross_cam_w")),
    ("ppc_small_mixed.pt", "ppc module", scale("ppc_grad/intra_w/f_proj2")),
    ("ppc_small_mixed.pt", "ppc module", scale("ppc/loss_intra_plain2")),
    ("ppc_small_mixed.pt", "ppc module", drop("ppc_grad")),
    ("eps_small.pt", "ppc functions", scale("ppc/loss_cc2")),
    ("eps_small.pt", "ppc module", scale("ppc_grad_total/f_proj1")),
    ("ppc_stable_ties.pt", "ppc_small_mixed", scale("ppc_small_mixed/grad_total_f_proj2")),
    ("ppc_stable_ties.pt", "ppc_small_mixed", drop("ppc_small_mixed/grad_total_f_proj2")),
    ("ppc_stable_ties.pt", "ppc_small_mixed", tie),
    ("ms_cam_merge.pt", "merge", scale("norm_cam")),
    ("ms_cam_merge.pt", "multi-scale", shift("pred_026")),
    ("eval_curve.pt", "curve", scale("curve")),
    ("poly_sgd.pt", "trajectory", scale("max_step", 2)),
    ("psa_12x12.pt", "affinity and loss", scale("outputs/aff")),
    ("psa_12x12.pt", "affinity and loss", scale("outputs/neg_label")),
    ("psa_12x12.pt", "affinity and loss", scale("outputs/fg_loss")),
    ("psa_12x12.pt", "affinity and loss", scale("outputs/grad_feat")),
    ("psa_12x12.pt", "walk", scale("outputs/trans")),
    ("psa_12x12.pt", "walk", scale("outputs/rw_const")),
    ("psa_12x12.pt", "walk", scale("outputs/cam_down_pow6")),
    ("psa_12x12.pt", "walk", shift("outputs/pred_pow6")),
    ("irn_24x24.pt", "affinity and losses", scale("outputs/affinity")),
    ("irn_24x24.pt", "affinity and losses", shift("outputs/dst_indices")),
    ("irn_24x24.pt", "affinity and losses", scale("outputs/bg_pos")),
    ("irn_24x24.pt", "affinity and losses", scale("outputs/dp_bg_loss")),
    ("irn_24x24.pt", "affinity and losses", scale("outputs/grad_dp")),
    ("irn_24x24.pt", "affinity and losses", drop("outputs/grad_edge")),
    ("irn_24x24.pt", "walk", scale("outputs/rw")),
]


@needs_ppc
@pytest.mark.parametrize(("file", "name", "change"), PERTURBED)
def test_perturbed_reference_fails(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    name: str,
    change: Callable[[dict[str, Any]], None],
) -> None:
    reference = torch.load(GOLDEN / "ppc" / file, weights_only=True)
    change(reference)
    torch.save(reference, tmp_path / file)
    if file == "ppc_stable_ties.pt":
        (tmp_path / "ppc_small_mixed.pt").symlink_to(GOLDEN / "ppc" / "ppc_small_mixed.pt")
    assert tool.main(["--golden", str(tmp_path)]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert any(f"{file} [{name}]" in line for line in failed), failed


@needs_ppc
def test_unreadable_file_fails_and_hides_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = (GOLDEN / "ppc" / "eval_curve.pt").read_bytes()
    (tmp_path / "eval_curve.pt").write_bytes(content[: len(content) // 2])
    (tmp_path / "poly_sgd.pt").symlink_to(GOLDEN / "ppc" / "poly_sgd.pt")
    assert tool.main(["--golden", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("FAIL") and "eval_curve.pt" in line and "not checked" in line for line in lines)
    assert any(line.startswith("ok") and "poly_sgd.pt [trajectory]" in line for line in lines)


@pytest.mark.parametrize("content", [{}, {"unheard": 1}, [1, 2], "text"], ids=str)
@pytest.mark.parametrize(
    "file", ["ppc_other.pt", "eps_other.pt", "ppc_stable_ties.pt", "poly_sgd.pt", "psa_other.pt", "irn_other.pt"]
)
def test_claimed_name_of_another_format_fails(tmp_path: Path, file: str, content: Any) -> None:
    torch.save(content, tmp_path / file)
    assert tool.main(["--golden", str(tmp_path)]) == 1


@needs_ppc
def test_ties_without_their_siblings_are_skipped_but_the_file_is_not_passed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ppc_stable_ties.pt").symlink_to(GOLDEN / "ppc" / "ppc_stable_ties.pt")
    assert tool.main(["--golden", str(tmp_path)]) == 1
    (tmp_path / "ppc_small_mixed.pt").symlink_to(GOLDEN / "ppc" / "ppc_small_mixed.pt")
    capsys.readouterr()
    assert tool.main(["--golden", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    skipped = [line for line in lines if line.startswith("skipped")]
    assert len(skipped) == 1
    assert "[ppc_single_class]" in skipped[0]
    assert "ppc_single_class.pt, which is not there" in skipped[0]


def test_file_that_is_not_claimed_does_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.pt").write_bytes(b"not even read")
    assert tool.main(["--golden", str(tmp_path)]) == 0
    assert "unknown  mine.pt" in capsys.readouterr().out


def test_folder_without_reference_files_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--golden", str(tmp_path / "absent")]) == 1
    assert "no reference files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ours", "reference", "error"),
    [
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([0.0], [0.0], 0.0),
        ([1e-9], [0.0], float("inf")),
        ([1.0], [1.0, 1.0], float("inf")),
        ([], [], 0.0),
    ],
)
def test_relative_error(ours: list[float], reference: list[float], error: float) -> None:
    assert cases_of.relative_error(torch.tensor(ours), torch.tensor(reference)) == error
