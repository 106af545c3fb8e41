"""What a plain CAM covers of the drawn example set: ``python benchmarks/example_set.py``.

Trains CAM from tags and prints how well it classifies, and how much of the creatures' heads and of the rest of them its
seeds cover. ``--picture PNG`` draws pictures, truth, heads and seeds.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torchmetrics.classification import MultilabelAveragePrecision

from wsss_contrast.data import SHAPES_CLASSES, ShapesDataModule, ShapesDataset, denormalize
from wsss_contrast.files import write_atomically
from wsss_contrast.modules import CAM
from wsss_contrast.pictures import picture_sheet, png


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120, help="optimiser steps")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn at random")
    parser.add_argument("--lr", type=float, default=0.003, help="rate of the backbone; the head has ten times that")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures, in pixels")
    parser.add_argument("--images", type=int, default=128, help="pictures that are scored, of each split")
    parser.add_argument("--picture", type=Path, default=None, help="write a sheet of pictures here")
    args = parser.parse_args()

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    L.seed_everything(args.seed, verbose=False)
    data = ShapesDataModule(
        val_length=args.images,
        size=args.size,
        crop_size=args.size,
        resize_long=(args.size * 7 // 8, args.size * 5 // 4),
        seed=args.seed,
    )
    module = CAM(data.num_classes, weights="offline", scales=(1.0, 1.5), dropout=0.0, lr=args.lr)
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    L.Trainer(max_steps=args.steps, limit_val_batches=0, **quiet).fit(module, datamodule=data)
    scorer = L.Trainer(limit_val_batches=args.images, **quiet)
    scores = scorer.validate(module, datamodule=data, verbose=False)[0]
    print(f"seed mIoU, percent: train {100 * scores['train/miou']:.1f}, val {100 * scores['val/miou']:.1f}")
    print(f"background threshold, chosen on train: {scores['threshold']:.2f}")
    report(module, data.dataset("val", with_mask=True), args.picture)


@torch.no_grad()
def report(module: CAM, pictures: ShapesDataset, sheet: Path | None) -> None:
    """Print what the seeds cover; write the sheet."""
    module.eval()
    precision = MultilabelAveragePrecision(len(SHAPES_CLASSES), average="none")
    counts = dict.fromkeys(("head", "head hit", "body", "body hit", "seed", "seed outside", "seed wrong"), 0)
    rows = []
    for index in range(len(pictures)):
        sample = pictures[index]
        image, tags = sample["image"][None], sample["tags"][None]
        precision.update(module(image).mean((2, 3)), tags.int())
        seeds = module.masks(image, module.seeds(image, tags), tags)[0].numpy()
        _, mask, part = pictures.draw(index)
        body = (mask > 0) & ~part
        for name, where in (("head", part), ("body", body)):
            counts[name] += int(where.sum())
            counts[f"{name} hit"] += int((where & (seeds == mask)).sum())
        counts["seed"] += int((seeds > 0).sum())
        counts["seed outside"] += int(((seeds > 0) & (mask == 0)).sum())
        counts["seed wrong"] += int(((seeds > 0) & (mask > 0) & (seeds != mask)).sum())
        if len(rows) < 4:
            rows.append([denormalize(sample["image"]), mask, mask * part, seeds])

    def percent(part: str, whole: str) -> str:
        return f"{100 * counts[part] / counts[whole]:.1f}"

    precisions = dict(zip(SHAPES_CLASSES, precision.compute().tolist(), strict=True))
    print("average precision of the tags, percent: " + ", ".join(f"{n} {100 * p:.1f}" for n, p in precisions.items()))
    print(f"mean average precision, percent: {100 * float(np.mean(list(precisions.values()))):.1f}")
    print(f"heads, percent of the creatures' area: {100 * counts['head'] / (counts['head'] + counts['body']):.1f}")
    print(f"seeds cover, percent of the heads: {percent('head hit', 'head')}")
    print(f"seeds cover, percent of the rest of the creatures: {percent('body hit', 'body')}")
    print(f"percent of the seeds outside of creatures: {percent('seed outside', 'seed')}")
    print(f"percent of the seeds on a creature of another class: {percent('seed wrong', 'seed')}")
    if sheet is not None:
        drawn = picture_sheet(["picture", "truth", "heads", "seeds of CAM"], rows, side=128)
        write_atomically(png(drawn.quantize(256)), sheet)  # a third of the size


if __name__ == "__main__":
    main()
