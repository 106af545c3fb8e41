"""Train several methods alike and compare their seeds: the engine of the demo and of the benchmarks on photographs."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray

from wsss_contrast.data import WSSSDataModule, denormalize
from wsss_contrast.modules import CAM
from wsss_contrast.pictures import picture_sheet, write_atomically

Method = Callable[[], tuple[CAM, list[L.Callback]]]
"""Makes a module and the callbacks to train it with."""

COLUMNS = ("train", "val", "val oracle", "threshold", "oracle threshold")


def compare(
    data: WSSSDataModule,
    methods: Mapping[str, Method],
    out: Path,
    steps: int,
    seed: int,
    pictures: int = 6,
    settings: Mapping[str, Any] | None = None,
    **trainer_options: Any,
) -> dict[str, dict[str, float]]:
    """Train each method from the same seed for the same steps, score its seeds, write ``table.md`` and ``sheet.png``.

    A method's result is a file of its own in ``out``; a rerun with the same settings takes it from there.

    Args:
        data: the data; its validation loaders are the split to choose the threshold on, and the split to score.
        methods: by name.
        out: folder for the results.
        steps: optimiser steps of each method.
        seed: of weights, order and augmentation.
        pictures: how many scored images the sheet shows.
        settings: what else the results depend on; results of other settings are made anew.
        trainer_options: for Lightning's ``Trainer``.

    Returns:
        For each method, mIoU in percent on ``train``, ``val`` and ``val oracle``, and the thresholds.
    """
    out.mkdir(parents=True, exist_ok=True)
    key = {"steps": steps, "seed": seed, **(settings or {})}
    results = {}
    for name, method in methods.items():
        path = out / f"{_file_name(name)}.json"
        stored = json.loads(path.read_text()) if path.is_file() else {}
        if stored.get("settings") != key:
            scores, masks = _run(name, method, data, steps, seed, pictures, trainer_options)
            np.savez_compressed(path.with_suffix(".npz"), *masks)
            stored = {"settings": key, "scores": scores}
            path.write_text(json.dumps(stored, indent=1))
        results[name] = stored["scores"]
    text = table(results)
    (out / "table.md").write_text(text)
    _sheet(data, list(methods), out, pictures)
    return results


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """A Markdown table of results, with the gain of each row over the one before."""
    lines = [
        f"| method | {' | '.join(COLUMNS[:3])} | threshold (oracle) | gain on train / val |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    last: Mapping[str, float] | None = None
    for name, row in results.items():
        gain = "" if last is None else f"{row['train'] - last['train']:+.1f} / {row['val'] - last['val']:+.1f}"
        cells = [f"{row[column]:.1f}" for column in COLUMNS[:3]]
        cells.append(f"{row['threshold']:.2f} ({row['oracle threshold']:.2f})")
        lines.append(f"| {name} | {' | '.join(cells)} | {gain} |")
        last = row
    return "\n".join(lines) + "\n"


def _run(
    name: str, method: Method, data: WSSSDataModule, steps: int, seed: int, pictures: int, options: Mapping[str, Any]
) -> tuple[dict[str, float], list[NDArray[np.uint8]]]:
    L.seed_everything(seed, verbose=False)
    module, callbacks = method()
    module.to(memory_format=torch.channels_last)  # half the time on a CPU
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    with _quietly():
        trainer = L.Trainer(
            max_steps=steps,
            callbacks=callbacks,
            **{**quiet, **options, "limit_val_batches": 0, "num_sanity_val_steps": 0},
        )
        print(f"{name}: training", flush=True)
        began = time.perf_counter()
        trainer.fit(module, datamodule=data)
        trained = time.perf_counter()
        print(f"{name}: scoring", flush=True)
        scorer = L.Trainer(**quiet, **options)
        scored = scorer.validate(module, datamodule=data, verbose=False)[0]
    scores = {
        "train": 100 * scored["train/miou"],
        "val": 100 * scored["val/miou"],
        "val oracle": 100 * scored["val/miou_oracle"],
        "threshold": scored["threshold"],
        "oracle threshold": scored["threshold_oracle"],
        "seconds training": trained - began,
        "seconds scoring": time.perf_counter() - trained,
    }
    return scores, _masks(module, data, pictures)


def _samples(data: WSSSDataModule, pictures: int) -> list[dict[str, Any]]:
    """Scored images spread over the split, those with more than one class first among equals."""
    data.setup("validate")
    count = len(data.val_set)
    chosen = np.linspace(0, count - 1, min(pictures, count)).round().astype(int)
    return [data.val_set[int(i)] for i in chosen]


@torch.no_grad()
def _masks(module: CAM, data: WSSSDataModule, pictures: int) -> list[NDArray[np.uint8]]:
    module.eval()
    masks = []
    for sample in _samples(data, pictures):
        image, tags = (sample[key][None].to(module.device) for key in ("image", "tags"))
        masks.append(module.masks(module.seeds(image, tags))[0].cpu().numpy().astype(np.uint8))
    return masks


def _sheet(data: WSSSDataModule, names: Sequence[str], out: Path, pictures: int) -> None:
    of_method = []
    for name in names:
        with np.load(out / f"{_file_name(name)}.npz") as masks:
            of_method.append([masks[key] for key in masks.files])
    rows = []
    for i, sample in enumerate(_samples(data, pictures)):
        truth = sample["mask"].numpy().astype(np.uint8)
        rows.append([denormalize(sample["image"]), truth, *(masks[i] for masks in of_method)])
    write_atomically(picture_sheet(["photo", "ground truth", *names], rows), out / "sheet.png")


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.lower())


class _quietly(warnings.catch_warnings):
    """Without Lightning's tips and hardware lines; errors still come through."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        self._logger = logging.getLogger("lightning.pytorch")
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)
        return entered

    def __exit__(self, *exception: Any) -> None:
        self._logger.setLevel(self._level)
        super().__exit__(*exception)
