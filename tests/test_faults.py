"""Trainings and predictions that are killed at drawn moments, and go on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "benchmarks" / "faults.py"


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="forked workers need Linux")
def test_what_is_killed_ends_as_if_it_were_not(tmp_path: Path) -> None:
    """To the last bit: weights, optimizer, schedule, teacher and memory; and no mask is lost or half-written."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(TOOL), "--kills", "3"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert "seam: killed 3 times, the checkpoint of step 15 is the same" in done.stdout
    assert "csrm: killed 3 times, the checkpoint of step 15 is the same" in done.stdout
    assert "masks are the same" in done.stdout
