"""Writes predicted masks as palette images."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from torch import Tensor

from wsss_contrast._digest import digest
from wsss_contrast.files import write_atomically
from wsss_contrast.functional import NO_LABEL
from wsss_contrast.pictures import mask_image, png

_RECORD = "made_by.json"
_ADDRESS = re.compile(" at 0x[0-9a-f]+", re.IGNORECASE)  # in the default `repr`; another in each process
_AHEAD = 2  # photos for each that is refined at once: that one, and one that waits


class MaskWriter(BasePredictionWriter):
    """During ``predict``, writes each mask to ``out/NAME.png``, a palette PNG of class ids.

    The ids are those of the data set where the data module tells them (``mask_ids``: VOC's own ids for a choice of VOC
    classes), else 0 for the background and 1 to K. Where the batch has ``photo_size`` (N, 2), height and width of the
    photos before they were reduced, masks are brought to that size; each pixel takes the id of its nearest.
    ``Trainer.predict`` then returns nothing: the masks of a data set need not stay in memory.

    A file is written under a temporary name and renamed, so one that is there is whole. Run again, ``predict``
    continues: a data module of this library leaves out the photos that have a mask. The folder remembers what made it,
    but not each photo's tags: remove the masks of photos whose tags have changed.

    Where the module's refiner has a ``concurrency`` above 1, as a dense CRF in processes, several batches are refined
    at once, and the network goes on meanwhile: masks are written a few batches behind.

    Args:
        out: folder for the masks; made where it is missing.
        soft: write the seeds as well, ``out/NAME.npz`` with ``classes`` (n,), the ids of the tagged classes, and
            ``scores`` (n, H, W), float16, at the size of the network's photo. For modules of this library.

    Raises:
        FileExistsError: the folder has masks of another model, of other settings, or of something else.
        ValueError: a prediction without what is to be written, or with ids that the data does not have.
    """

    def __init__(self, out: str = "runs/masks", soft: bool = False) -> None:
        super().__init__(write_interval="batch")
        self.out = Path(out)
        self.soft = soft
        self._kept: bool | None = None  # whether the module kept its seeds before
        self._threads: ThreadPoolExecutor | None = None
        self._waiting: deque[tuple[dict[str, Any], Any, Future[Tensor]]] = deque()  # prediction, batch, masks

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "predict":
            return
        # Masks have names, so places in the data set do not matter; and nothing may be left to predict.
        for message in ("Couldn't infer the batch indices", "Total length of `DataLoader` across ranks is zero"):
            warnings.filterwarnings("ignore", message)
        data = _data(trainer)
        if hasattr(data, "predicted"):
            data.predicted = self._names()
            if data.predicted:
                rank_zero_info(f"{self.out}: has {len(data.predicted)} masks already; going on with the others")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.predict_loop.return_predictions = False
        if self.soft:
            self._kept = getattr(pl_module, "keep_seeds", False)
            setattr(pl_module, "keep_seeds", True)  # noqa: B010, of our modules
        self._concurrency = getattr(getattr(pl_module, "refine", None), "concurrency", 1)
        if self._concurrency > 1:
            # A thread for each batch at work: it does little but wait for the refiner, so it needs no threads of torch.
            self._threads = ThreadPoolExecutor(self._concurrency, initializer=torch.set_num_threads, initargs=(1,))
            setattr(pl_module, "masks_later", True)  # noqa: B010, of our modules
        made_by = self._check(trainer, pl_module)
        if trainer.is_global_zero:
            write_atomically(json.dumps(made_by, indent=1).encode(), self.out / _RECORD)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write_waiting(trainer, 0)
        self._reset(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._reset(pl_module)

    def _reset(self, pl_module: L.LightningModule) -> None:
        if self._kept is not None:
            setattr(pl_module, "keep_seeds", self._kept)  # noqa: B010
            self._kept = None
        if self._threads is not None:
            setattr(pl_module, "masks_later", False)  # noqa: B010
            self._waiting.clear()
            self._threads.shutdown(cancel_futures=True)
            self._threads = None

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "predict" and trainer.predict_loop.skip:  # all photos have a mask, and nothing was started
            self._check(trainer, pl_module)

    def _names(self) -> frozenset[str]:
        """The photos that have a mask. A name may have slashes."""
        return frozenset(path.relative_to(self.out).with_suffix("").as_posix() for path in self.out.rglob("*.png"))

    def _check(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, str]:
        """What makes the masks now; raises where those in the folder were made otherwise."""
        made_by = self._made_by(trainer, pl_module)
        record = self.out / _RECORD
        if not self._names():
            return made_by
        try:
            known = json.loads(record.read_text()) if record.is_file() else None
            keys = [*made_by, *(key for key in known or {} if key not in made_by)]
            differs = "" if known is None else ": " + ", ".join(k for k in keys if known.get(k) != made_by.get(k))
        except (ValueError, AttributeError) as error:
            raise FileExistsError(f"{record}: is damaged; give another folder, or remove it and the masks") from error
        if known != made_by:
            raise FileExistsError(
                f"{self.out}: has masks of another model or of other settings{differs}; "
                "give another folder, or remove them"
            )
        return made_by

    def _made_by(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, str]:
        """What the masks depend on, beside the photos."""
        data = _data(trainer)
        given = {"labels": getattr(pl_module, "make_labels", None), "threshold": getattr(pl_module, "threshold", None)}
        return {
            "module": type(pl_module).__qualname__,
            "weights": digest(pl_module.state_dict().items()),
            "settings": str(dict(pl_module.hparams)),
            "refine": _ADDRESS.sub("", repr(getattr(pl_module, "refine", None))),
            "soft": str(self.soft),
            "ids": str(getattr(data, "mask_ids", None)),
            "data": str(getattr(data, "mask_options", {})),
        } | {name: _ADDRESS.sub("", repr(value)) for name, value in given.items() if value is not None}

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        needed = ["name", "mask", *(["seeds", "tags"] if self.soft else [])]
        missing = [key for key in needed if not isinstance(prediction, dict) or key not in prediction]
        if missing:
            raise ValueError(
                f"{type(pl_module).__qualname__}.predict_step must give a dict with {', '.join(needed)}; "
                f"it has no {', '.join(missing)}"
            )
        if self._threads is None or not callable(prediction["mask"]):
            self._write(trainer, prediction, batch)
            return
        self._waiting.append((prediction, batch, self._threads.submit(prediction["mask"])))
        self._write_waiting(trainer, max(1, _AHEAD * self._concurrency // len(prediction["name"])))

    def _write_waiting(self, trainer: L.Trainer, most: int) -> None:
        """Write what is refined, in order; wait only while more than ``most`` batches are not."""
        while self._waiting and (len(self._waiting) > most or self._waiting[0][2].done()):
            prediction, batch, masks = self._waiting.popleft()
            self._write(trainer, prediction | {"mask": masks.result()}, batch)

    def _write(self, trainer: L.Trainer, prediction: dict[str, Any], batch: Any) -> None:
        ids = getattr(_data(trainer), "mask_ids", None)
        masks = prediction["mask"].cpu().numpy()
        reduced = isinstance(batch, dict) and "photo_size" in batch
        sizes = batch["photo_size"].tolist() if reduced else [mask.shape for mask in masks]
        for index, (name, mask, (height, width)) in enumerate(zip(prediction["name"], masks, sizes, strict=True)):
            if self.soft:  # before the mask, which says that the photo is done
                self._write_seeds(name, prediction["seeds"][index], prediction["tags"][index], ids)
            if ids is not None:
                unknown = np.setdiff1d(mask, [*range(len(ids)), NO_LABEL])
                if unknown.size:
                    raise ValueError(f"{name}: the mask has the class {unknown[0]}, the data has 0 to {len(ids) - 1}")
                mask = np.append(ids, [NO_LABEL] * (NO_LABEL + 1 - len(ids)))[mask]
            image = mask_image(mask).resize((width, height), Image.Resampling.NEAREST)
            write_atomically(png(image), self.out / f"{name}.png")

    def _write_seeds(self, name: str, seeds: Tensor, tags: Tensor, ids: Sequence[int] | None) -> None:
        tagged = (tags > 0).cpu().numpy()  # numpy has no bfloat16
        classes = np.asarray(ids if ids is not None else range(len(tagged) + 1))[1:][tagged]
        file = io.BytesIO()
        np.savez_compressed(file, classes=classes, scores=seeds.cpu().numpy()[tagged].clip(0).astype(np.float16))
        write_atomically(file.getvalue(), self.out / f"{name}.npz")


def _data(trainer: L.Trainer) -> Any:
    """The data module whose photos are predicted: the trainer keeps one when loaders are given later."""
    data = getattr(trainer, "datamodule", None)
    return data if trainer.predict_loop._data_source.instance is data else None
