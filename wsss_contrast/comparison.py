"""Train several methods alike and compare their seeds: the engine of the demo and of the benchmarks on photographs."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import statistics
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import LambdaCallback
from numpy.typing import NDArray
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex

from wsss_contrast import __version__
from wsss_contrast.checkpoints import WholeCheckpoints
from wsss_contrast.data import TaggedImageDataset, WSSSDataModule, as_photos, denormalize
from wsss_contrast.files import write_atomically
from wsss_contrast.modules import CAM, WSSSModule
from wsss_contrast.pictures import picture_sheet, png
from wsss_contrast.refine import DenseCRF, pseudo_labels

Module = TypeVar("Module", bound=WSSSModule)

Making = Callable[[int], tuple[Module, list[L.Callback]]]
"""Makes the module of a seed's run and the callbacks to train it with."""

Method = Making[CAM]
"""The same of a module with seeds."""

Masks = Sequence[NDArray[np.uint8]]


class Kept(Generic[Module]):
    """A method whose trained weights are wanted again: it leaves a checkpoint for each seed.

    Args:
        method: the method.
        folder: for the checkpoints.
        train_alone: trains a method with a seed; for a checkpoint that is missing although the method has its result.
    """

    def __init__(
        self, method: Making[Module], folder: Path, train_alone: Callable[[Making[Module], int], object]
    ) -> None:
        self.method, self.folder, self.train_alone = method, folder, train_alone

    def __call__(self, seed: int) -> tuple[Module, list[L.Callback]]:
        module, callbacks = self.method(seed)
        keep = LambdaCallback(on_train_end=lambda trainer, _: trainer.save_checkpoint(self._path(seed)))
        return module, [*callbacks, keep]

    def checkpoint(self, seed: int) -> Path:
        """The seed's checkpoint. For a method that begins with it, which :func:`train` has just seeded."""
        if not self._path(seed).is_file():
            self.train_alone(self, seed)
            L.seed_everything(seed, verbose=False)
        return self._path(seed)

    def _path(self, seed: int) -> Path:
        return self.folder / f"{seed}.ckpt"


class Run(NamedTuple):
    """What a method gave with a seed.

    Attributes:
        scores: mIoU in percent on ``train``, ``val`` and ``val oracle``, with a CRF ``train + CRF`` and ``val + CRF``,
            and ``train before CRF`` and ``val before CRF`` on the same images; the thresholds; seconds.
        curves: mIoU in percent at each of :data:`~wsss_contrast.metrics.THRESHOLDS`, of ``train`` and ``val``.
        masks: of some validation images.
    """

    scores: Mapping[str, float]
    curves: Mapping[str, Sequence[float]]
    masks: Masks


def compare(
    make_data: Callable[[int], WSSSDataModule],
    methods: Mapping[str, Method],
    out: Path,
    steps: int | Mapping[str, int],
    seeds: Sequence[int],
    pictures: int = 6,
    crf_images: int = 0,
    settings: Mapping[str, Any] | None = None,
    runs: Path | None = None,
    **trainer_options: Any,
) -> dict[str, list[Run]]:
    """Train each method from the same seeds for the same steps, score its seeds, write ``table.md`` and ``sheet.png``.

    The result of a method and a seed is a file of its own in ``runs``, ``METHOD_SEED.json``, with its pictures beside
    it as ``.npz``. A rerun with the same settings and release of this library takes it from there and says so, and
    says whether other code made it; give ``settings`` whatever else a result depends on, or another ``runs``. Without
    its pictures a result counts all the same, and is not on the sheet.

    Args:
        make_data: the data for a seed; its validation loaders are the split to choose the threshold on, and the split
            to score.
        methods: by name.
        out: folder for the table and the sheet.
        steps: optimiser steps of each run, or of each method's.
        seeds: of weights, order and augmentation; the runs of a method.
        pictures: how many scored images the sheet shows, of the first seed.
        crf_images: how many images of each split are scored before and after a dense CRF as well, spread evenly.
        settings: what else the results depend on; results of other settings are made anew.
        runs: folder for the results, where tables share rows; by default ``out``.
        trainer_options: for Lightning's ``Trainer``.

    Returns:
        For each method, its runs.
    """
    stems = {name: _file_name(name) for name in methods}
    if len(set(stems.values())) < len(stems):
        raise ValueError(f"the names of two methods differ in signs only: {list(stems)}")
    key = {"version": __version__, "pictures": pictures, "crf": crf_images, **(settings or {})}
    results: dict[str, list[Run]] = {name: [] for name in methods}
    for seed in seeds:  # all methods of a seed first: an unfinished table compares like with like
        data = make_data(seed)
        for name, method in methods.items():
            path = (runs or out) / f"{stems[name]}_{seed}.json"
            run = f"{name}, seed {seed}"
            own_steps = steps if isinstance(steps, int) else steps[name]
            own_key = key | {"steps": own_steps}
            result = _stored(run, path, own_key)
            if result is None:
                result = _run(run, method, data, own_steps, seed, pictures, crf_images, trainer_options)
                _store(path, own_key, result)
            results[name].append(result)
    masks = {name: of_method[0].masks for name, of_method in results.items() if of_method[0].masks}
    write_atomically(table(results).encode(), out / "table.md")
    write_atomically(png(_sheet(make_data(seeds[0]), masks, pictures)), out / "sheet.png")
    return results


def _store(path: Path, key: Mapping[str, Any], run: Run) -> None:
    """A run's scores and what they depend on, and its pictures."""
    about = {"settings": key, "code": _code(), "scores": run.scores, "curves": run.curves}
    file = io.BytesIO()
    np.savez_compressed(file, *run.masks)
    write_atomically(file.getvalue(), path.with_suffix(".npz"))
    write_atomically(json.dumps(about).encode(), path)  # last: with this file the run counts


def _stored(run: str, path: Path, key: Mapping[str, Any]) -> Run | None:
    """A result of the same settings; ``None`` where there is none or it can't be read."""
    try:
        about = json.loads(path.read_text())
        if about["settings"] != json.loads(json.dumps(key)):
            return None
        masks: list[NDArray[np.uint8]] = []
        if path.with_suffix(".npz").exists():
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
                masks = [file[name] for name in file.files]
        other = "" if about["code"] == _code() else ", which other code of this release made"
        print(f"{run}: taken from {path}{other}", flush=True)
        return Run(about["scores"], about["curves"], masks)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None


COLUMNS = ("train", "val", "val oracle", "train + CRF", "val + CRF", "threshold")


def table(results: Mapping[str, Sequence[Run]]) -> str:
    """A Markdown table of results, with the gain of each row over the one before.

    Of several runs it gives the mean and the standard deviation. Behind a figure with CRF stands what the CRF gained on
    the same images.
    """
    columns = [column for column in COLUMNS if all(column in run.scores for runs in results.values() for run in runs)]
    lines = [
        f"| method | {' | '.join(columns)} | gain on train / val |",
        f"|---|{'---:|' * (len(columns) + 1)}",
    ]
    last: dict[str, float] | None = None
    for name, runs in results.items():
        means = {column: statistics.fmean(run.scores[column] for run in runs) for column in runs[0].scores}
        gain = "" if last is None else f"{means['train'] - last['train']:+.1f} / {means['val'] - last['val']:+.1f}"
        cells = []
        for column in columns:
            digits = 2 if column == "threshold" else 1
            cell = f"{means[column]:.{digits}f}"
            if len(runs) > 1:
                cell += f" ± {statistics.stdev(run.scores[column] for run in runs):.{digits}f}"
            if column.endswith(" + CRF"):
                cell += f" ({means[column] - means[column.replace(' + ', ' before ')]:+.1f})"
            cells.append(cell)
        lines.append(f"| {name} | {' | '.join(cells)} | {gain} |")
        last = means
    return "\n".join(lines) + "\n"


_QUIET: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}


def train(method: Making[Module], data: WSSSDataModule, steps: int, seed: int, **options: Any) -> Module:
    """Train a method as :func:`compare` does."""
    L.seed_everything(seed, verbose=False)
    module, callbacks = method(seed)
    unscored = {"limit_val_batches": 0, "num_sanity_val_steps": 0, "plugins": [WholeCheckpoints()]}
    with _quietly():
        L.Trainer(max_steps=steps, callbacks=callbacks, **{**_QUIET, **options, **unscored}).fit(
            module, datamodule=data
        )
    return module


def _run(
    name: str,
    method: Method,
    data: WSSSDataModule,
    steps: int,
    seed: int,
    pictures: int,
    crf_images: int,
    options: Mapping[str, Any],
) -> Run:
    print(f"{name}: training", flush=True)
    began = time.perf_counter()
    module = train(method, data, steps, seed, **options)
    trained = time.perf_counter()
    with _quietly():
        print(f"{name}: scoring", flush=True)
        scorer = L.Trainer(**_QUIET, **options)
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
    if crf_images:
        print(f"{name}: dense CRF", flush=True)
        module.to(scorer.strategy.root_device)
        for split, dataset in data.val_sets.items():
            scores[f"{split} before CRF"], scores[f"{split} + CRF"] = _miou_of_crf(module, dataset, crf_images)
        scores["seconds CRF"] = time.perf_counter() - trained - scores["seconds scoring"]
    print(f"{name}: train {scores['train']:.1f}, val {scores['val']:.1f}", flush=True)
    curves = {split: (100 * curve.miou).tolist() for split, curve in module.seed_curves.items()}
    return Run(scores, curves, [_mask(module, sample) for sample in _samples(data.val_set, pictures)])


def _miou_of_crf(module: CAM, dataset: TaggedImageDataset, images: int) -> tuple[float, float]:
    """mIoU in percent of some images, before and after a dense CRF."""
    before, after = (MulticlassJaccardIndex(len(dataset.class_names) + 1, ignore_index=255) for _ in range(2))
    crf = DenseCRF()
    for sample in _samples(dataset, images):
        image, tags = (sample[key][None].to(module.device) for key in ("image", "tags"))
        seeds = module.eval().seeds(image, tags)
        for miou, refine in ((before, None), (after, crf)):
            labels = pseudo_labels(as_photos(image), seeds, tags, module.background_threshold, refine=refine)
            miou.update(labels.cpu(), sample["mask"][None])
    return 100 * float(before.compute()), 100 * float(after.compute())


def _samples(dataset: TaggedImageDataset, count: int) -> Iterator[dict[str, Any]]:
    """Images spread evenly over the set."""
    chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
    return (dataset[int(i)] for i in chosen)


@torch.no_grad()
def _mask(module: CAM, sample: Mapping[str, Any]) -> NDArray[np.uint8]:
    module.eval()
    image, tags = (sample[key][None].to(module.device) for key in ("image", "tags"))
    masks = module.masks(image, module.seeds(image, tags), tags)
    return masks[0].cpu().numpy().astype(np.uint8)


def _sheet(data: WSSSDataModule, masks: Mapping[str, Masks], pictures: int) -> Image.Image:
    data.setup("validate")
    rows = []
    for i, sample in enumerate(_samples(data.val_set, pictures)):
        truth = sample["mask"].numpy().astype(np.uint8)
        rows.append([denormalize(sample["image"]), truth, *(of_method[i] for of_method in masks.values())])
    return picture_sheet(["photo", "ground truth", *masks], rows)


def _code() -> str:
    """A digest of the package's code."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


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
