"""Two gloo processes under DDP, without ``find_unused_parameters``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from .distributed_cases import CASES, JOINED, Half, Keep
from .hosts import Photos, loader, same, trainer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What both ranks have after each case. One subprocess for all: a hang fails all, after the timeout."""
    if not hasattr(os, "fork") or sys.platform == "darwin":
        pytest.skip("forked workers need Linux")
    folder = tmp_path_factory.mktemp("ddp")
    command = [sys.executable, "-m", "tests.callbacks.distributed_cases", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    return {case: [torch.load(folder / f"{case}-{rank}.pt") for rank in (0, 1)] for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_ranks_stay_in_step(case: str, results: dict[str, list[Any]]) -> None:
    """Host and projector are bit-identical on both ranks from the first step to the last, and have moved."""
    first, second = results[case]
    for when in ("start", "end"):
        if case != "one_view":  # its batch-norm statistics are each rank's own
            assert same(first[when]["host"], second[when]["host"])
        for name, values in first[when]["parts"].items():
            assert same(values, second[when]["parts"][name])
    assert not same(first["start"]["host"], first["end"]["host"])
    for name, values in first["start"]["parts"].items():
        assert not same(values, first["end"]["parts"][name])
    assert len(first["losses"]) == len(second["losses"]) == (4 if case in JOINED else 3)


def test_ranks_see_other_photos(results: dict[str, list[Any]]) -> None:
    first, second = results["two_views"]
    assert not any(torch.equal(a, b) for a, b in zip(first["losses"], second["losses"], strict=True))


def test_ranks_draw_apart(results: dict[str, list[Any]]) -> None:
    first, second = results["same_photos"]
    assert not any(torch.equal(a, b) for a, b in zip(first["losses"], second["losses"], strict=True))


def test_a_rank_that_skips_adds_a_zero(results: dict[str, list[Any]]) -> None:
    assert results["none_on_one"][1]["losses"][1] == 0
    assert results["none_on_one"][0]["losses"][1] > 0
    assert all(rank["losses"][1] == 0 for rank in results["none_on_all"])


@pytest.mark.parametrize("name", JOINED)
def test_two_processes_are_one_on_the_joined_batch(name: str, results: dict[str, list[Any]], tmp_path: Path) -> None:
    """Losses of four steps, and after them weights, teacher and memory; each rank has one half of each batch."""
    make, options = JOINED[name]
    ranks = results[name]
    torch.manual_seed(0)
    alone = {key: value for key, value in options.items() if key != "strategy"}
    trainer([*make(), Keep(str(tmp_path / "single"))], steps=4, **alone).fit(Half(), loader(Photos(16), batch_size=4))
    single = torch.load(tmp_path / "single-0.pt")
    near = {"rtol": 2e-2, "atol": 1e-3} if name == "bf16" else {"rtol": 1e-5, "atol": 1e-6}
    for step, loss in enumerate(single["losses"]):
        torch.testing.assert_close((ranks[0]["losses"][step] + ranks[1]["losses"][step]) / 2, loss, **near)
    found = {"host": ranks[0]["end"]["host"], **ranks[0]["end"]["parts"]}
    for part, values in {"host": single["end"]["host"], **single["end"]["parts"]}.items():
        assert len(found[part]) == len(values)
        for got, expected in zip(found[part], values, strict=True):
            assert (got - expected).abs().max() <= near["rtol"] * expected.abs().max() + near["atol"], part
