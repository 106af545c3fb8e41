"""The training steps that run.py measures, and the part of a training that waits for data."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image
from speed_parts import BATCH, CLASSES, CROP, VIEW, normal, tags
from torch import Tensor
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.literal import tensors
from tests.literal.csrm_contrast import contrast as csrm_contrast_literal
from wsss_contrast import functional
from wsss_contrast.callbacks import PrototypeContrastCallback
from wsss_contrast.data import SHAPES_CLASSES, FolderDataModule, ShapesDataset
from wsss_contrast.functional import resize
from wsss_contrast.modules import CAM, CSRM, SEAM

STEP = 224  # px of the training steps


class LiteralSEAM(SEAM):
    """With the correlation module and the losses in their usual form."""

    def refined(self, images: Tensor, matrix: Tensor | None = None) -> tuple[Tensor, Tensor]:
        ours, functional_of_pcm = functional.pixel_correlation, sys.modules["wsss_contrast.nn.pixel_correlation"]
        functional_of_pcm.pixel_correlation = lambda maps, features, valid: tensors.pixel_correlation(maps, features)
        try:
            return super().refined(images, matrix)
        finally:
            functional_of_pcm.pixel_correlation = ours

    def _losses(self, source: Any, target: Any, tags: Tensor, *sizes: tuple[int, int]) -> dict[str, Tensor]:
        large = [resize(m, size) for maps, size in zip((source, target), sizes, strict=True) for m in maps]
        return tensors.seam_losses(*large, tags)


class LiteralCSRM(CSRM):
    """With the contrast class by class, of the released constants."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        contrast = self.losses.contrast
        memory = [torch.zeros(0, contrast.bank.embedding_dim) for _ in contrast.bank.capacities]

        def forward(
            embeddings: Tensor, teacher: Tensor, logits: Tensor, labels: Tensor, *more: Any, generator: Any, draws: Any
        ) -> Tensor:
            small = functional.nearest_labels(labels, (embeddings.shape[-2], embeddings.shape[-1]))
            rest = *more, memory, list(contrast.bank.capacities)
            return csrm_contrast_literal(embeddings, teacher, logits, small, *rest, generator=generator, draws=draws)

        contrast.forward = forward


class Clock(L.Callback):
    """Seconds of each batch, and of the way to the next one."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.waits: list[float] = []
        self._last = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        now = time.perf_counter()
        if self.steps:
            self.waits.append(now - self._last)
        self._last = now

    def on_train_batch_end(self, *_: Any) -> None:
        now = time.perf_counter()
        self.steps.append(now - self._last)
        self._last = now


def fit(module: CAM, callbacks: Sequence[L.Callback], steps: int, data: Any) -> Clock:
    clock = Clock()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}
    options = {"limit_val_batches": 0, "num_sanity_val_steps": 0, "enable_progress_bar": False}
    L.Trainer(max_steps=steps, callbacks=[*callbacks, clock], **quiet, **options).fit(module, data)
    return clock


def batches() -> list[dict[str, Any]]:
    images = normal(BATCH, 3, STEP, STEP).contiguous(memory_format=torch.channels_last)
    batch = {"image": images, "tags": tags(), "name": ["photo"] * BATCH, "labeled": BATCH // 2}
    return [batch, batch, batch]


def training_steps() -> dict[str, Callable[[], float]]:
    """Seconds of a step, by method, and of the backbones' passes in it alone."""
    options, view = {"weights": "offline"}, STEP * VIEW // CROP
    modules: dict[str, tuple[CAM, list[L.Callback]]] = {
        "CAM": (CAM(CLASSES, **options), []),
        "SEAM": (SEAM(CLASSES, view_size=view, **options), []),
        "SEAM, literal": (LiteralSEAM(CLASSES, view_size=view, **options), []),
        "SEAM + PPC": (SEAM(CLASSES, view_size=view, **options), [PrototypeContrastCallback()]),
        "CSRM": (CSRM(CLASSES, compat="official", loss={"warmup": 0.0}, **options), []),
        "CSRM, literal": (LiteralCSRM(CLASSES, compat="official", loss={"warmup": 0.0}, **options), []),
    }
    given = batches()
    small = resize(given[0]["image"], (view, view)).contiguous(memory_format=torch.channels_last)

    def step(name: str) -> float:
        module, callbacks = modules[name]
        data = DataLoader(given, batch_size=None)  # type: ignore[arg-type]
        return min(fit(module, callbacks, len(given), data).steps[1:])  # the first has the loops' start in it

    def passes(name: str, views: Sequence[Tensor]) -> float:
        module = modules[name][0].train()
        taken = []
        for _ in given:
            began = time.perf_counter()
            for view in views:
                found = module.backbone(view)
                found = found[0] if isinstance(found, tuple) else found
                found.sum().backward()
            if name == "CSRM":
                with torch.no_grad():
                    module.teacher.network.backbone(views[0])
            taken.append(time.perf_counter() - began)
        module.zero_grad(set_to_none=True)
        return min(taken[1:])

    views = {"CAM": [given[0]["image"]], "SEAM": [given[0]["image"], small], "CSRM": [given[0]["image"]]}
    calls = {name: lambda name=name: step(name) for name in modules}
    return calls | {f"backbone of {name}": lambda name=name: passes(name, views[name]) for name in views}


def loading_share(rounds: int, workers: int = 2) -> list[float]:
    """The part of a CAM's training on JPEG files of 500 x 500, cut to 224 px, in which it waits for the next batch."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "images").mkdir()
        drawn = ShapesDataset("train", 500, 64)
        rows = ["name,tags"]
        for index in range(len(drawn)):
            picture = drawn.draw(index)[0]
            Image.fromarray(picture).save(Path(folder, "images", f"{index}.jpg"), quality=90)
            rows.append(f"{index},{SHAPES_CLASSES[index % 6]}")
        Path(folder, "tags.csv").write_text("\n".join(rows))
        data = FolderDataModule(folder, crop_size=STEP, resize_long=(STEP, 320), batch_size=BATCH, num_workers=workers)
        shares = []
        for _ in range(rounds):
            clock = fit(CAM(6, weights=None), [], 7, data)
            waits, steps = clock.waits[1:], clock.steps[2:]  # behind the workers' start
            shares.append(sum(waits) / (sum(waits) + sum(steps)))
        return shares
