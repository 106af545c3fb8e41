"""The total loss of CSRM, its schedules and its two presets."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from wsss_contrast import functional
from wsss_contrast._checks import (
    check_choice,
    check_maps,
    check_numbers,
    check_same_channels,
    check_tags,
    check_whole,
    shape_of,
)
from wsss_contrast.nn.memory_bank import ClassMemoryBank

from .activation_consistency import ActivationConsistency
from .csrm_schedule import CSRMSchedule
from .multilabel_soft_margin import MultilabelSoftMargin
from .reliable_segmentation import ReliableSegmentation
from .unreliable_contrast import ContrastDraws, UnreliablePixelContrast
from .weak_to_strong import WeakToStrong

TERMS = ("classification", "segmentation", "seg_to_cam", "weak_to_strong", "contrast")

CSRM_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "label_smoothing": 0.0,
        "per_image": True,
        "scheduled": "confidence",
        "mask_by_tags": False,
        "normalizer": "kept",
        "mixed_tags": True,
        "contrast": {},
    },
    "official": {
        "label_smoothing": 0.1,
        "per_image": False,
        "scheduled": "weight",
        "mask_by_tags": True,
        "normalizer": "all",
        "mixed_tags": False,
        "contrast": {
            "queries": 256,
            "negatives": 50,
            "high_rank_included": True,
            "negative_confidence": 1.0,
            "own_class": True,
            "class_mean": "present",
        },
    },
}


class CSRMMaps(NamedTuple):
    """What a network gives.

    Attributes:
        cams: (N, K, f, f) raw activation maps.
        segmentation: (N, C, h, w) logits, the background first.
        embeddings: (N, D, h, w).
    """

    cams: Tensor
    segmentation: Tensor
    embeddings: Tensor


class CSRMLoss(nn.Module):
    """The five losses of CSRM (VISAPP 2025) and their weighted sum, Eq. 14.

    A batch is of labelled images and then of unlabelled ones, both with tags. The labels of the former come from
    activation maps, those of the latter from the teacher.

    Distributed contract: the mean over ranks of each term is its value on the joined batch. For the classification
    every rank must have as many images. The contrast has the joined images in rank order: its memory is filled, and its
    queries are numbered, in another order than those of a batch with all labelled images first.

    Args:
        num_classes: C, with the background.
        embedding_dim: D.
        compat: ``"paper"`` or ``"official"``: which of :data:`~wsss_contrast.losses.CSRM_PRESETS` holds for the
            arguments that are ``None``.
        warmup: see :class:`CSRMSchedule`.
        unreliable: see :class:`CSRMSchedule`.
        label_smoothing: of the classification, segmentation and seg-to-cam terms. Paper: 0; official: 0.1 (VOC).
        per_image: see :class:`ReliableSegmentation`. Paper: yes.
        scheduled: see :class:`CSRMSchedule`. Paper: ``"confidence"``; official: ``"weight"``.
        mask_by_tags: whether the teacher's labels are of tagged classes only. Paper: no.
        normalizer: see :class:`WeakToStrong`. Paper: ``"kept"``.
        mixed_tags: whether the contrast sees the tags of the mixed images or those of the images before. Paper: mixed.
        contrast: options of :class:`UnreliablePixelContrast`, over those of the preset.
        bank: its memory, or the options of one: ``{"capacity": 10_000, "dtype": "float16"}``.
        weights: w of Eq. 14 by term, over the schedule's weights; 1 for a term that is not given.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int = 256,
        compat: Literal["paper", "official"] = "paper",
        warmup: float = 1 / 15,
        unreliable: float = 0.2,
        label_smoothing: float | None = None,
        per_image: bool | None = None,
        scheduled: Literal["confidence", "weight"] | None = None,
        mask_by_tags: bool | None = None,
        normalizer: Literal["kept", "all"] | None = None,
        mixed_tags: bool | None = None,
        contrast: dict[str, Any] | None = None,
        bank: ClassMemoryBank | dict[str, Any] | None = None,
        weights: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        check_choice(tuple(CSRM_PRESETS), compat=compat)
        for name, value in (("contrast", contrast), ("weights", weights)):
            if not isinstance(value, dict | None):
                raise ValueError(f"`{name}` must be a dict or None, got {value!r}")
        preset = CSRM_PRESETS[compat]

        def chosen(name: str, value: Any) -> Any:
            return preset[name] if value is None else value

        smoothing = chosen("label_smoothing", label_smoothing)
        self.classification = MultilabelSoftMargin(smoothing)
        self.segmentation = ReliableSegmentation(smoothing, chosen("per_image", per_image))
        self.seg_to_cam = ActivationConsistency(smoothing)
        self.weak_to_strong = WeakToStrong(chosen("normalizer", normalizer))
        options = preset["contrast"] | (contrast or {})
        if isinstance(bank, dict):
            bank = ClassMemoryBank(num_classes, embedding_dim, **bank)
        self.contrast = UnreliablePixelContrast(num_classes, embedding_dim, **options, bank=bank)
        self.num_foreground = num_classes - 1
        self.term_weights = dict.fromkeys(TERMS, 1.0) | (weights or {})
        if self.term_weights.keys() != set(TERMS):
            raise ValueError(f"`weights` must be of {', '.join(TERMS)}; got {[*(weights or {})]}")
        for term, weight in self.term_weights.items():
            check_numbers(**{f"weights[{term!r}]": weight})
            if not weight >= 0:
                raise ValueError(f"`weights` must not be negative, got {weight} for {term}")
        self.schedule = CSRMSchedule(warmup, unreliable, chosen("scheduled", scheduled))
        self.mask_by_tags = chosen("mask_by_tags", mask_by_tags)
        self.mixed_tags = chosen("mixed_tags", mixed_tags)

    def forward(
        self,
        student: CSRMMaps,
        teacher: CSRMMaps,
        plain_logits: Tensor,
        labels: Tensor,
        tags: Tensor,
        labeled: int,
        progress: float,
        *,
        original_tags: Tensor | None = None,
        soft_labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        draws: ContrastDraws | None = None,
    ) -> dict[str, Tensor]:
        """The five weighted terms; their sum is Eq. 14.

        Args:
            student: of the mixed images.
            teacher: of the mixed images; its ``cams`` count for nothing.
            plain_logits: (N, C, H, W), the teacher's segmentation of the images before, mixed like them.
            labels: (N, H, W) int64 pseudo-labels from activation maps, mixed, 255 for none; those of the unlabelled
                images count for nothing.
            tags: (N, K) multi-hot, of the mixed images.
            labeled: how many images, the first, are labelled.
            progress: share of the training that is done, in [0, 1].
            original_tags: (N, K), of the images before; needed where ``mixed_tags`` is off and images are mixed.
            soft_labels: (N, C, H, W), to learn the segmentation of instead of ``labels``.
            generator: of the random draws.
            draws: the random numbers themselves.

        Raises:
            ValueError: shapes or types that do not go together, NaN, labels of no class.
        """
        for name, maps in (("student", student), ("teacher", teacher)):
            if not isinstance(maps, CSRMMaps):
                raise ValueError(f"`{name}` must be CSRMMaps, got {type(maps).__name__}")
        check_maps(
            plain_logits=plain_logits,
            segmentation=student.segmentation,
            teacher_segmentation=teacher.segmentation,
        )
        check_same_channels(plain_logits=plain_logits, segmentation=student.segmentation)
        check_tags(tags, len(plain_logits), plain_logits.shape[1] - 1)
        if (len(plain_logits), *plain_logits.shape[2:]) != shape_of(labels):
            raise ValueError(f"`plain_logits` {tuple(plain_logits.shape)} and `labels` {shape_of(labels)} differ")
        if soft_labels is not None and shape_of(soft_labels) != shape_of(plain_logits):
            raise ValueError(f"`soft_labels` must have the shape of `plain_logits`, got {shape_of(soft_labels)}")
        check_whole(labeled=labeled)
        if not 0 <= labeled <= len(labels):
            raise ValueError(f"`labeled` must be at most the {len(labels)} images, got {labeled}")
        size, share = (labels.shape[-2], labels.shape[-1]), self.schedule.unreliable_share(progress)
        with torch.no_grad():
            plain = functional.tag_probabilities(plain_logits, tags if self.mask_by_tags else None)
            teacher_labels = functional.best_class(plain)
            confident = functional.confident_labels(plain, self.schedule.confidence(progress))
            mixed = functional.tag_probabilities(
                functional.resize(functional.full_precision(teacher.segmentation[labeled:]), size), None
            )
            entropy = functional.entropy(mixed)
        segmentation = functional.resize(functional.full_precision(student.segmentation), size)
        of_labeled = labels if soft_labels is None else soft_labels
        terms = {
            "classification": self.classification(student.cams, tags),
            "segmentation": self.segmentation(segmentation[:labeled], of_labeled[:labeled]),
            "seg_to_cam": self.seg_to_cam(student.cams, segmentation[:, :1], confident),
            "weak_to_strong": self.weak_to_strong(segmentation[labeled:], teacher_labels[labeled:], entropy, share),
            "contrast": self.contrast(
                student.embeddings,
                teacher.embeddings,
                teacher.segmentation,
                torch.cat([labels[:labeled], teacher_labels[labeled:]]),
                tags if self.mixed_tags or original_tags is None else original_tags,
                torch.arange(len(labels), device=labels.device) < labeled,
                share,
                generator=generator,
                draws=draws,
            ),
        }
        scheduled = self.schedule.weights(progress)
        return {name: term * (scheduled[name] * self.term_weights[name]) for name, term in terms.items()}
