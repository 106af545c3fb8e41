"""Pseudo-labels in CSRM's training step, what they cost and what they are worth: ``python benchmarks/csrm_labels.py``.

For each refiner: the share of a training step that the labels take, and on training photos, how many pixels get a label
and how many of those the right one. The maps are those of the Puzzle-CAM that csrm_photographs.py has trained.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import csrm_photographs
import lightning as L
import numpy as np
import torch
from photographs import ANIMALS, animals
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from wsss_contrast.comparison import Kept
from wsss_contrast.functional import NO_LABEL
from wsss_contrast.metrics import segmentation_scores
from wsss_contrast.modules import CSRM


class Timed(CSRM):
    """Takes the time of each step and of its labels."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shares: list[float] = []

    def labels_of(self, images: Tensor, cams: Tensor, tags: Tensor) -> tuple[Tensor, Tensor | None]:
        began = time.perf_counter()
        labels = super().labels_of(images, cams, tags)
        self.taken = time.perf_counter() - began
        return labels

    def on_train_batch_start(self, *_: Any) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        super().on_train_batch_end(*args)
        self.shares.append(self.taken / (time.perf_counter() - self.began))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop-size", type=int, default=192)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--images", type=int, default=100)
    args = parser.parse_args()
    start = csrm_photographs.rows(csrm_photographs.arguments([]))["Puzzle-CAM"]
    assert isinstance(start, Kept)
    weights = str(start.checkpoint(0))
    print("| `train_refine` | preset | pixels with a label | of these right | their mIoU | share of a step |")
    print("|---|---|---:|---:|---:|---:|")
    for compat in ("official", "paper"):
        for refine in ("none", "par", "crf"):
            model = Timed(len(ANIMALS), weights, compat, train_refine=refine, weights="offline", scales=[1.0])
            low, middle, high = statistics.quantiles(shares(model, args), n=4)
            labelled, right, miou = quality(model, args)
            print(
                f"| `{refine}` | {compat} | {100 * labelled:.1f} | {100 * right:.1f} | {100 * miou:.1f} "
                f"| {100 * middle:.0f} % ({100 * low:.0f} to {100 * high:.0f}) |",
                flush=True,
            )


def shares(model: Timed, args: argparse.Namespace) -> list[float]:
    """Of each training step but the first, which allocates."""
    data = animals("train_mini", args.crop_size, seed=0, batch_size=4, unlabeled_batch_size=4)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_steps=1 + args.steps, limit_val_batches=0, num_sanity_val_steps=0, **quiet)
    trainer.fit(model, datamodule=data)
    return model.shares[1:]


@torch.no_grad()
def quality(trained: Timed, args: argparse.Namespace) -> tuple[float, float, float]:
    """The share of pixels with a label, of right ones among these, and the mIoU of these, with the start's maps."""
    model = CSRM(**trained.hparams).eval()
    data = animals("train_mini", args.crop_size, seed=0)
    data.setup("validate")
    photos = data.val_sets["train"]
    confusion = MulticlassConfusionMatrix(len(ANIMALS) + 1, ignore_index=NO_LABEL)
    counted, labelled = 0, 0
    for index in np.linspace(0, len(photos) - 1, min(args.images, len(photos))).round().astype(int):
        sample = photos[int(index)]
        image, tags, truth = sample["image"][None], sample["tags"][None], sample["mask"][None]
        labels, _ = model.labels_of(image, model.teacher(image).cams, tags)
        known = truth != NO_LABEL
        has_label = known & (labels != NO_LABEL)
        counted, labelled = counted + int(known.sum()), labelled + int(has_label.sum())
        confusion.update(labels[has_label], truth[has_label])
    counts = confusion.compute()
    return labelled / counted, float(counts.diagonal().sum() / counts.sum()), segmentation_scores(counts).miou


if __name__ == "__main__":
    main()
