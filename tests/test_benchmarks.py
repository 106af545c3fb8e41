"""The benchmarks that keep results in files mix none of different arguments."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_conformance import load_tool

refinement = load_tool("refinement")


def seeds(out: Path, **changed: int) -> float:
    options = {"steps": 1, "crop_size": 32, "view_size": 16, "seed": 0, "images": 1, "out": out} | changed
    threshold: float = refinement.seeds(argparse.Namespace(**options))
    return threshold


def test_refinement_continues_with_the_same_arguments_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(_args: argparse.Namespace) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(refinement, "trained", stopped)
    with pytest.raises(KeyboardInterrupt):
        seeds(tmp_path / "out")
    with pytest.raises(SystemExit, match=r"out: has results of .*'steps': 1.*; give another --out"):
        seeds(tmp_path / "out", steps=2)

    (tmp_path / "out" / "seeds.json").write_text('{"threshold": 0.25}')
    assert seeds(tmp_path / "out") == 0.25
    with pytest.raises(SystemExit, match=r"out: has results of .*'images': 1"):
        seeds(tmp_path / "out", images=2)
    (tmp_path / "out" / "arguments.json").unlink()  # as older versions left it
    with pytest.raises(SystemExit, match=r"out: has results of unknown arguments"):
        seeds(tmp_path / "out")


def test_refinement_measures_every_kind_of_refiner(
    tmp_path: Path,
    mask_writer: Callable[[Path, tuple[int, int], tuple[int, ...]], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a tiny folder; also: a rerun takes all from the files, and a walk's own threshold is chosen on `train`."""
    root, names = tmp_path / "voc_animals", [f"p{number}" for number in range(8)]
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (64, 80, 3)).astype(np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
        mask_writer(root / "SegmentationClassAug" / f"{name}.png", (64, 80), (8,))
    (root / "tags.csv").write_text("name,tags\n" + "".join(f"{name},cat\n" for name in names))
    for split in ("train_mini", "val"):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names))
    monkeypatch.setenv("WSSS_DATA", str(tmp_path))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(refinement, "ProcessPoolExecutor", lambda *_args, **_options: ThreadPoolExecutor(1))
    monkeypatch.setattr(refinement, "WALKS", {name: (kind, 1) for name, (kind, _) in refinement.WALKS.items()})
    kinds = ["none", "crf", "psa", "irn", "sepl", "crf+sepl"]
    tiny = {
        "steps": 1,
        "crop-size": 80,
        "view-size": 64,
        "images": 2,
        "out": tmp_path / "out",
        "weights": tmp_path / "w",
    }
    options = [f"--{name}={value}" for name, value in tiny.items()]
    monkeypatch.setattr(sys, "argv", ["refinement", "--method", "SEAM", *options, "--refiners", *kinds])

    refinement.main()
    first = capsys.readouterr().out
    rows = [line.split(" | ")[0].removeprefix("| ") for line in first.splitlines() if line.startswith("| ")]
    assert [row for row in rows if row != "the same"] == ["refiner", *kinds]
    found = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out" / "seam_0").glob("*.json")}
    assert all(len(found[kind]["seconds"]) == 4 and 0 <= found[kind]["train"] <= 100 for kind in kinds)
    for kind in ("psa", "irn"):
        own = found[kind]["own"]
        assert own["train"] >= found[kind]["train"] - 1e-4  # the seeds' threshold is one of those it is chosen from
        if own["threshold"] == found["seeds"]["threshold"]:
            assert own["train"] == pytest.approx(found[kind]["train"])

    monkeypatch.setattr(refinement, "trained", None)
    monkeypatch.setattr(refinement, "refined", None)
    refinement.main()
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")] == [
        line for line in first.splitlines() if line.startswith("| ")
    ]
