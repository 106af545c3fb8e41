"""Writes predicted masks as palette images."""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from torch import Tensor

from wsss_contrast.pictures import mask_image, png, write_atomically

_RECORD = "made_by.json"
_ADDRESS = re.compile(" at 0x[0-9a-f]+", re.IGNORECASE)  # in the default `repr`; another in each process


class MaskWriter(BasePredictionWriter):
    """During ``predict``, writes each mask to ``out/NAME.png``, a palette PNG of class ids.

    The ids are those of the data set where the data module tells them (``mask_ids``: VOC's own ids for a choice of VOC
    classes), else 0 for the background and 1 to K. Where the batch has ``photo_size`` (N, 2), height and width of the
    photos before they were reduced, masks are brought to that size; each pixel takes the id of its nearest.
    ``Trainer.predict`` then returns nothing: the masks of a data set need not stay in memory.

    A file is written under a temporary name and renamed, so one that is there is whole. Run again, ``predict``
    continues: a data module of this library leaves out the photos that have a mask. The folder remembers what made it,
    but not each photo's tags: remove the masks of photos whose tags have changed.

    Args:
        out: folder for the masks; made where it is missing.
        soft: write the seeds as well, ``out/NAME.npz`` with ``classes`` (n,), the ids of the tagged classes, and
            ``scores`` (n, H, W), float16, at the size of the network's photo. For modules of this library.

    Raises:
        FileExistsError: the folder has masks of another model, of other settings, or of something else.
    """

    def __init__(self, out: str = "runs/masks", soft: bool = False) -> None:
        super().__init__(write_interval="batch")
        self.out = Path(out)
        self.soft = soft

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "predict":
            return
        # Masks have names, so places in the data set do not matter; and nothing may be left to predict.
        for message in ("Couldn't infer the batch indices", "Total length of `DataLoader` across ranks is zero"):
            warnings.filterwarnings("ignore", message)
        data: Any = getattr(trainer, "datamodule", None)
        if hasattr(data, "predicted"):
            data.predicted = frozenset(path.stem for path in self.out.glob("*.png"))
            if data.predicted:
                rank_zero_info(f"{self.out}: has {len(data.predicted)} masks already; going on with the others")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.predict_loop.return_predictions = False
        if self.soft:
            setattr(pl_module, "keep_seeds", True)  # noqa: B010, of our modules
        made_by = self._check(trainer, pl_module)
        if trainer.is_global_zero:
            write_atomically(json.dumps(made_by, indent=1).encode(), self.out / _RECORD)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "predict" and trainer.predict_loop.skip:  # all photos have a mask, and nothing was started
            self._check(trainer, pl_module)

    def _check(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, str]:
        """What makes the masks now; raises where those in the folder were made otherwise."""
        made_by = self._made_by(trainer, pl_module)
        record = self.out / _RECORD
        known = json.loads(record.read_text()) if record.is_file() else None
        if known != made_by and any(self.out.glob("*.png")):
            differs = "" if known is None else ": " + ", ".join(k for k in made_by if known.get(k) != made_by[k])
            raise FileExistsError(
                f"{self.out}: has masks of another model or of other settings{differs}; "
                "give another folder, or remove them"
            )
        return made_by

    def _made_by(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, str]:
        """What the masks depend on, beside the photos."""
        weights = hashlib.sha256()
        for name, value in sorted(pl_module.state_dict().items()):
            weights.update(name.encode())
            weights.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        data = getattr(trainer, "datamodule", None)
        return {
            "module": type(pl_module).__qualname__,
            "weights": weights.hexdigest(),
            "settings": str(dict(pl_module.hparams)),
            "refine": _ADDRESS.sub("", repr(getattr(pl_module, "refine", None))),
            "soft": str(self.soft),
            "ids": str(getattr(data, "mask_ids", None)),
            "data": str(getattr(data, "mask_options", {})),
        }

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
        ids = getattr(getattr(trainer, "datamodule", None), "mask_ids", None)
        masks = prediction["mask"].cpu().numpy()
        reduced = isinstance(batch, dict) and "photo_size" in batch
        sizes = batch["photo_size"].tolist() if reduced else [mask.shape for mask in masks]
        for index, (name, mask, (height, width)) in enumerate(zip(prediction["name"], masks, sizes, strict=True)):
            if self.soft:  # before the mask, which says that the photo is done
                self._write_seeds(name, prediction["seeds"][index], prediction["tags"][index], ids)
            if ids is not None:
                mask = np.asarray(ids)[mask]
            image = mask_image(mask).resize((width, height), Image.Resampling.NEAREST)
            write_atomically(png(image), self.out / f"{name}.png")

    def _write_seeds(self, name: str, seeds: Tensor, tags: Tensor, ids: Sequence[int] | None) -> None:
        tagged = tags.cpu().numpy() > 0
        classes = np.asarray(ids if ids is not None else range(len(tagged) + 1))[1:][tagged]
        file = io.BytesIO()
        np.savez_compressed(file, classes=classes, scores=seeds.cpu().numpy()[tagged].clip(0).astype(np.float16))
        write_atomically(file.getvalue(), self.out / f"{name}.npz")
