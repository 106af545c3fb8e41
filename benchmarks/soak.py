"""Long trainings of tiny networks on the drawn set, with an eye on memory: ``python benchmarks/soak.py``.

SEAM with PPC and a memory, and CSRM, in float32 and under bf16 autocast. Every step's terms must be finite, and so must
the weights at the end. From a quarter of the steps on (the memories are full by then, and the allocator has its pools)
the number of tensors must stay what it is, and the process must not grow by more than a bound. Exits with 1 otherwise.
Linux; each training is a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import lightning as L
import torch
from faults import METHODS, quiet
from lightning.pytorch.callbacks import Callback
from memory import resident

from wsss_contrast.data import ShapesDataModule

SAMPLES = 20  # of a training
GROWTH = 16.0  # MiB that may come on top in the last three quarters


class Watch(Callback):
    """Reads terms in each step, memory now and then."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.tensors: list[int] = []
        self.resident: list[float] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        wrong = {name: value for name, value in values.items() if not torch.isfinite(torch.tensor(value))}
        if wrong or "train/loss" not in values:
            raise SystemExit(f"step {trainer.global_step}: {wrong or 'no loss'}")
        if trainer.global_step % self.every == 0:
            gc.collect()
            with warnings.catch_warnings():  # of what is looked at, not of tensors
                warnings.simplefilter("ignore")
                self.tensors.append(sum(isinstance(found, torch.Tensor) for found in gc.get_objects()))
            self.resident.append(resident())


def train(method: str, precision: str, steps: int) -> tuple[list[int], list[float]]:
    """The number of tensors and the resident memory in MiB, sample by sample."""
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    module, callbacks = METHODS[method]()
    watch = Watch(max(steps // SAMPLES, 1))
    sizes = {"train_length": 64, "val_length": 2, "size": 32, "crop_size": 32, "resize_long": (32, 40)}
    unlabeled = {"unlabeled_batch_size": 2} if method == "csrm" else {}
    trainer = quiet(
        max_steps=steps,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        precision=precision,
        callbacks=[*callbacks, watch],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, ShapesDataModule(batch_size=2, **sizes, **unlabeled))
    for name, value in module.state_dict().items():
        if not torch.isfinite(value.float()).all():
            raise SystemExit(f"`{name}` is not finite")
    return watch.tensors, watch.resident


def judged(tensors: Sequence[int], memory: Sequence[float]) -> tuple[str, bool]:
    """The table's cells, and whether the training stays within bounds from a quarter of its steps on."""
    first = len(tensors) // 4
    counts, growth = sorted(set(tensors[first:])), memory[-1] - memory[first]
    cells = f"{', '.join(map(str, counts))} | {memory[first]:.0f} | {growth:+.1f} MiB"
    return cells, len(counts) == 1 and growth <= GROWTH


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--precisions", nargs="+", default=["32-true", "bf16-mixed"])
    options = parser.parse_args(args)
    print("| training | steps | tensors | MiB at a quarter | growth after it |\n|---|---:|---:|---:|---:|")
    failed = False
    for method in options.methods:
        for precision in options.precisions:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
                tensors, memory = fresh.submit(train, method, precision, options.steps).result()
            cells, stays = judged(tensors, memory)
            failed |= not stays
            print(f"| {method}, {precision} | {options.steps} | {cells} |", flush=True)
    if failed:
        raise SystemExit(f"the number of tensors must stay the same, and the growth within {GROWTH} MiB")


if __name__ == "__main__":
    main()
