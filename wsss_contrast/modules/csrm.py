"""CSRM: cross-supervision and the contrast of unreliable pixels (VISAPP 2025)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wsss_contrast.data import ClassMix, as_photos
from wsss_contrast.functional import NO_LABEL, best_class, mask_by_tags, max_normalize, resize
from wsss_contrast.losses import CSRMLoss, CSRMMaps
from wsss_contrast.nn import DeepLabV3PlusHeads, EMATeacher
from wsss_contrast.refine import DenseCRF, pseudo_labels, refiner
from wsss_contrast.training import progress, refuse_sharding, step_generator

from .cam import CAM
from .start import Start


class CSRMNetwork(nn.Module):
    """A backbone, a classifier of its last map, and CSRM's heads.

    From images (N, 3, H, W) to :class:`~wsss_contrast.losses.CSRMMaps`.
    """

    def __init__(self, backbone: nn.Module, classifier: nn.Module, segmenter: DeepLabV3PlusHeads) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.segmenter = segmenter

    def forward(self, images: Tensor) -> CSRMMaps:
        features, (low,) = self.backbone(images)
        segmentation, embeddings = self.segmenter(low, features)
        return CSRMMaps(self.classifier(features), segmentation, embeddings)

    def labels(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What labels are made of: activation maps and segmentation, without the representation."""
        features, (low,) = self.backbone(images)
        return self.classifier(features), self.segmenter.segmentation(low, features)

    def cams(self, images: Tensor) -> Tensor:
        """The activation maps alone, without the heads, which take most of the time."""
        features, _ = self.backbone(images)
        maps: Tensor = self.classifier(features)
        return maps


class CSRM(CAM):
    """CSRM over any timm backbone with an output stride: a classifier and a segmenter that supervise each other.

    The losses and their schedules are :class:`~wsss_contrast.losses.CSRMLoss`'s. A teacher
    (:class:`~wsss_contrast.nn.EMATeacher`) gives maps of the images as they are; their pseudo-labels supervise the
    segmentation, the teacher's segmentation supervises the activation maps and, mixed by ClassMix, the segmentation of
    the unlabelled half of the batch. Seeds are the teacher's activation maps, for which validation chooses a
    threshold. Arguments, batches and validation are those of :class:`~wsss_contrast.modules.CAM`.

    A training batch has its labelled images first, as many as ``labeled`` says or else half of them. Data modules make
    such batches with ``unlabeled_batch_size``: both halves are of tagged images, the second is augmented weakly.

    Logged: each term with its weight, ``train/classification``, ``train/segmentation``, ``train/seg_to_cam``,
    ``train/weak_to_strong`` and ``train/contrast``; ``train/labeled_pixels``, the share of pixels with a label;
    ``train/loss``.

    Args:
        num_classes: K, foreground classes.
        start: checkpoint of another module of this library (:class:`~wsss_contrast.modules.PuzzleCAM`), whose backbone
            and classifier are the start. The classifier then learns at the backbone's rate.
        compat: ``"paper"`` or ``"official"``, see :data:`~wsss_contrast.losses.CSRM_PRESETS`. Paper: soft
            pseudo-labels, a foreground threshold of 0.35, a coin for each image's mixing. Official: hard ones, 0.30, a
            coin a batch.
        embedding_dim: D, width of the representation.
        background_threshold: delta_bg: a pixel where no class reaches it is background.
        foreground_threshold: delta_fg: a pixel where a class exceeds it is of that class. By default the preset's.
        soft_labels: whether the segmentation learns distributions or classes. By default the preset's.
        normalize_first: whether maps are divided by their maximum before they are resized to the image, or after. By
            default the preset's: paper after, official before.
        train_refine: refines the pseudo-labels in training: ``"none"``, ``"par"`` or ``"crf"``, see
            :func:`~wsss_contrast.refine.refiner`. For soft labels a CRF takes the scores as they are (soft unaries) and
            leaves few pixels without a label.
        mix_probability: of ClassMix.
        mix_per_image: whether each image has a coin of its own, or the batch has one. By default the preset's.
        decay: of the teacher.
        norm: of the heads, ``"group"`` or ``"batch"``.
        max_grad_norm: where the trainer has no ``gradient_clip_val``, gradients are scaled to this norm if theirs is
            larger; ``None`` leaves them. The released code's value. Without it the heads, which start from scratch,
            lead the backbone astray.
        loss: options of :class:`~wsss_contrast.losses.CSRMLoss`, plain values: they are kept in checkpoints.
        kwargs: see :class:`~wsss_contrast.modules.CAM`; there is no dropout before the classifier.

    Raises:
        ValueError: thresholds out of order; a module among the options of ``loss``. Where a training begins: ``start``
            is missing, no checkpoint, or of another network, of which a warning tells before.
        DataError: where a training begins: ``start`` is of other classes.
    """

    low_strides = (4,)
    normalize = "max"

    def __init__(
        self,
        num_classes: int,
        start: str | None = None,
        compat: Literal["paper", "official"] = "paper",
        embedding_dim: int = 256,
        background_threshold: float = 0.05,
        foreground_threshold: float | None = None,
        soft_labels: bool | None = None,
        normalize_first: bool | None = None,
        train_refine: str = "par",
        mix_probability: float = 0.5,
        mix_per_image: bool | None = None,
        decay: float = 0.99,
        norm: Literal["group", "batch"] = "group",
        max_grad_norm: float | None = 1.0,
        loss: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, dropout=0.0, **kwargs)
        self.save_hyperparameters()
        self.hparams.pop("dropout", None)  # the base's argument, not this one's: it could not be loaded
        modules = [name for name, value in (loss or {}).items() if isinstance(value, nn.Module)]
        if modules:
            raise ValueError(f"`loss` must have plain values, {', '.join(modules)} is a module; give its options")
        if max_grad_norm is not None and max_grad_norm <= 0:
            raise ValueError(f"`max_grad_norm` must be positive or None, got {max_grad_norm}")
        self.max_grad_norm = max_grad_norm
        official = compat == "official"

        def chosen(value: Any, paper: Any, released: Any) -> Any:
            return (released if official else paper) if value is None else value

        self.delta = (background_threshold, chosen(foreground_threshold, 0.35, 0.30))
        if not 0 <= self.delta[0] <= self.delta[1] < 1:
            raise ValueError(f"thresholds must be 0 <= background <= foreground < 1, got {self.delta}")
        self.soft_labels = chosen(soft_labels, True, False)
        self.normalize_first = chosen(normalize_first, False, True)
        self.label_refiner = refiner(train_refine)
        if self.soft_labels and isinstance(self.label_refiner, DenseCRF):
            self.label_refiner.settings = replace(self.label_refiner.settings, confidence=None)
        self.mix = ClassMix(probability=mix_probability, per_image=chosen(mix_per_image, True, False))
        self.segmenter = DeepLabV3PlusHeads(
            self.backbone.out_channels, self.backbone.low_channels[0], num_classes + 1, embedding_dim, norm
        )
        self.start = Start("start", start, self, {"backbone": self.backbone, "classifier": self.classifier})
        self.losses = CSRMLoss(num_classes + 1, embedding_dim, compat, **(loss or {}))
        self.teacher = EMATeacher(self.network, decay)

    @property
    def network(self) -> CSRMNetwork:
        """The student's parts in one module."""
        return CSRMNetwork(self.backbone, self.classifier, self.segmenter)

    @property
    def heads(self) -> list[nn.Module]:
        return [self.classifier, self.segmenter] if self.start.path is None else [self.segmenter]

    @property
    def regularizer_taps(self) -> dict[str, Any]:
        return super().regularizer_taps | {"features": ("backbone", 0)}

    @torch.no_grad()
    def raw_maps(self, images: Tensor) -> Tensor:
        return self._taught.cams(images)

    @property
    def _taught(self) -> CSRMNetwork:
        network = self.teacher.network
        assert isinstance(network, CSRMNetwork)
        return network

    @torch.no_grad()
    def labels_of(self, images: Tensor, cams: Tensor, tags: Tensor) -> tuple[Tensor, Tensor | None]:
        """Pseudo-labels (N, H, W) of raw activation maps, 255 for none, and soft ones (N, C, H, W) if asked for."""
        size = (images.shape[-2], images.shape[-1])
        present = mask_by_tags(cams, tags)
        # The paper's Eq. 2 resizes first; its released code divides by the maximum of the small map.
        maps = resize(max_normalize(present) if self.normalize_first else present, size)
        maps = maps if self.normalize_first else max_normalize(maps)
        labels = pseudo_labels(
            as_photos(images), maps, tags, *self.delta, refine=self.label_refiner, soft=self.soft_labels
        )
        if not self.soft_labels:
            return labels, None
        return best_class(labels).masked_fill(labels.sum(dim=1) == 0, NO_LABEL), labels

    def training_step(self, batch: dict[str, Any]) -> Tensor:
        images, tags = batch["image"], batch["tags"]
        labeled = int(batch.get("labeled", len(images) // 2))
        with torch.no_grad():
            self.teacher.eval()
            cams, segmentation = self._taught.labels(images)
            logits = resize(segmentation, (images.shape[-2], images.shape[-1]))
            labels, soft = self.labels_of(images, cams, tags)
            mix = self.mix.draw(labels, logits.shape[1], self._draws(1, images.device))
            mixed = self.mix(images, tags, labels, logits, mix=mix)
            batch.update(image=mixed.images, tags=mixed.tags)  # what regularizer callbacks read after the step
            soft = None if soft is None else mix.paste(soft, labels)
            teacher = self.teacher.train()(mixed.images)
        terms = self.losses(
            self.network(mixed.images),
            teacher,
            mixed.logits,
            mixed.labels,
            mixed.tags,
            labeled,
            self.progress,
            original_tags=tags,
            soft_labels=soft,
            generator=self._draws(0, images.device),
        )
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()})
        has_label = mixed.labels[:labeled] <= self.losses.num_foreground
        self.log("train/labeled_pixels", has_label.float().sum() / max(has_label.numel(), 1))
        loss = sum(terms.values())
        assert isinstance(loss, Tensor)
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def _draws(self, use: int, device: torch.device) -> torch.Generator | None:
        return step_generator(self.trainer, self.seed + use, device) if self._trainer else None

    @property
    def progress(self) -> float:
        """The share of the training that is done; 0 without a trainer."""
        return 0.0 if self._trainer is None else progress(self.trainer)

    def setup(self, stage: str) -> None:
        refuse_sharding(self.trainer, type(self).__name__, "a teacher needs whole weights")

    def teardown(self, stage: str) -> None:
        if isinstance(self.label_refiner, DenseCRF):
            self.label_refiner.close()

    def on_train_start(self) -> None:
        self.start.check()
        self._check_classes(self.start.about)
        # The released code's epochs 0 and 1 of 15: the teacher is a copy; its ramp begins with the second.
        if self.global_step == 0:
            self.teacher.ramp_start, self.teacher.copy_steps = 0, 1
            self.teacher.update(self.network, 1)
        warmup = self.losses.schedule.warmup * float(self.trainer.estimated_stepping_batches)
        self.teacher.ramp_start, self.teacher.copy_steps = round(warmup), round(2 * warmup)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        limit = self.max_grad_norm if gradient_clip_val is None else gradient_clip_val
        self.clip_gradients(optimizer, limit, gradient_clip_algorithm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # Not in a hook of the batch's end: callbacks come before it there, and one may write a checkpoint.
        self.teacher.update(self.network, self.global_step + 1)
