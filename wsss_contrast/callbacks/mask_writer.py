"""Writes predicted masks as palette images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image

from wsss_contrast.pictures import mask_image, png, write_atomically


class MaskWriter(BasePredictionWriter):
    """During ``predict``, writes each mask to ``out/NAME.png``, a palette PNG of class ids.

    The ids are those of the data set where the data module tells them (``mask_ids``: VOC's own ids for a choice of VOC
    classes), else 0 for the background and 1 to K. Where the batch has ``photo_size`` (N, 2), height and width of the
    photos before they were reduced, masks are brought to that size; each pixel takes the id of its nearest. A file is
    written under a temporary name and renamed, so one that is there is whole. ``Trainer.predict`` then returns nothing:
    the masks of a data set need not stay in memory.

    Args:
        out: folder for the masks; made where it is missing.
    """

    def __init__(self, out: str = "runs/masks") -> None:
        super().__init__(write_interval="batch")
        self.out = Path(out)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.predict_loop.return_predictions = False

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
        for name, mask, (height, width) in zip(prediction["name"], masks, sizes, strict=True):
            if ids is not None:
                mask = np.asarray(ids)[mask]
            image = mask_image(mask).resize((width, height), Image.Resampling.NEAREST)
            write_atomically(png(image), self.out / f"{name}.png")
