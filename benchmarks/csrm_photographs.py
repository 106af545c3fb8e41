"""The ablation of CSRM's paper on real photographs, from tags only: ``python benchmarks/csrm_photographs.py``.

Table 1 (Puzzle-CAM, then CSRM from its weights, a term more in each row) and Figure 2 (mIoU over thresholds). "Again"
is the start for as many steps as CSRM has. The photographs and what a rerun does are those of photographs.py.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from photographs import ANIMALS, animals

from wsss_contrast.comparison import Kept, Method, Run, compare, table, train
from wsss_contrast.data import VOCDataModule
from wsss_contrast.metrics import THRESHOLDS
from wsss_contrast.modules import CAM, CSRM, PuzzleCAM


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a table; with ``[]`` the defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", help="only these")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=200, help="of the start, and of each row from there")
    parser.add_argument("--crop-size", type=int, default=192)
    parser.add_argument("--batch-size", type=int, default=4, help="labelled photos, and as many unlabelled ones")
    parser.add_argument("--alpha", type=float, default=0.25, help="of Puzzle-CAM; 4 is for thousands of steps")
    parser.add_argument("--warmup", type=float, default=0.5, help="share of CSRM's steps; 1/15 is for several hundred")
    parser.add_argument("--train-split", default="train_mini")
    parser.add_argument("--precision", default="bf16-mixed", help="of training and scoring")
    parser.add_argument("--out", type=Path, default=Path("runs/csrm_photographs"))
    parser.add_argument(
        "--weights", type=Path, default=Path("runs/weights"), help="for checkpoints of the start and CSRM"
    )
    return parser.parse_args(given)


DEPENDS_ON = ("crop_size", "batch_size", "alpha", "warmup", "train_split", "precision")
"""The options that a result depends on, beside the steps and the seed."""


def photographs(options: argparse.Namespace, seed: int) -> VOCDataModule:
    """The data of a run."""
    halves = {"batch_size": options.batch_size, "unlabeled_batch_size": options.batch_size}
    return animals(options.train_split, options.crop_size, seed, **halves)


def rows(options: argparse.Namespace) -> dict[str, Method]:
    """The rows. Each begins with what the first has learnt; the terms come in the paper's order."""
    common: dict[str, Any] = {
        "num_classes": len(ANIMALS),
        "weights": "offline",
        "weight_decay": 1e-4,
        "scales": [1.0],
    }
    of_settings = "_".join(str(getattr(options, name)) for name in ("steps", *DEPENDS_ON))

    def kept(method: Method, name: str) -> Kept[CAM]:
        return Kept(method, options.weights / f"{name}_{of_settings}", train_alone)

    def train_alone(method: Method, seed: int) -> None:
        train(method, photographs(options, seed), options.steps, seed, precision=options.precision)

    def puzzle(_seed: int) -> tuple[CAM, list[L.Callback]]:
        return PuzzleCAM(alpha=options.alpha, **common), []

    start = kept(puzzle, "puzzle")

    def puzzle_again(seed: int) -> tuple[CAM, list[L.Callback]]:
        path, module = start.checkpoint(seed), PuzzleCAM(alpha=options.alpha, **common)
        module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
        return module, []

    def csrm(seed: int, without: Sequence[str] = (), **more: Any) -> tuple[CAM, list[L.Callback]]:
        loss = {"weights": dict.fromkeys(without, 0.0), "warmup": options.warmup}
        return CSRM(start=str(start.checkpoint(seed)), loss=loss, **more, **common), []

    return {
        "Puzzle-CAM": start,
        "Puzzle-CAM, again": puzzle_again,
        "L_s": partial(csrm, without=("seg_to_cam", "weak_to_strong", "contrast")),
        "+ L_s2c": partial(csrm, without=("weak_to_strong", "contrast")),
        "+ L_u": partial(csrm, without=("contrast",)),
        "CSRM": kept(csrm, "csrm"),
        "CSRM (official)": partial(csrm, compat="official"),
    }


def gains(results: dict[str, list[Run]]) -> str:
    """Differences of the same seed, train / val: over the first row, and over the row before."""

    def over(runs: list[Run], others: list[Run]) -> str:
        cells = []
        for split in ("train", "val"):
            differences = [run.scores[split] - of.scores[split] for run, of in zip(runs, others, strict=True)]
            spread = f" ± {statistics.stdev(differences):.1f}" if len(differences) > 1 else ""
            cells.append(f"{statistics.fmean(differences):+.1f}{spread}")
        return " / ".join(cells)

    lines = ["| method | over the start | over the row before |", "|---|---:|---:|"]
    (_, start), *others = results.items()
    before = start
    for name, runs in others:
        lines.append(f"| {name} | {over(runs, start)} | {over(runs, before)} |")
        before = runs
    return "\n".join(lines) + "\n"


def curves(results: dict[str, list[Run]], split: str) -> str:
    """Figure 2 as a table: the mean over seeds of the mIoU at every fifth threshold."""
    shown = range(5, len(THRESHOLDS), 5)
    lines = [f"| {split} | {' | '.join(f'{THRESHOLDS[i]:.2f}' for i in shown)} |", f"|---|{'---:|' * len(shown)}"]
    for name, runs in results.items():
        means = [statistics.fmean(run.curves[split][i] for run in runs) for i in shown]
        lines.append(f"| {name} | {' | '.join(f'{mean:.1f}' for mean in means)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    args = arguments()
    methods = rows(args)
    unknown = set(args.rows or methods) - set(methods)
    if unknown:
        raise SystemExit(f"unknown rows {sorted(unknown)}; there are {list(methods)}")
    results = compare(
        partial(photographs, args),
        {name: method for name, method in methods.items() if name in (args.rows or methods)},
        args.out,
        args.steps,
        args.seeds,
        settings={name: getattr(args, name) for name in DEPENDS_ON},
        precision=args.precision,
    )
    print(table(results))
    print(gains(results))
    for split in ("train", "val"):
        print(curves(results, split))


if __name__ == "__main__":
    main()
