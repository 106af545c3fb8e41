"""The ablation of CSRM's paper on real photographs, from tags only: ``python benchmarks/csrm_photographs.py``.

Table 1 (Puzzle-CAM, then CSRM from its weights, a term more in each row) and Figure 2 (mIoU over thresholds). "Again"
is the start for as many steps as CSRM has. The photographs and what a rerun does are those of photographs.py.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from photographs import ANIMALS, animals

from wsss_contrast.comparison import Method, Run, Start, compare, table, train
from wsss_contrast.metrics import THRESHOLDS
from wsss_contrast.modules import CAM, CSRM, PuzzleCAM


def rows(
    folder: Path, train_alone: Callable[[Method, int], object], alpha: float, warmup: float, common: dict[str, Any]
) -> dict[str, Method]:
    """The rows. Each begins with what the first has learnt; the terms come in the paper's order.

    Args:
        folder: for the first row's checkpoints.
        train_alone: trains a method with a seed.
        alpha: of Puzzle-CAM.
        warmup: of CSRM.
        common: options of all modules.
    """

    def puzzle(_seed: int) -> tuple[CAM, list[L.Callback]]:
        return PuzzleCAM(alpha=alpha, **common), []

    start = Start(puzzle, folder, train_alone)

    def puzzle_again(seed: int) -> tuple[CAM, list[L.Callback]]:
        path, module = start.checkpoint(seed), PuzzleCAM(alpha=alpha, **common)
        module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
        return module, []

    def csrm(seed: int, without: Sequence[str] = (), **options: Any) -> tuple[CAM, list[L.Callback]]:
        loss = {"weights": dict.fromkeys(without, 0.0), "warmup": warmup}
        return CSRM(start=str(start.checkpoint(seed)), loss=loss, **options, **common), []

    return {
        "Puzzle-CAM": start,
        "Puzzle-CAM, again": puzzle_again,
        "L_s": partial(csrm, without=("seg_to_cam", "weak_to_strong", "contrast")),
        "+ L_s2c": partial(csrm, without=("weak_to_strong", "contrast")),
        "+ L_u": partial(csrm, without=("contrast",)),
        "CSRM": csrm,
        "CSRM (official)": partial(csrm, compat="official"),
    }


def curves(results: dict[str, list[Run]], split: str) -> str:
    """Figure 2 as a table: the mean over seeds of the mIoU at every fifth threshold."""
    shown = range(5, len(THRESHOLDS), 5)
    lines = [f"| {split} | {' | '.join(f'{THRESHOLDS[i]:.2f}' for i in shown)} |", f"|---|{'---:|' * len(shown)}"]
    for name, runs in results.items():
        means = [statistics.fmean(run.curves[split][i] for run in runs) for i in shown]
        lines.append(f"| {name} | {' | '.join(f'{mean:.1f}' for mean in means)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
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
    args = parser.parse_args()

    halves = {"batch_size": args.batch_size, "unlabeled_batch_size": args.batch_size}
    make_data = partial(animals, args.train_split, args.crop_size, **halves)

    def train_alone(method: Method, seed: int) -> None:
        train(method, make_data(seed), args.steps, seed, precision=args.precision)

    common = {"num_classes": len(ANIMALS), "weights": "offline", "weight_decay": 1e-4, "scales": [1.0]}
    methods = rows(args.out / "start", train_alone, args.alpha, args.warmup, common)
    unknown = set(args.rows or methods) - set(methods)
    if unknown:
        raise SystemExit(f"unknown rows {sorted(unknown)}; there are {list(methods)}")

    depends_on = ("crop_size", "batch_size", "alpha", "warmup", "train_split", "precision")
    results = compare(
        make_data,
        {name: method for name, method in methods.items() if name in (args.rows or methods)},
        args.out,
        args.steps,
        args.seeds,
        settings={name: getattr(args, name) for name in depends_on},
        precision=args.precision,
    )
    print(table(results))
    for split in ("train", "val"):
        print(curves(results, split))


if __name__ == "__main__":
    main()
