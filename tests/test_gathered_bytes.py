"""What the losses exchange is what the formulas of the note say."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.test_conformance import load_tool
from wsss_contrast import losses

ROOT = Path(__file__).parents[1]
NOTE = (ROOT / "docs" / "scaling.md").read_text()

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")

tool = load_tool("gathered_bytes")


def test_counts_on_two_processes_are_those_of_the_formulas() -> None:
    script = ROOT / "benchmarks" / "gathered_bytes.py"
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(script), "--processes", "2"],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts, papers = done.stdout.strip().split("\n\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in counts.splitlines()[2:]]
    assert [row[:2] for row in rows] == [[name, f"`{formula}`"] for name, formula in tool.FORMULAS.items()]
    for name, formula, told, counted in rows:
        assert told == counted, name
        assert (counted == "0") == (formula == "`0`"), name
    assert papers in NOTE


def test_a_wrong_count_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def ranks(world: int) -> list[dict[str, dict[str, int]]]:
        none = [{name: {"rows": 0} for name in tool.FORMULAS}]
        gives = {name: tool.expected(name, none) for name in tool.FORMULAS}
        return [
            {name: {"gives": n, "receives": (world - 1) * n, "rows": 0} for name, n in gives.items()}
            for _ in range(world)
        ]

    assert tool.compare({2: ranks(2), 3: ranks(3)})[1] == []
    wrong = ranks(3)
    wrong[1]["SemanticAffinity"]["receives"] += 8
    monkeypatch.setattr(tool, "counted", lambda _: wrong)
    monkeypatch.setattr(tool, "BACKBONES", ())
    with pytest.raises(SystemExit, match=r"^SemanticAffinity: of 3 ranks number 1 .*\(24, 56\), not \(24, 48\)$"):
        tool.main(["--processes", "3"])
    assert "| SemanticAffinity | `24` | 48 | 48 / 56 |" in capsys.readouterr().out


def test_every_loss_has_a_formula_and_the_note_has_it() -> None:
    public = [getattr(losses, name) for name in losses.__all__]
    modules = {value.__name__ for value in public if inspect.isclass(value) and issubclass(value, nn.Module)}
    assert modules <= {name.partition(",")[0] for name in tool.FORMULAS}
    for name, formula in tool.FORMULAS.items():
        assert f"| {name} | `{formula}` |" in NOTE or (formula == "0" and f"`{name}`" in NOTE), name
