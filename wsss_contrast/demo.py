"""``wsss-contrast demo``: the main job on pictures that the package draws, in a few minutes on a CPU."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L

from wsss_contrast.callbacks import PrototypeContrastCallback
from wsss_contrast.comparison import Method, compare, table
from wsss_contrast.data import SHAPES_CLASSES, ShapesDataModule
from wsss_contrast.modules import CAM, SEAM
from wsss_contrast.nn.backbone import OFFLINE_MODEL, require_offline_weights

VIEW_SIZE = 96
"""Side of SEAM's target view. At half of a crop the maps are too coarse (4 x 4) for the classifier to learn."""


def methods(warmup_steps: int, **common: Any) -> dict[str, Method]:
    """CAM, SEAM, and SEAM with pixel-to-prototype contrast, whose terms count after the warm-up."""

    def seam(_seed: int, *callbacks: PrototypeContrastCallback) -> tuple[CAM, list[L.Callback]]:
        return SEAM(view_size=VIEW_SIZE, warmup_steps=warmup_steps, **common), list(callbacks)

    return {
        "CAM": lambda _seed: (CAM(**common), []),
        "SEAM": seam,
        "SEAM + PPC": lambda seed: seam(seed, PrototypeContrastCallback(warmup_steps=warmup_steps)),
    }


def main(args: Sequence[str] | None = None) -> None:
    """Train the three from tags only, print their seed mIoU, write it with a sheet of pictures."""
    parser = argparse.ArgumentParser(
        prog="wsss-contrast demo",
        description="Train CAM, SEAM and SEAM + PPC from tags only on drawn pictures, and compare their seeds.",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for the table and the sheet")
    parser.add_argument("--steps", type=int, default=160, help="optimiser steps of each method")
    parser.add_argument("--seed", type=int, default=0, help="of pictures, weights, order and augmentation")
    parser.add_argument("--images", type=int, default=64, help="images that are scored, of each split")
    options = parser.parse_args(args)
    for name in ("steps", "images"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    try:
        require_offline_weights()
    except ImportError as error:
        parser.error(str(error))

    common = {
        "num_classes": len(SHAPES_CLASSES),
        "backbone": OFFLINE_MODEL,
        "weights": "offline",
        "scales": (1.0, 1.5),
        "dropout": 0.0,
        "lr": 0.002,
    }
    results = compare(
        lambda seed: ShapesDataModule(val_length=options.images, seed=seed),
        methods(options.steps * 3 // 8, **common),
        options.out,
        options.steps,
        [options.seed],
        settings={"images": options.images},
        limit_val_batches=options.images,
        accelerator="cpu",
    )
    print("\nSeed mIoU in percent; the threshold is chosen on training images.\n")
    print(table(results))
    print(f"Written: {options.out / 'table.md'}, {options.out / 'sheet.png'}")
