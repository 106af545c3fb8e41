"""A classifier whose activation maps are seeds, and what every such module shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wsss_contrast.data import as_photos
from wsss_contrast.functional import global_average_pool, split_background
from wsss_contrast.losses import MultilabelSoftMargin
from wsss_contrast.metrics import THRESHOLDS, SeedCurve, SeedMIoU
from wsss_contrast.nn import TimmBackbone
from wsss_contrast.refine import multi_scale_cams, pseudo_labels

from .base import WSSSModule, naming_photos


class CAM(WSSSModule):
    """Class activation maps of a classifier trained from tags, over any timm backbone.

    Batches are dicts: ``image`` (N, 3, H, W) normalised by ImageNet's mean and standard deviation, ``tags`` (N, K)
    multi-hot, and for evaluation ``mask`` (N, H, W) with ids 0 to K and 255. A batch to predict may have no ``tags``:
    then the classes are those whose probability, the sigmoid of the raw map's mean over the photo at scale 1, exceeds
    ``tag_threshold``. A photo with none of them is all background.

    Validation takes one or two loaders. With two, the first is of training photos and the second of the split to
    score: the background threshold is chosen on the first and applied to the second; it is kept in
    ``background_threshold`` and in checkpoints. Logged: ``train/miou`` and ``val/miou`` at that threshold,
    ``val/miou_oracle`` at the threshold that is best on the scored split itself, and both thresholds, ``threshold``
    and ``threshold_oracle``. With one loader, it is the split to score at the threshold kept; unless the data module
    says by ``val_sets`` that it is of training photos (``train``): then the threshold is chosen there, ``train/miou``
    is logged, and nothing is said of ``val``. Without validation, the threshold stays at 0.2.

    A checkpoint has the data module's ``class_names``. It is not loaded where the data module names others.

    Args:
        num_classes: K, foreground classes.
        backbone: a timm model, see :class:`~wsss_contrast.nn.TimmBackbone`.
        weights: its weights: ``"timm"``, ``"offline"``, ``None`` or a path.
        output_stride: stride of the maps; ``None`` keeps the network's own.
        frozen_norm: batch norm of the backbone is constant.
        dropout: share of channels that are dropped before the classifier, in [0, 1).
        lr: rate of the backbone's weights; biases get twice, heads ten times that. The papers' 0.01 goes with a
            momentum of almost 0.
        momentum: of SGD.
        weight_decay: of weights; biases have none.
        scales: of multi-scale inference.
        flip: mirror the photo as well.
        tag_threshold: probability above which a class counts as present in a photo without tags, in [0, 1).
    """

    threshold_index: Tensor

    make_labels: Callable[..., Tensor] | None = None
    """Makes labels in the place of masks, 255 where the maps are not sure. It takes the arguments of
    :func:`~wsss_contrast.refine.irn_labels`, ``refine`` among them."""

    background: Literal[-1] | None = None
    """The channel of the background in the classifier's maps, the last (-1) or none."""

    normalize: Literal["min-max", "max"] = "min-max"
    """How seeds are normalised, see :func:`~wsss_contrast.refine.merge_scales`."""

    threshold: float | None = None
    """The background threshold of masks in the place of the one that validation has chosen, which is for bare seeds."""

    low_strides: Sequence[int] | None = None
    """Strides of the lower maps that a module of this kind needs; those before the last map by default."""

    def __init__(
        self,
        num_classes: int,
        backbone: str = "tf_efficientnet_lite0",
        weights: str | None = "timm",
        output_stride: int | None = 16,
        frozen_norm: bool = True,
        dropout: float = 0.5,
        lr: float = 0.002,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        scales: Sequence[float] = (0.5, 1.0, 1.5, 2.0),
        flip: bool = True,
        tag_threshold: float = 0.5,
    ) -> None:
        super().__init__(lr, momentum, weight_decay)
        self.save_hyperparameters()
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {dropout}")
        if not scales or min(scales) <= 0:
            raise ValueError(f"`scales` must be positive and not empty, got {tuple(scales)}")
        if not 0 <= tag_threshold < 1:
            raise ValueError(f"`tag_threshold` must be in [0, 1), got {tag_threshold}")
        self.scales = tuple(scales)
        self.flip = flip
        self.tag_threshold = tag_threshold
        self.backbone = TimmBackbone(backbone, weights, output_stride, frozen_norm, self.low_strides)
        self.dropout = nn.Dropout2d(dropout)
        channels = num_classes + (self.background is not None)
        self.classifier = nn.Conv2d(self.backbone.out_channels, channels, kernel_size=1, bias=False)
        nn.init.xavier_uniform_(self.classifier.weight)
        self.classification = MultilabelSoftMargin()
        self.first_metric = SeedMIoU(num_classes)
        self.second_metric = SeedMIoU(num_classes)
        self.seed_curves: dict[str, SeedCurve] = {}
        """The scores at each threshold, of the last validation's splits (``train``, ``val``)."""
        # The place of the threshold in the sweep: a whole number stays exact in half precision.
        self.register_buffer("threshold_index", torch.tensor(THRESHOLDS.index(0.2)))

    @property
    def background_threshold(self) -> float:
        """The score that a class must exceed at a pixel; 0.2 until validation has chosen one."""
        return THRESHOLDS[int(self.threshold_index)]

    @property
    def seed_metrics(self) -> tuple[SeedMIoU, SeedMIoU]:
        """The metrics of the validation loaders, in their order."""
        return self.first_metric, self.second_metric

    @property
    def heads(self) -> list[nn.Module]:
        return [self.classifier]

    @property
    def regularizer_taps(self) -> dict[str, Any]:
        """Where a regularizer callback finds features and maps, if it is told nothing else."""
        return {
            "features": "dropout",
            "cams": "classifier",
            "background": self.background,
            "in_channels": self.backbone.out_channels,
        }

    def forward(self, images: Tensor) -> Tensor:
        """Raw activation maps (N, K, h, w) of images (N, 3, H, W); with a background (N, 1 + K, h, w)."""
        features, _ = self.backbone(images)
        cams: Tensor = self.classifier(self.dropout(features))
        return cams

    def raw_maps(self, images: Tensor) -> Tensor:
        """The maps (N, K, h, w) that tell the classes of photos without tags, and that seeds are made of."""
        return split_background(self(images), self.background)

    def seed_maps(self, images: Tensor) -> Tensor:
        """The non-negative foreground maps (N, K, h, w) that seeds are made of."""
        return self.raw_maps(images).relu()

    def seeds(self, images: Tensor, tags: Tensor) -> Tensor:
        """Normalised multi-scale maps (N, K, H, W), see :func:`~wsss_contrast.refine.multi_scale_cams`."""
        maps: Tensor = multi_scale_cams(self.seed_maps, images, tags, self.scales, self.flip, self.normalize)
        return maps

    def masks(self, images: Tensor, seeds: Tensor, tags: Tensor, names: Sequence[str] | None = None) -> Tensor:
        """Class ids (N, H, W) of seeds at the background threshold, refined by ``refine`` if there is one.

        Where the module has ``make_labels``, what that gives instead. ``names`` are those of the photos, for a refiner
        that wants them.
        """
        photos = as_photos(images) if self.refine is not None else images
        if self.make_labels is not None:
            made: Tensor = self.make_labels(photos, seeds, tags, refine=self.refine, names=names)
            return made
        threshold = self.background_threshold if self.threshold is None else self.threshold
        return pseudo_labels(photos, seeds, tags, threshold, refine=self.refine, names=names)

    @torch.no_grad()
    def predicted_tags(self, images: Tensor) -> Tensor:
        """(N, K), 1 for each class whose probability exceeds ``tag_threshold``, of images (N, 3, H, W)."""
        logits = global_average_pool(self.raw_maps(images))  # what the classification loss is taken of
        return (logits.sigmoid() > self.tag_threshold).to(images.dtype)

    def training_step(self, batch: dict[str, Any]) -> Tensor:
        loss: Tensor = self.classification(self(batch["image"]), batch["tags"])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def on_validation_start(self) -> None:
        loaders = len(self.trainer.num_val_batches)
        if loaders > len(self.seed_metrics):
            raise ValueError(f"validation takes one or two loaders, got {loaders}")

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.seed_metrics[dataloader_idx].update(self.seeds(batch["image"], batch["tags"]), batch["mask"])

    def on_validation_epoch_end(self) -> None:
        curves = [metric.compute() for metric in self.seed_metrics[: len(self.trainer.num_val_batches)]]
        for metric in self.seed_metrics:
            metric.reset()
        if curves and not self.trainer.sanity_checking:
            self.seed_curves = dict(zip(self._scored(len(curves)), curves, strict=True))
            self.log_dict(self._scores(self.seed_curves), prog_bar=True, sync_dist=True)

    def _scores(self, curves: dict[str, SeedCurve]) -> dict[str, float]:
        scores = {}
        if "train" in curves:
            chosen_on = curves["train"]
            self.threshold_index.fill_(chosen_on.best)
            scores["train/miou"] = float(chosen_on.miou[chosen_on.best])
        if "val" in curves:
            scored = curves["val"]
            scores["val/miou"] = float(scored.miou[self.threshold_index])
            scores["val/miou_oracle"] = float(scored.miou[scored.best])
            scores["threshold_oracle"] = THRESHOLDS[scored.best]
        return scores | {"threshold": self.background_threshold}

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Names and masks (N, H, W) of a batch, of the size of its images; seeds and tags too if ``keep_seeds``.

        Raises:
            ValueError: NaN in the seeds of a photo.
            WorkerError: a photo ended its process, see :class:`~wsss_contrast.refine.DenseCRF`.
        """
        images = batch["image"]
        tags = batch["tags"] if "tags" in batch else self.predicted_tags(images)
        seeds = self.seeds(images, tags)
        broken = [name for name, of_photo in zip(batch["name"], seeds, strict=True) if bool(of_photo.isnan().any())]
        if broken:
            raise ValueError(f"the maps of {', '.join(broken)} have NaN: are the network's weights finite?")
        make = partial(naming_photos, batch["name"], partial(self.masks, images, seeds, tags, batch["name"]))
        prediction = {"name": batch["name"], "mask": make if self.masks_later else make()}
        return prediction | ({"seeds": seeds, "tags": tags} if self.keep_seeds else {})
