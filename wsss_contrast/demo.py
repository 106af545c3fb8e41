"""``wsss-contrast demo``: the main job on pictures that the package draws, in a few minutes on a CPU."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from wsss_contrast.callbacks import PrototypeContrastCallback
from wsss_contrast.comparison import Kept, Method, compare, table, train
from wsss_contrast.data import SHAPES_CLASSES, ShapesDataModule
from wsss_contrast.modules import CAM, CSRM, SEAM
from wsss_contrast.nn.backbone import OFFLINE_MODEL, require_offline_weights

VIEW_SIZE = 96
"""Side of SEAM's target view. At half of a crop the maps are too coarse (4 x 4) for the classifier to learn."""


LABEL_THRESHOLDS = (0.4, 0.7)
"""Of CSRM, about the one that is best for a CAM of the training pictures, 0.5. With the paper's for photographs, 0.05
and 0.35, a quarter of the labels are background where three quarters should be."""


def methods(steps: int, folder: Path, train_alone: Callable[[Method, int], object], **common: Any) -> dict[str, Method]:
    """CAM, SEAM, SEAM with pixel-to-prototype contrast, and CSRM (``compat="official"``) from CAM's weights.

    What SEAM, PPC and CSRM add counts after a warm-up.

    Args:
        steps: of each but CSRM.
        folder: for the checkpoint that CSRM begins with.
        train_alone: trains a method with a seed.
        common: options of all modules.
    """
    warmup_steps = steps * 3 // 8

    def seam(_seed: int, *callbacks: PrototypeContrastCallback) -> tuple[CAM, list[L.Callback]]:
        return SEAM(view_size=VIEW_SIZE, dropout=0.0, warmup_steps=warmup_steps, **common), list(callbacks)

    start = Kept(lambda _seed: (CAM(dropout=0.0, **common), []), folder, train_alone)

    def csrm(seed: int) -> tuple[CAM, list[L.Callback]]:
        background, foreground = LABEL_THRESHOLDS
        return CSRM(
            start=str(start.checkpoint(seed)),
            compat="official",  # asks more of the segmenter before it teaches the maps, which a short training needs
            background_threshold=background,
            foreground_threshold=foreground,
            loss={"warmup": 0.5},
            **common,
        ), []

    return {
        "CAM": start,
        "SEAM": seam,
        "SEAM + PPC": lambda seed: seam(seed, PrototypeContrastCallback(warmup_steps=warmup_steps)),
        "CSRM": csrm,
    }


def main(args: Sequence[str] | None = None) -> None:
    """Train the four from tags only, print their seed mIoU, write it with a sheet of pictures."""
    parser = argparse.ArgumentParser(
        prog="wsss-contrast demo",
        description="Train CAM, SEAM, SEAM + PPC and CSRM from tags only on drawn pictures, and compare their seeds.",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for the table and the sheet")
    parser.add_argument(
        "--steps",
        type=int,
        default=160,
        help="optimiser steps of each method; CSRM has a third of these, from CAM's weights",
    )
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
        "lr": 0.002,
    }

    def make_data(seed: int) -> ShapesDataModule:
        return ShapesDataModule(val_length=options.images, seed=seed)

    def train_alone(method: Method, seed: int) -> None:
        train(method, make_data(seed), options.steps, seed, accelerator="cpu")

    compared = methods(options.steps, options.out / "start", train_alone, **common)
    results = compare(
        make_data,
        compared,
        options.out,
        dict.fromkeys(compared, options.steps) | {"CSRM": -(-options.steps // 3)},
        [options.seed],
        settings={"images": options.images},
        limit_val_batches=options.images,
        accelerator="cpu",
    )
    print("\nSeed mIoU in percent; the threshold is chosen on training images.\n")
    print(table(results))
    print(f"Written: {options.out / 'table.md'}, {options.out / 'sheet.png'}")
