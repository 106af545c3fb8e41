"""From tags to a final segmenter on photographs, by the command line alone: ``python benchmarks/pipeline.py``.

Each row is a list of ``wsss-contrast`` commands: train a method, predict and refine masks of the training photographs,
train DeepLabV2 on them, score everything. The last row trains DeepLabV2 on the true masks. The photographs are those of
photographs.py, the settings of all rows are in pipeline.yaml. A row works in ``runs/pipeline/ROW``; a rerun goes on
behind the last command that has ended. Several processes may share the rows, each with its own ``--rows``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from photographs import ANIMALS, data_root

from wsss_contrast.files import write_atomically

SETTINGS = Path(__file__).with_name("pipeline.yaml").resolve()

CSRM = ["--data.init_args.batch_size=4", "--data.init_args.unlabeled_batch_size=4", "--trainer.max_epochs=2"]
CSRM += ["--trainer.check_val_every_n_epoch=2", "--model.init_args.start=runs/puzzle_cam/last.ckpt"]
CSRM += ["--model.init_args.loss={warmup: 0.5}"]
METHODS: dict[str, list[list[str]]] = {
    "CAM": [["cam"]],
    "SEAM + PPC": [["seam_ppc", "--model.init_args.view_size=112"]],
    "CSRM": [["puzzle_cam", "--model.init_args.alpha=0.25"], ["csrm", *CSRM]],
    "fully supervised": [],
}
"""For each row the configurations that it trains, with options. See csrm_photographs.py about those of CSRM."""

SEGMENTER = ["--data.init_args.batch_size=10", "--data.init_args.resize_long=[160,480]"]
SEGMENTER += ["--trainer.max_epochs=12", "--trainer.limit_val_batches=0", "--model.init_args.output_stride=16"]
TESTS: dict[str, list[str]] = {
    "single scale": ["--model.init_args.scales=[1.0]", "--model.init_args.flip=false"],
    "multi-scale": ["--model.init_args.scales=[0.75,1.0,1.25]", "--model.init_args.flip=true"],
}
TESTS["multi-scale + CRF"] = [*TESTS["multi-scale"], "--refine=crf:deeplab"]
COLUMNS = ("seeds, train", "seeds, val", "refined, train", *TESTS)


def commands(row: str, root: Path, options: Sequence[str] = ()) -> list[list[str]]:
    """The arguments of ``wsss-contrast``, command by command. Scores of a column lie in ``scores/COLUMN``."""
    truth = root / "SegmentationClassAug"
    made: list[list[str]] = []

    def run(command: str, config: str, *more: str) -> None:
        of_root = f"--data.init_args.root={root}"
        made.append([command, f"--config={config}", f"--config={SETTINGS}", of_root, *more, *options])

    def score(column: str, split: str, config: str, *more: str) -> Path:
        masks = Path("masks", column)
        run(
            *("predict", config, f"--ckpt_path=runs/{config}/last.ckpt", f"--masks.out={masks}", *more),
            f"--data.init_args.predict_split={split}",
        )
        made.append(["evaluate", str(masks), str(truth), "--classes", *ANIMALS, "--voc-ids", f"--out=scores/{column}"])
        return masks

    labels = truth
    for config, *more in METHODS[row]:
        run("fit", config, *more)
    if METHODS[row]:
        config = METHODS[row][-1][0]
        score("seeds, train", "train_mini", config, "--refine=none")
        score("seeds, val", "val", config, "--refine=none")
        labels = score("refined, train", "train_mini", config, "--refine=crf")
    run("fit", "deeplabv2", f"--data.init_args.labels={labels}", *SEGMENTER)
    for column, more in TESTS.items():
        score(column, "val", "deeplabv2", *more)
    return made


def finish(row: str, folder: Path, root: Path, options: Sequence[str]) -> dict[str, float]:
    """Run what is left of a row; return its scores, mIoU in percent."""
    wanted, record = [[SETTINGS.read_text()], *commands(row, root, options)], folder / "done.json"
    done = json.loads(record.read_text()) if record.is_file() else wanted[:1]
    if done != wanted[: len(done)]:
        raise SystemExit(f"{record}: these commands or settings are not those of now; give another --out")
    for number in range(len(done), len(wanted)):
        print(f"{row}: wsss-contrast {shlex.join(wanted[number])}", flush=True)
        call(wanted[number], folder)
        write_atomically(json.dumps(wanted[: number + 1]).encode(), record)
    scores = {column: folder / "scores" / column / "scores.csv" for column in COLUMNS}
    return {column: mean_iou(path) for column, path in scores.items() if path.is_file()}


def call(args: Sequence[str], folder: Path) -> None:
    """Run the program in a folder, with what it says in ``log.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        program = [sys.executable, "-m", "wsss_contrast.cli", *args]
        if subprocess.run(program, cwd=folder, stdout=log, stderr=subprocess.STDOUT, check=False).returncode:
            raise SystemExit(f"wsss-contrast {shlex.join(args)}: failed, see {log.name}")


def mean_iou(path: Path) -> float:
    """What ``wsss-contrast evaluate`` wrote, percent."""
    return float(path.read_text().splitlines()[-1].split(",")[1])


def table(rows: dict[str, dict[str, float]]) -> str:
    lines = [f"| method | {' | '.join(COLUMNS)} |", f"|---|{'---:|' * len(COLUMNS)}"]
    for row, scores in rows.items():
        lines.append(f"| {row} | {' | '.join(f'{scores[c]:.1f}' if c in scores else '' for c in COLUMNS)} |")
    return "\n".join(lines) + "\n"


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=METHODS, default=list(METHODS), help="only these")
    parser.add_argument("--out", type=Path, default=Path("runs/pipeline"))
    parser.add_argument("more", nargs="*", help="behind --: options of every fit and predict")
    options = parser.parse_args(args)
    root = data_root().resolve()
    print(table({row: finish(row, options.out / row, root, options.more) for row in options.rows}))


if __name__ == "__main__":
    main()
