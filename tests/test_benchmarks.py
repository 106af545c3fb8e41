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

from tests.test_cli import TINY
from tests.test_conformance import load_tool
from wsss_contrast import cli

refinement = load_tool("refinement")
pipeline = load_tool("pipeline")


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


@pytest.fixture
def few_animals(
    tmp_path: Path,
    mask_writer: Callable[[Path, tuple[int, int], tuple[int, ...]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Eight pictures of noise where the benchmarks look for the photographs; each has a cat."""
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
    return root


def test_refinement_measures_every_kind_of_refiner(
    few_animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also: a rerun takes all from the files, and a walk's own threshold is chosen on `train`."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(refinement, "ProcessPoolExecutor", lambda *_args, **_options: ThreadPoolExecutor(1))
    monkeypatch.setattr(refinement, "WALKS", {name: (kind, 1) for name, (kind, _) in refinement.WALKS.items()})
    kinds = ["none", "crf", "psa", "irn", "irn:2 above 0.2", "sepl", "crf+sepl"]
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
    stems = [kind.replace(":", "_").replace(" ", "_") for kind in kinds]
    assert all(len(found[kind]["seconds"]) == 4 and 0 <= found[kind]["train"] <= 100 for kind in stems)
    for kind in ("psa", "irn", "irn_2_above_0.2"):
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


def test_pipeline_goes_from_tags_to_a_segmenter(
    few_animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The row of the most commands, and the one without a method. A rerun goes on behind the last that has ended."""

    def call(args: list[str], folder: Path) -> None:
        if stop_at and args[0] == stop_at[0]:
            raise KeyboardInterrupt
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(folder)
        called.append(args[0])
        cli.main(args)

    monkeypatch.setattr(pipeline, "call", call)
    rows = ["CSRM", "fully supervised"]
    monkeypatch.setattr(pipeline, "TESTS", {"multi-scale": pipeline.TESTS["multi-scale"]})
    small = {f"--{name}={value}" for name, value in TINY.items() if not name.endswith(("_split", "official"))}
    small |= {"--data.init_args.crop_size=64", "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"}
    small -= {"--model.init_args.scales=[1.0]"}
    options = [
        "--rows",
        *rows,
        "--out",
        str(tmp_path / "out"),
        "--",
        *sorted(small - {"--model.init_args.scales=[1.0]"}),
    ]
    called: list[str] = []
    stop_at = ["evaluate"]
    with pytest.raises(KeyboardInterrupt):
        pipeline.main(options)
    assert called == ["fit", "fit", "predict"]
    stop_at = []
    pipeline.main(options)
    of_segmenter = ["fit", "predict", "evaluate"]
    all_called = ["fit", "fit", *["predict", "evaluate"] * 3, *of_segmenter, *of_segmenter]
    assert called == all_called
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line[1].strip() for line in lines] == ["method", *rows]
    filled = [[cell for cell in line[2:-1] if cell.strip()] for line in lines]
    assert [len(cells) for cells in filled] == [6, 4, 1]
    assert all(0 <= float(cell) <= 100 for cells in filled[1:] for cell in cells)

    pipeline.main(options)
    assert called == all_called
    with pytest.raises(
        SystemExit, match=r"CSRM/done\.json: these commands or settings are not those of now; give another --out"
    ):
        pipeline.main([*options, "--trainer.max_steps=1"])


def test_pipeline_names_a_command_that_fails(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^wsss-contrast fit --config nonsense: failed, see .*log\.txt$"):
        pipeline.call(["fit", "--config", "nonsense"], tmp_path)
    assert "nonsense" in (tmp_path / "log.txt").read_text()
