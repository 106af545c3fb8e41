"""Trainings that go on: the benchmark of thousands of steps, here of a few."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_conformance import load_tool

TOOL = Path(__file__).parents[1] / "benchmarks" / "soak.py"
soak = load_tool("soak")


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads memory from /proc")
@pytest.mark.parametrize("method", ["seam", "csrm"])
def test_some_steps_in_bf16(method: str, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(TOOL), "--steps", "60", "--methods", method, "--precisions", "bf16-mixed"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert f"| {method}, bf16-mixed | 60 | " in done.stdout


def test_what_grows_is_seen() -> None:
    level, quarter = [900.0] * 20, 20 // 4
    assert soak.judged([261] * 20, level) == ("261 | 900 | +0.0 MiB", True)
    assert soak.judged([9] * quarter + [261] * 15, [500.0] * quarter + level[quarter:])[1]
    assert not soak.judged([*[261] * 19, 262], level)[1]
    assert not soak.judged([261] * 20, [900.0 + 2 * step for step in range(20)])[1]
