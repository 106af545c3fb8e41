"""Lightning data modules."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import lightning as L
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, Dataset

from wsss_contrast.data.base import DataError, Sample, TaggedImageDataset, check_class_names
from wsss_contrast.data.batches import SameSizeBatches
from wsss_contrast.data.coco import COCODataset, coco_classes
from wsss_contrast.data.samplers import EpochSampler, EvalSampler
from wsss_contrast.data.shapes import SHAPES_CLASSES, ShapesDataset
from wsss_contrast.data.targets import LabelFolder, SaliencyFolder
from wsss_contrast.data.transforms import train_transform, weak_transform
from wsss_contrast.data.voc import MASK_FOLDERS, VOC_CLASSES, VOCDataset


class _TrainLoader(DataLoader[Sample]):
    """Tells Lightning that a run can go on within an epoch: an :class:`EpochSampler` asks the trainer for its place.

    Workers begin when the first batch is asked for. Lightning makes an iterator when it counts the steps, and restores
    the trainer's place after that.
    """

    def __iter__(self) -> Any:  # typed as torch's own iterator
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class WSSSDataModule(L.LightningDataModule, ABC):
    """The loaders of a weakly supervised run.

    - training: augmented crops with tags, shuffled by ``(seed, epoch)``, whole batches only;
    - validation: a list of two loaders with masks, native sizes. The first has images of the training set: the
      background threshold is chosen there. The second has the validation images: it is scored there;
    - prediction: one split without masks, native sizes. The photos named in ``predicted`` are left out.

    A subclass gives :meth:`dataset`. The datasets are made in ``setup``, so what is wrong with the data
    shows before training.

    Args:
        class_names: the K classes.
        train_split: the split to train on.
        val_split: the split to validate on.
        threshold_split: where the background threshold is chosen; by default ``train_split``.
        predict_split: the split to predict; by default ``val_split``.
        crop_size: side of a training crop, in pixels.
        resize_long: smallest and largest longest side of a training image before the crop, in pixels.
        batch_size: training images a batch, in each process.
        num_workers: worker processes of each loader.
        seed: seed of order and augmentation.
        eval_batch_size: most photos a batch in validation and prediction; only photos of one size share a batch.
        unlabeled_batch_size: images of the same split that join each training batch behind the others, with their
            tags, drawn apart and augmented weakly (:func:`~wsss_contrast.data.weak_transform`), for methods that learn
            them of a teacher. The batch then has ``labeled``, the number of the others. Take halves of one size: the
            shorter loader begins again within an epoch, with the same crops.
        labels: folder of label images ``NAME.png`` in the ids ``mask_ids``, as ``wsss-contrast predict`` writes them;
            the data set's own masks serve as well (``unused_ids`` are 255). Training batches then have ``labels``
            (N, H, W), see :class:`TaggedImageDataset`. Every training image must have one.
        saliency: folder of saliency maps ``NAME.png``, 255 for salient. Training batches then have ``saliency``
            (N, 1, H, W), likewise.
    """

    predicted: Collection[str] = ()
    """Names of photos that need no prediction any more; :class:`~wsss_contrast.callbacks.MaskWriter` tells them."""

    def __init__(
        self,
        class_names: list[str],
        train_split: str,
        val_split: str,
        threshold_split: str | None,
        predict_split: str | None,
        crop_size: int,
        resize_long: tuple[int, int],
        batch_size: int,
        num_workers: int,
        seed: int,
        eval_batch_size: int = 1,
        unlabeled_batch_size: int = 0,
        labels: str | None = None,
        saliency: str | None = None,
    ) -> None:
        super().__init__()
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        if eval_batch_size < 1:
            raise ValueError(f"eval_batch_size must be at least 1, got {eval_batch_size}")
        self.class_names = check_class_names(class_names)
        self.train_split = train_split
        self.val_split = val_split
        self.threshold_split = train_split if threshold_split is None else threshold_split
        self.predict_split = val_split if predict_split is None else predict_split
        self.crop_size = crop_size
        self.resize_long = resize_long
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.eval_batch_size = eval_batch_size
        if unlabeled_batch_size < 0:
            raise ValueError(f"unlabeled_batch_size must not be negative, got {unlabeled_batch_size}")
        for name, folder in (("labels", labels), ("saliency", saliency)):
            if folder is not None and unlabeled_batch_size:
                raise ValueError(f"{name} and unlabeled_batch_size do not go together")
        self.unlabeled_batch_size = unlabeled_batch_size
        self.labels = labels
        self.saliency = saliency

    @property
    def num_classes(self) -> int:
        """K, the number of foreground classes."""
        return len(self.class_names)

    @property
    def mask_ids(self) -> list[int]:
        """The ids of background and classes in the data set's own masks; predicted masks are written in them."""
        return list(range(self.num_classes + 1))

    @property
    def unused_ids(self) -> list[int]:
        """Further ids in ``labels`` that count as 255: of the data set's own masks, where ``labels`` is these."""
        return []

    @property
    def mask_options(self) -> dict[str, Any]:
        """What predicted masks depend on beside the names of the photos. Where these are, and options."""
        return {}

    @abstractmethod
    def dataset(self, split: str, transform: A.Compose | None = None, with_mask: bool = False) -> TaggedImageDataset:
        """Return the dataset of a split."""

    def setup(self, stage: str | None = None) -> None:
        if stage in ("fit", None):
            self.train_set = self.dataset(self.train_split, train_transform(self.crop_size, self.resize_long))
            self._add_targets()
            if self.unlabeled_batch_size:
                self.unlabeled_set = self.dataset(self.train_split, weak_transform(self.crop_size, self.resize_long))
        if stage in ("fit", "validate", None):
            self.threshold_set = self.dataset(self.threshold_split, with_mask=True)
            self.val_set = self.dataset(self.val_split, with_mask=True)
        if stage in ("predict", None):
            self.predict_set = self.dataset(self.predict_split)

    def _add_targets(self) -> None:
        """Give the training set its labels and saliency maps, if there are any."""
        if self.labels is None and self.saliency is None:
            return
        names = [self.train_set.image_name(index) for index in range(len(self.train_set))]
        if self.labels is not None:
            self.train_set.labels = LabelFolder(self.labels, self.mask_ids, names, self.unused_ids)
        if self.saliency is not None:
            self.train_set.saliency = SaliencyFolder(self.saliency, names)

    def train_dataloader(self) -> Any:
        labeled = self._train_loader(self.train_set, self.batch_size, self.seed)
        if self.unlabeled_batch_size == 0:
            return labeled
        unlabeled = self._train_loader(self.unlabeled_set, self.unlabeled_batch_size, self.seed + 1)
        return CombinedLoader({"labeled": labeled, "unlabeled": unlabeled}, mode="max_size_cycle")

    def _train_loader(self, dataset: TaggedImageDataset, batch_size: int, seed: int) -> DataLoader[Sample]:
        sampler = EpochSampler(dataset, **self._processes(), seed=seed)
        if len(sampler) < batch_size:
            raise DataError(
                f"split {self.train_split!r} has {len(sampler)} images a process, "
                f"fewer than one batch of {batch_size}; lower batch_size"
            )
        sampler.place = partial(self._place, batch_size, len(sampler) // batch_size)
        return self._loader(dataset, sampler, _TrainLoader, batch_size=batch_size, drop_last=True)

    def _place(self, batch_size: int, batches: int) -> tuple[int, int] | None:
        """The epoch that a training is in, and how many images of it a loader of so many batches has given."""
        if self.trainer is None or not self.trainer.training:
            return None
        loop: Any = self.trainer.fit_loop
        done = loop.epoch_loop.batch_progress.current.ready
        # The shorter of two loaders begins again within an epoch.
        return loop.epoch_progress.current.processed, done % batches * batch_size

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """One batch of the labelled and the unlabelled images."""
        if not isinstance(batch, dict) or batch.keys() != {"labeled", "unlabeled"}:
            return batch
        first, second = batch["labeled"], batch["unlabeled"]
        joined: Sample = {key: torch.cat([first[key], second[key]]) for key in ("image", "tags")}
        return joined | {"name": [*first["name"], *second["name"]], "labeled": len(first["name"])}

    @property
    def val_sets(self) -> dict[str, TaggedImageDataset]:
        """The scored sets, ``train``, to choose the background threshold on, and ``val``, or one of them."""
        return {"train": self.threshold_set, "val": self.val_set}

    def val_dataloader(self) -> list[DataLoader[Sample]]:
        return [self._eval_loader(dataset) for dataset in self.val_sets.values()]

    def predict_dataloader(self) -> DataLoader[Sample]:
        batches = SameSizeBatches(self.predict_set, self.eval_batch_size, self.predicted)
        if len(batches) == 0:  # all are predicted; a sampler would not share nothing
            return DataLoader(batches, batch_size=None)
        return self._loader(batches, EvalSampler(batches, share=True, **self._processes()), batch_size=None)

    def _eval_loader(self, dataset: TaggedImageDataset) -> DataLoader[Sample]:
        batches = SameSizeBatches(dataset, self.eval_batch_size)
        return self._loader(batches, EvalSampler(batches, **self._processes()), batch_size=None)

    def _loader(
        self,
        dataset: Dataset[Sample],
        sampler: EpochSampler | EvalSampler,
        kind: type[DataLoader[Sample]] = DataLoader,
        **kwargs: Any,
    ) -> DataLoader[Sample]:
        return kind(
            dataset,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_one_thread,
            **kwargs,
        )

    def _processes(self) -> dict[str, Any]:
        # The strategy knows which processes share their data; without a trainer, the samplers ask torch.
        trainer = self.trainer
        return {} if trainer is None else trainer.distributed_sampler_kwargs or {}


class VOCDataModule(WSSSDataModule):
    """Data module over a folder in VOC layout: see :class:`VOCDataset` and :class:`WSSSDataModule`.

    Args:
        root: the folder.
        train_split: list to train on.
        val_split: list to validate on.
        threshold_split: list on which the background threshold is chosen; by default ``train_split``.
        classes: the VOC classes to use; by default all 20.
        tags: tags file, relative to ``root``; or ``"xml"``; or ``"masks"``; or ``"none"``.
        crop_size: side of a training crop, in pixels.
        resize_long: smallest and largest longest side of a training image before the crop, in pixels.
        batch_size: training images a batch, in each process.
        num_workers: worker processes of each loader.
        seed: seed of order and augmentation.
        predict_split: list to predict; by default ``val_split``.
        eval_batch_size: most photos a batch in validation and prediction; only photos of one size share a batch.
        unlabeled_batch_size: see :class:`WSSSDataModule`.
        labels: folder of label images for training, see :class:`WSSSDataModule`.
        saliency: folder of saliency maps for training, see :class:`WSSSDataModule`.
        official: lists called ``train_aug``, ``train``, ``val``, ``trainval`` or ``test`` must have as many images as
            the field's.
    """

    def __init__(
        self,
        root: str,
        train_split: str = "train_aug",
        val_split: str = "val",
        threshold_split: str | None = None,
        classes: list[str] | None = None,
        tags: str = "tags.csv",
        crop_size: int = 448,
        resize_long: tuple[int, int] = (448, 768),
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        predict_split: str | None = None,
        eval_batch_size: int = 1,
        unlabeled_batch_size: int = 0,
        labels: str | None = None,
        saliency: str | None = None,
        official: bool = False,
    ) -> None:
        super().__init__(
            class_names=check_class_names(VOC_CLASSES if classes is None else classes, VOC_CLASSES),
            train_split=train_split,
            val_split=val_split,
            threshold_split=threshold_split,
            predict_split=predict_split,
            crop_size=crop_size,
            resize_long=resize_long,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            eval_batch_size=eval_batch_size,
            unlabeled_batch_size=unlabeled_batch_size,
            labels=labels,
            saliency=saliency,
        )
        self.root = Path(root)
        self.tags = tags
        self.official = official

    @property
    def mask_ids(self) -> list[int]:
        return [0, *(VOC_CLASSES.index(name) + 1 for name in self.class_names)]

    @property
    def unused_ids(self) -> list[int]:
        own = [(self.root / name).resolve() for name in MASK_FOLDERS]
        if self.labels is None or Path(self.labels).resolve() not in own:
            return []
        return sorted({*range(1, len(VOC_CLASSES) + 1)} - {*self.mask_ids})

    @property
    def mask_options(self) -> dict[str, Any]:
        return {"root": str(self.root.resolve()), "tags": self.tags}

    def dataset(self, split: str, transform: A.Compose | None = None, with_mask: bool = False) -> VOCDataset:
        return VOCDataset(self.root, split, self.class_names, self.tags, transform, with_mask, self.seed, self.official)


class COCODataModule(WSSSDataModule):
    """Data module over a folder in the layout of MS COCO 2014: see :class:`COCODataset` and :class:`WSSSDataModule`.

    Args:
        root: the folder.
        train_split: split to train on.
        val_split: split to validate on.
        threshold_split: split on which the background threshold is chosen; by default ``train_split``.
        classes: the classes to use; by default all 80.
        official: the splits must have as many images as COCO's, and the 80 categories.
        crop_size: side of a training crop, in pixels.
        resize_long: smallest and largest longest side of a training image before the crop, in pixels.
        batch_size: training images a batch, in each process.
        num_workers: worker processes of each loader.
        seed: seed of order and augmentation.
        predict_split: split to predict; by default ``val_split``.
        eval_batch_size: most photos a batch in validation and prediction; only photos of one size share a batch.
        unlabeled_batch_size: see :class:`WSSSDataModule`.
        labels: folder of label images for training, see :class:`WSSSDataModule`.
        saliency: folder of saliency maps for training, see :class:`WSSSDataModule`.
    """

    def __init__(
        self,
        root: str,
        train_split: str = "train2014",
        val_split: str = "val2014",
        threshold_split: str | None = None,
        classes: list[str] | None = None,
        official: bool = False,
        crop_size: int = 448,
        resize_long: tuple[int, int] = (448, 768),
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        predict_split: str | None = None,
        eval_batch_size: int = 1,
        unlabeled_batch_size: int = 0,
        labels: str | None = None,
        saliency: str | None = None,
    ) -> None:
        super().__init__(
            class_names=coco_classes(Path(root), train_split) if classes is None else classes,
            train_split=train_split,
            val_split=val_split,
            threshold_split=threshold_split,
            predict_split=predict_split,
            crop_size=crop_size,
            resize_long=resize_long,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            eval_batch_size=eval_batch_size,
            unlabeled_batch_size=unlabeled_batch_size,
            labels=labels,
            saliency=saliency,
        )
        self.root = Path(root)
        self.official = official

    @property
    def mask_options(self) -> dict[str, Any]:
        return {"root": str(self.root.resolve())}

    def dataset(self, split: str, transform: A.Compose | None = None, with_mask: bool = False) -> COCODataset:
        return COCODataset(self.root, split, self.class_names, transform, with_mask, self.seed, self.official)


class ShapesDataModule(WSSSDataModule):
    """Data module over the drawn example set: see :class:`ShapesDataset` and :class:`WSSSDataModule`.

    Args:
        train_length: number of training images.
        val_length: number of validation images.
        size: side of the drawn images, in pixels.
        crop_size: side of a training crop, in pixels.
        resize_long: smallest and largest side of a training image before the crop, in pixels.
        batch_size: training images a batch, in each process.
        num_workers: worker processes of each loader.
        seed: seed of drawings, order and augmentation.
        eval_batch_size: most pictures a batch in validation and prediction.
        unlabeled_batch_size: see :class:`WSSSDataModule`.
        labels: folder of label images for training, see :class:`WSSSDataModule`.
        predict_split: ``"train"`` or ``"val"``; by default ``val``.
    """

    def __init__(
        self,
        train_length: int = 512,
        val_length: int = 128,
        size: int = 128,
        crop_size: int = 128,
        resize_long: tuple[int, int] = (112, 160),
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        eval_batch_size: int = 1,
        unlabeled_batch_size: int = 0,
        labels: str | None = None,
        predict_split: str | None = None,
    ) -> None:
        super().__init__(
            class_names=list(SHAPES_CLASSES),
            train_split="train",
            val_split="val",
            threshold_split=None,
            predict_split=predict_split,
            crop_size=crop_size,
            resize_long=resize_long,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            eval_batch_size=eval_batch_size,
            unlabeled_batch_size=unlabeled_batch_size,
            labels=labels,
        )
        self.lengths = {"train": train_length, "val": val_length}
        self.size = size

    @property
    def mask_options(self) -> dict[str, Any]:
        return {"size": self.size, "seed": self.seed}

    def dataset(self, split: str, transform: A.Compose | None = None, with_mask: bool = False) -> ShapesDataset:
        return ShapesDataset(split, self.size, self.lengths[split], self.seed, transform, with_mask)


def _one_thread(worker: int) -> None:
    """Keep OpenCV from starting a thread a core in every worker; the workers are the parallelism."""
    cv2.setNumThreads(0)
