"""The segmenter that is trained on pseudo-masks: the field's verification step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from wsss_contrast import distributed
from wsss_contrast.data import DataError, as_photos
from wsss_contrast.functional import NO_LABEL, best_class, resize, segmentation_nll
from wsss_contrast.metrics import segmentation_scores
from wsss_contrast.nn import DeepLab, DeepLabV3Plus, LargeFOVHead, SummedASPPHead, TimmBackbone
from wsss_contrast.refine import multi_scale_logits

from .base import WSSSModule, naming_photos

HEADS: dict[str, Callable[[int, int], nn.Module]] = {"deeplabv1": LargeFOVHead, "deeplabv2": SummedASPPHead}


class Segmenter(WSSSModule):
    """DeepLab trained on masks that another module has predicted. It needs no tags, in training or afterwards.

    Batches are dicts: ``image`` (N, 3, H, W) normalised by ImageNet's mean and standard deviation, and in training
    ``labels`` (N, H, W), ids 0 to K and 255 for none, as data modules with a folder ``labels`` give them (a folder that
    ``wsss-contrast predict`` has written). The loss is cross-entropy, the mean over the labelled pixels of the joined
    batch; a batch without any costs nothing.

    Validation takes one or two loaders with ``mask``, as those of :class:`~wsss_contrast.modules.CAM`. Logged:
    ``train/miou`` and ``val/miou``; ``train/loss``.

    Args:
        num_classes: K, foreground classes.
        architecture: ``"deeplabv1"`` (LargeFOV), ``"deeplabv2"`` (ASPP, a sum of four dilated convolutions) or
            ``"deeplabv3plus"`` (of segmentation-models-pytorch, extra ``segmenter``).
        backbone: a timm model, see :class:`~wsss_contrast.nn.TimmBackbone`; for DeepLabV3+ a CNN.
        weights: of it: ``"timm"``, ``"offline"``, ``None`` or a path.
        output_stride: 8 or 16; ``None`` keeps the network's own.
        frozen_norm: the backbone's batch norm uses its running statistics and does not learn.
        loss_scales: factors of the crop whose logits are each compared with the labels; with more than one, so is the
            largest logit of all. DeepLabV2 has 0.5, 0.75 and 1.
        label_smoothing: in [0, 1), see :func:`~wsss_contrast.functional.segmentation_nll`; 0.1 with CSRM on VOC.
        lr: rate of the backbone's weights; biases get twice, the head ten times that.
        momentum: of SGD.
        weight_decay: of weights; biases have none.
        scales: of the photo in validation and prediction; logits are averaged.
        flip: add the mirrored photo at each scale.

    Raises:
        ValueError: an unknown architecture, scales that are not positive, a smoothing out of range, a backbone that
            can't serve.
        ImportError: DeepLabV3+ without the extra ``segmenter``.
    """

    def __init__(
        self,
        num_classes: int,
        architecture: Literal["deeplabv1", "deeplabv2", "deeplabv3plus"] = "deeplabv2",
        backbone: str = "tf_efficientnet_lite0",
        weights: str | None = "timm",
        output_stride: int | None = 16,
        frozen_norm: bool = True,
        loss_scales: Sequence[float] = (1.0,),
        label_smoothing: float = 0.0,
        lr: float = 0.001,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
    ) -> None:
        super().__init__(lr, momentum, weight_decay)
        self.save_hyperparameters()
        for name, values in (("loss_scales", loss_scales), ("scales", scales)):
            if not values or min(values) <= 0:
                raise ValueError(f"`{name}` must be positive and not empty, got {tuple(values)}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"`label_smoothing` must be in [0, 1), got {label_smoothing}")
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.loss_scales, self.scales, self.flip = tuple(loss_scales), tuple(scales), flip
        if architecture == "deeplabv3plus":
            self.network: DeepLab | DeepLabV3Plus = DeepLabV3Plus(
                backbone, weights, num_classes + 1, output_stride or 16, frozen_norm
            )
        elif architecture in HEADS:
            features = TimmBackbone(backbone, weights, output_stride, frozen_norm)
            self.network = DeepLab(features, HEADS[architecture](features.out_channels, num_classes + 1))
        else:
            known = ", ".join([*HEADS, "deeplabv3plus"])
            raise ValueError(f"unknown architecture {architecture!r}; there are {known}")
        self.metrics = nn.ModuleList(
            MulticlassConfusionMatrix(num_classes + 1, ignore_index=NO_LABEL) for _ in range(2)
        )

    @property
    def heads(self) -> list[nn.Module]:
        return [self.network.head]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 1 + K, h, w) of images (N, 3, H, W), the background first."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: dict[str, Any]) -> Tensor:
        if "labels" not in batch:
            raise DataError(
                "Segmenter learns from masks, and the batch has no `labels`: give the data module a folder `labels`, "
                "as `wsss-contrast predict` writes it"
            )
        images, labels = batch["image"], batch["labels"]
        size = (images.shape[-2], images.shape[-1])
        of_scales = []
        for scale in self.loss_scales:
            scaled = resize(images, (max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)))
            of_scales.append(resize(self(scaled), size))
        if len(of_scales) > 1:
            of_scales.append(torch.stack(of_scales).amax(dim=0))
        counted = (labels != NO_LABEL).sum()
        sums = [segmentation_nll(of, labels, self.label_smoothing).sum() for of in of_scales]
        losses = [distributed.joined_mean(of_all, counted) for of_all in sums]
        loss = torch.stack(losses).sum()
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def logits(self, images: Tensor) -> Tensor:
        """Logits (N, 1 + K, H, W) at the image's size, the mean over ``scales`` and mirror images."""
        logits: Tensor = multi_scale_logits(self, images, self.scales, self.flip)
        return logits

    def on_validation_start(self) -> None:
        loaders = len(self.trainer.num_val_batches)
        if loaders > len(self.metrics):
            raise ValueError(f"validation takes one or two loaders, got {loaders}")

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        metric = self.metrics[dataloader_idx]
        assert isinstance(metric, MulticlassConfusionMatrix)
        metric.update(best_class(self.logits(batch["image"])), batch["mask"])

    def on_validation_epoch_end(self) -> None:
        scores = {}
        for name, metric in zip(self._scored(len(self.trainer.num_val_batches)), self.metrics, strict=False):
            assert isinstance(metric, MulticlassConfusionMatrix)
            scores[f"{name}/miou"] = segmentation_scores(metric.compute()).miou
            metric.reset()
        if not self.trainer.sanity_checking:
            self.log_dict(scores, prog_bar=True, sync_dist=True)

    def masks(self, images: Tensor, probabilities: Tensor, names: Sequence[str] | None = None) -> Tensor:
        """Class ids (N, H, W) of probabilities (N, 1 + K, H, W), refined by ``refine`` if there is one."""
        if self.refine is not None:
            present = torch.ones(probabilities.shape[:2], dtype=torch.bool, device=probabilities.device)
            more = {"names": list(names or ())} if getattr(self.refine, "wants_names", False) else {}
            probabilities = self.refine(as_photos(images), probabilities, present, **more)
        return best_class(probabilities)

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Names and masks (N, H, W) of a batch, of the size of its images.

        With ``keep_seeds`` the probabilities of the classes as well, as ``seeds``; all classes are then ``tags``.

        Raises:
            ValueError: NaN in the logits of a photo.
        """
        images = batch["image"]
        probabilities = self.logits(images).softmax(dim=1)
        broken = [name for name, of in zip(batch["name"], probabilities, strict=True) if bool(of.isnan().any())]
        if broken:
            raise ValueError(f"the logits of {', '.join(broken)} have NaN: are the network's weights finite?")
        make = partial(naming_photos, batch["name"], partial(self.masks, images, probabilities, batch["name"]))
        prediction = {"name": batch["name"], "mask": make if self.masks_later else make()}
        if not self.keep_seeds:
            return prediction
        seeds = probabilities[:, 1:]
        return prediction | {"seeds": seeds, "tags": seeds.new_ones(seeds.shape[:2])}
