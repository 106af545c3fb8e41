"""Train several methods alike and compare their seeds: the engine of the demo and of the benchmarks on photographs."""

from __future__ import annotations

import io
import json
import logging
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from wsss_contrast import __version__
from wsss_contrast.data import WSSSDataModule, denormalize
from wsss_contrast.modules import CAM
from wsss_contrast.pictures import picture_sheet, png, write_atomically

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

    A method's result is a file of its own in ``out``. A rerun with the same settings and release of this library
    takes it from there and says so; give ``settings`` whatever else a result depends on, or another ``out``.

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
    files = {name: out / f"{_file_name(name)}.npz" for name in methods}
    if len(set(files.values())) < len(files):
        raise ValueError(f"the names of two methods differ in signs only: {list(files)}")
    key = {"version": __version__, "steps": steps, "seed": seed, "pictures": pictures, **(settings or {})}
    results, masks = {}, {}
    for name, method in methods.items():
        stored = _stored(files[name], key)
        if stored is None:
            scores, masks[name] = _run(name, method, data, steps, seed, pictures, trainer_options)
            results[name] = scores
            _store(files[name], key, scores, masks[name])
        else:
            print(f"{name}: taken from {files[name]}", flush=True)
            results[name], masks[name] = stored
    write_atomically(table(results).encode(), out / "table.md")
    write_atomically(png(_sheet(data, masks, pictures)), out / "sheet.png")
    return results


def _store(path: Path, key: Mapping[str, Any], scores: Mapping[str, float], masks: Sequence[NDArray[np.uint8]]) -> None:
    """One file with a method's scores, its pictures and what they depend on."""
    about = json.dumps({"settings": key, "scores": scores})
    file = io.BytesIO()
    np.savez_compressed(file, *masks, about=np.array(about))
    write_atomically(file.getvalue(), path)


def _stored(path: Path, key: Mapping[str, Any]) -> tuple[dict[str, float], list[NDArray[np.uint8]]] | None:
    """A result of the same settings; ``None`` where there is none or it can't be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            if about["settings"] != json.loads(json.dumps(key)):
                return None
            return about["scores"], [file[name] for name in file.files if name != "about"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


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
    """Scored images, spread evenly over the split."""
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


def _sheet(data: WSSSDataModule, masks: Mapping[str, Sequence[NDArray[np.uint8]]], pictures: int) -> Image.Image:
    rows = []
    for i, sample in enumerate(_samples(data, pictures)):
        truth = sample["mask"].numpy().astype(np.uint8)
        rows.append([denormalize(sample["image"]), truth, *(of_method[i] for of_method in masks.values())])
    return picture_sheet(["photo", "ground truth", *masks], rows)


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.lower())


@contextmanager
def _quietly() -> Iterator[None]:
    """Without Lightning's tips, hardware lines and advice on workers; other warnings come through."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        logger.setLevel(level)
