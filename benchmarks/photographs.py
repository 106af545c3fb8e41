"""CAM, SEAM and SEAM + PPC on real photographs, from tags only: ``python benchmarks/photographs.py``.

The photographs are the VOC12 animal subset (see benchmarks/README.md), in ``$WSSS_DATA`` or ``../shared/data``.
Results go to ``runs/photographs``, one file a method; a rerun continues.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import lightning as L

from wsss_contrast.callbacks import PrototypeContrastCallback
from wsss_contrast.comparison import compare, table
from wsss_contrast.data import VOCDataModule
from wsss_contrast.losses import PrototypeContrast
from wsss_contrast.modules import CAM, SEAM

ANIMALS = ["cat", "cow", "dog", "horse", "person", "sheep"]


def data_root() -> Path:
    """The folder of the animal subset."""
    for parent in (os.environ.get("WSSS_DATA"), Path(__file__).parents[1] / ".." / "shared" / "data"):
        if parent and (Path(parent) / "voc_animals").is_dir():
            return Path(parent) / "voc_animals"
    raise SystemExit("no photographs: set WSSS_DATA to the folder that holds `voc_animals`")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=310)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--view-size", type=int, default=128)
    parser.add_argument("--crop-size", type=int, default=256)
    parser.add_argument("--output-stride", type=int, default=16)
    parser.add_argument("--train-split", default="train_mini")
    parser.add_argument("--methods", nargs="+", default=["CAM", "SEAM", "SEAM + PPC"])
    parser.add_argument("--scales", type=float, nargs="+", default=[0.75, 1.0, 1.25])
    parser.add_argument("--limit", type=int, default=None, help="score only this many images a split")
    parser.add_argument("--out", type=Path, default=Path("runs/photographs"))
    args = parser.parse_args()

    data = VOCDataModule(
        str(data_root()),
        train_split=args.train_split,
        classes=ANIMALS,
        crop_size=args.crop_size,
        resize_long=(args.crop_size, args.crop_size * 768 // 448),
        seed=args.seed,
    )
    common = {
        "num_classes": len(ANIMALS),
        "weights": "offline",
        "output_stride": args.output_stride,
        "scales": args.scales,
    }

    def seam(*callbacks: L.Callback) -> tuple[CAM, list[L.Callback]]:
        return SEAM(view_size=args.view_size, **common), list(callbacks)

    methods = {
        "CAM": lambda: (CAM(**common), []),
        "SEAM": seam,
        "SEAM + PPC": lambda: seam(PrototypeContrastCallback()),
        "SEAM + PPC (official)": lambda: seam(PrototypeContrastCallback(loss=PrototypeContrast(compat="official"))),
    }
    unknown = set(args.methods) - set(methods)
    if unknown:
        raise SystemExit(f"unknown methods {sorted(unknown)}; there are {sorted(methods)}")
    settings = {key: value for key, value in vars(args).items() if key not in ("methods", "out")}
    options = {"limit_val_batches": args.limit} if args.limit else {}
    results = compare(
        data,
        {name: methods[name] for name in args.methods},
        args.out,
        args.steps,
        args.seed,
        settings=settings,
        **options,
    )
    print(table(results))


if __name__ == "__main__":
    main()
