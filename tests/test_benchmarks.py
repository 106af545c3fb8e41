"""The benchmarks that keep results in files mix none of different arguments."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from torch import nn

from tests.test_conformance import load_tool

refinement = load_tool("refinement")


def seeds(out: Path, **changed: int) -> float:
    options = {"steps": 1, "crop_size": 32, "view_size": 16, "seed": 0, "images": 1, "out": out} | changed
    threshold: float = refinement.seeds(argparse.Namespace(**options))
    return threshold


def test_refinement_continues_with_the_same_arguments_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also: weights are whole where they have their name."""
    written = []

    def stop_after_weights(content: bytes, path: Path) -> None:
        real(content, path)
        written.append(path.name)
        if path.suffix == ".pt":
            raise KeyboardInterrupt

    real = refinement.write_atomically
    monkeypatch.setattr(refinement, "write_atomically", stop_after_weights)
    monkeypatch.setattr(refinement, "animals", lambda *_: None)
    monkeypatch.setattr(refinement, "train", lambda *_: nn.Linear(1, 1))
    with pytest.raises(KeyboardInterrupt):
        seeds(tmp_path / "out")
    assert written == ["arguments.json", "seam_ppc.pt"]
    with pytest.raises(SystemExit, match=r"out: has results of .*'steps': 1.*; give another --out"):
        seeds(tmp_path / "out", steps=2)

    (tmp_path / "out" / "seeds.json").write_text('{"threshold": 0.25}')
    assert seeds(tmp_path / "out") == 0.25
    with pytest.raises(SystemExit, match=r"out: has results of .*'images': 1"):
        seeds(tmp_path / "out", images=2)
    (tmp_path / "out" / "arguments.json").unlink()  # as older versions left it
    with pytest.raises(SystemExit, match=r"out: has results of unknown arguments"):
        seeds(tmp_path / "out")
