"""The ablations of PPC's paper on real photographs, from tags only: ``python benchmarks/photographs.py``.

Table 5 (each part of the loss), 6 (candidates a prototype, K) and 7 (the second view), and EPS with and without PPC,
which has saliency maps as well. The photographs are the VOC12 animal subset (see benchmarks/README.md), in
``$WSSS_DATA`` or ``../shared/data``. Results go to ``runs/photographs``, a file for each row and seed; a rerun
continues, and several processes may share the rows and seeds of a table.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L

from wsss_contrast.callbacks import PrototypeContrastCallback
from wsss_contrast.comparison import Method, compare, table
from wsss_contrast.data import VOCDataModule
from wsss_contrast.losses import PrototypeContrast
from wsss_contrast.modules import CAM, EPS, SEAM

ANIMALS = ["cat", "cow", "dog", "horse", "person", "sheep"]


def data_root() -> Path:
    """The folder of the animal subset."""
    for parent in (os.environ.get("WSSS_DATA"), Path(__file__).parents[1] / ".." / "shared" / "data"):
        if parent and (Path(parent) / "voc_animals").is_dir():
            return Path(parent) / "voc_animals"
    raise SystemExit("no photographs: set WSSS_DATA to the folder that holds `voc_animals`")


def animals(train_split: str, crop_size: int, seed: int, **options: Any) -> VOCDataModule:
    """The data of a run."""
    return VOCDataModule(
        str(data_root()),
        train_split=train_split,
        classes=ANIMALS,
        crop_size=crop_size,
        resize_long=(crop_size, crop_size * 768 // 448),  # 448 to 768 in the papers
        seed=seed,
        **options,
    )


def tables(crop_size: int, view_size: int, common: dict[str, Any]) -> dict[str, dict[str, Method]]:
    """The rows of each table. SEAM + PPC is the last step of Table 5, K = 32 in Table 6, the rescale in Table 7."""

    def ppc(contrast: dict[str, Any] | None, **options: Any) -> list[L.Callback]:
        return [] if contrast is None else [PrototypeContrastCallback(loss=PrototypeContrast(**contrast), **options)]

    def seam(_seed: int, contrast: dict[str, Any] | None = None, **view: Any) -> tuple[CAM, list[L.Callback]]:
        return SEAM(view_size=view_size, **view, **common), ppc(contrast)

    def eps(_seed: int, contrast: dict[str, Any] | None = None) -> tuple[CAM, list[L.Callback]]:
        return EPS(**common), ppc(contrast, view_size=view_size)

    plain = {"mine_prototypes": False, "sample_pixels": False}
    shift = 16 * crop_size / 448  # the paper's 16 px are of crops of 448
    full = partial(seam, contrast={})
    return {
        "5": {
            "CAM": lambda _seed: (CAM(**common), []),
            "SEAM": seam,
            "+ cross-prototype": partial(seam, contrast={"cross_cam_weight": 0, "intra_view_weight": 0}),
            "+ cross-CAM": partial(seam, contrast={"intra_view_weight": 0}),
            "+ intra-view": partial(seam, contrast=plain),
            "+ prototype mining": partial(seam, contrast={"sample_pixels": False}),
            "SEAM + PPC": full,
            "SEAM + PPC (official)": partial(seam, contrast={"compat": "official"}),
        },
        "6": {
            "K = 4": partial(seam, contrast={"top_k": 4}),
            "SEAM + PPC": full,
            "K = 64": partial(seam, contrast={"top_k": 64}),
        },
        "7": {
            "SEAM + PPC": full,
            "+ flip": partial(seam, contrast={}, view_flip=True),
            "+ rotation": partial(seam, contrast={}, view_flip=True, view_degrees=20.0),
            "+ translation": partial(seam, contrast={}, view_flip=True, view_degrees=20.0, view_translate=shift),
        },
        "eps": {
            "EPS": eps,
            "EPS + PPC": partial(eps, contrast={"background_score": 0.1, "top_k": 16}),  # of the released code
            "EPS + PPC, background 0.5": partial(eps, contrast={"background_score": 0.5, "top_k": 16}),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", choices=("5", "6", "7", "eps"), default="5")
    parser.add_argument("--rows", nargs="+", help="only these")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=310)
    parser.add_argument("--crop-size", type=int, default=224)
    parser.add_argument("--view-size", type=int, default=112)
    parser.add_argument("--output-stride", type=int, default=16)
    parser.add_argument("--train-split", default="train_mini")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0])
    parser.add_argument(
        "--crf-images", type=int, default=0, help="score this many images a split after a dense CRF, too"
    )
    parser.add_argument("--precision", default="32-true", help="of training and scoring")
    parser.add_argument("--limit", type=int, default=None, help="score only this many images a split")
    parser.add_argument("--out", type=Path, default=Path("runs/photographs"))
    args = parser.parse_args()

    common = {
        "num_classes": len(ANIMALS),
        "weights": "offline",
        "output_stride": args.output_stride,
        "scales": args.scales,
    }
    rows = tables(args.crop_size, args.view_size, common)[args.table]
    unknown = set(args.rows or rows) - set(rows)
    if unknown:
        raise SystemExit(f"unknown rows {sorted(unknown)}; there are {list(rows)}")

    depends_on = ("crop_size", "view_size", "output_stride", "train_split", "scales", "precision", "limit")
    saliency: dict[str, Any] = {"saliency": str(data_root() / "Saliency")} if args.table == "eps" else {}
    results = compare(
        partial(animals, args.train_split, args.crop_size, **saliency),
        {name: method for name, method in rows.items() if name in (args.rows or rows)},
        args.out / f"table{args.table}",
        args.steps,
        args.seeds,
        crf_images=args.crf_images,
        settings={name: getattr(args, name) for name in depends_on},
        runs=args.out,
        precision=args.precision,
        **({"limit_val_batches": args.limit} if args.limit else {}),
    )
    print(table(results))


if __name__ == "__main__":
    main()
