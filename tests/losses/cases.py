"""Random inputs for the losses: small, seeded, float64."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_contrast import losses
from wsss_contrast.nn import ClassMemoryBank


class Views(NamedTuple):
    """The tensors of one call of PrototypeContrast."""

    source_embeddings: Tensor
    source_cams: Tensor
    target_embeddings: Tensor
    target_cams: Tensor
    tags: Tensor

    @property
    def embeddings(self) -> tuple[Tensor, Tensor]:
        return self.source_embeddings, self.target_embeddings


def views(
    seed: int,
    images: int = 2,
    classes: int = 3,
    width: int = 4,
    source: tuple[int, int] = (6, 5),
    target: tuple[int, int] = (4, 3),
    background: int | None = None,
) -> Views:
    """Two views whose embeddings ask for a gradient; about half of the tags are set."""
    generator = torch.Generator().manual_seed(seed)
    channels = classes + (background is not None)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Views(
        normal(images, width, *source).requires_grad_(),
        normal(images, channels, *source),
        normal(images, width, *target).requires_grad_(),
        normal(images, channels, *target),
        torch.randint(0, 2, (images, classes), generator=generator),
    )


def draws(inputs: Views, seed: int = 0) -> losses.PixelDraws:
    """Random numbers that fit ``inputs``."""
    generator = torch.Generator().manual_seed(seed)
    height, width = inputs.target_embeddings.shape[2:]
    images, classes = inputs.tags.shape
    pixels = images * height * width
    return losses.PixelDraws(
        torch.rand(2, pixels, generator=generator, dtype=torch.float64),
        torch.rand(2, pixels, classes + 1, generator=generator, dtype=torch.float64),
    )


def options(seed: int) -> dict[str, object]:
    """Hyper-parameters of PrototypeContrast, drawn at random."""
    choose = random.Random(seed).choice
    return {
        "compat": choose(["paper", "official"]),
        "background": choose([None, 0, -1]),
        "top_k": choose([None, 1, 3, 8]),
        "temperature": choose([0.1, 0.5]),
        "background_score": choose([0.05, 0.2, 0.6]),
        "mine_prototypes": choose([True, True, False]),
        "sample_pixels": choose([True, True, False]),
        "hard_ratio": choose([0.5, 0.6, 0.8, 1.0]),
        "intra_view_weight": choose([0.1, 1.0]),
    }


class Pixels(NamedTuple):
    """The tensors of one call of UnreliablePixelContrast."""

    embeddings: Tensor
    teacher_embeddings: Tensor
    teacher_logits: Tensor
    labels: Tensor
    tags: Tensor
    labeled: Tensor


def unreliable_pixels(seed: int, images: int = 4, classes: int = 5, sharpness: float = 3.0) -> Pixels:
    """Pixels of 3 channels, 4 x 3 of an image, whose labels (8 x 6) the teacher mostly agrees with. The first half of
    the images is labelled."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.randint(0, classes, (images, 8, 6), generator=generator)
    agree = F.one_hot(labels[:, ::2, ::2], classes).movedim(-1, 1)
    void = torch.rand(images, 8, 6, generator=generator) < 0.1
    return Pixels(
        normal(images, 3, 4, 3).requires_grad_(),
        normal(images, 3, 4, 3),
        sharpness * (agree + normal(images, classes, 4, 3) / 2),
        labels.masked_fill(void, 255),
        torch.randint(0, 2, (images, classes - 1), generator=generator),
        torch.arange(images) < (images + 1) // 2,
    )


def contrast_draws(seed: int, classes: int = 5, queries: int = 4, negatives: int = 3) -> losses.ContrastDraws:
    """Random numbers for UnreliablePixelContrast."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (classes, queries), (classes, queries * negatives)
    return losses.ContrastDraws(*(torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes))


class Case(NamedTuple):
    """A loss with inputs: ``inputs`` in the order of ``forward``, tags or labels last, and keyword arguments."""

    loss: nn.Module
    inputs: tuple[Tensor, ...]
    keywords: Mapping[str, object] = MappingProxyType({})

    def to(self, to: Callable[[Tensor], Tensor]) -> Case:
        """The same case with each tensor changed by ``to``, as new leaves."""
        inputs = tuple(to(x.detach()).requires_grad_(x.requires_grad) for x in self.inputs)

        def changed(value: object) -> object:
            if isinstance(value, tuple):
                return type(value)(*map(to, value))
            return to(value) if isinstance(value, Tensor) else value

        return self._replace(inputs=inputs, keywords={name: changed(value) for name, value in self.keywords.items()})

    def total(self, *maps: Tensor) -> Tensor:
        """The loss of these maps (or of the inputs' own), its terms added."""
        result = self.loss(*(maps or self.inputs[:-1]), self.inputs[-1], **self.keywords)
        return sum(result.values()) if isinstance(result, dict) else result


def _maps(seed: int, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(shape, generator=generator, dtype=torch.float64) + 0.5 for shape in shapes]
    tags = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0]])[: shapes[0][0]]
    return (*(x.requires_grad_() for x in maps), tags)


def _contrast(compat: str, images: int) -> Case:
    inputs = views(1, images)
    return Case(losses.PrototypeContrast(top_k=4, compat=compat), inputs, {"draws": draws(inputs)})


def _contrast_with_memory(images: int) -> Case:
    """The last class is in the memory only, the others are in both views: calls do not depend on those before."""
    inputs = views(17, images)._replace(tags=torch.tensor([[1, 1, 0]]).expand(images, -1))
    bank = ClassMemoryBank(4, 4, capacity=3, background_capacity=3, dtype=torch.float64)
    rows = torch.randn(2, 4, generator=torch.Generator().manual_seed(18), dtype=torch.float64)
    bank.push(rows, torch.tensor([[False, False, False, True]] * 2))
    return Case(losses.PrototypeContrast(top_k=4, bank=bank), inputs, {"draws": draws(inputs)})


def _saliency(images: int) -> Case:
    cams, saliency, tags = _maps(21, (images, 4, 3, 4), (images, 1, 6, 8))
    return Case(losses.SaliencyLoss(0.1), (cams, tags), {"saliency": saliency.detach().sigmoid()})


def _labels(seed: int, images: int, classes: int = 4) -> Tensor:
    """6 x 5, about a quarter of them 255."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (images, 6, 5), generator=generator)
    return labels.masked_fill(torch.rand(labels.shape, generator=generator) < 0.25, 255)


def _weak_to_strong(normalizer: str, images: int) -> Case:
    entropy = torch.rand(images, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    keywords = {"entropy": entropy, "share": 0.2}
    inputs = (_maps(10, (images, 4, 3, 4))[0], _labels(11, images))
    return Case(losses.WeakToStrong(normalizer), inputs, keywords)


_CONTRAST = {
    "paper": {"negative_confidence": 0.2, "class_mean": "all"},
    "official": {"high_rank_included": True, "negative_confidence": 1.0, "own_class": True, "class_mean": "present"},
}


def _memory() -> ClassMemoryBank:
    """So small that a call fills it anew: calls do not depend on those before."""
    return ClassMemoryBank(5, 3, capacity=2, background_capacity=2, dtype=torch.float64)


def _unreliable(compat: str, images: int) -> Case:
    loss = losses.UnreliablePixelContrast(
        5, 3, queries=4, negatives=3, low_rank=2, high_rank=4, bank=_memory(), **_CONTRAST[compat]
    )
    inputs = unreliable_pixels(12, images)
    keywords = {"tags": inputs.tags, "labeled": inputs.labeled, "share": 0.3, "draws": contrast_draws(13)}
    return Case(loss, inputs[:4], keywords)


class Total(losses.CSRMLoss):
    """CSRMLoss of plain tensors."""

    def forward(self, cams, segmentation, embeddings, plain_logits, teacher, teacher_embeddings, labels, **keywords):
        student = losses.CSRMMaps(cams, segmentation, embeddings)
        maps = losses.CSRMMaps(cams.detach(), teacher, teacher_embeddings)
        return super().forward(student, maps, plain_logits, labels, **keywords)


def _csrm(compat: str, images: int) -> Case:
    contrast = {"queries": 4, "negatives": 3, "low_rank": 2, "high_rank": 4, **_CONTRAST[compat]}
    loss = Total(5, 3, compat, contrast=contrast, bank=_memory())
    inputs = unreliable_pixels(14, images)
    cams, segmentation, _ = _maps(15, (images, 4, 2, 2), (images, 5, 4, 3))
    plain = (
        F.interpolate(inputs.teacher_logits, scale_factor=2) if images else inputs.teacher_logits.new_zeros(0, 5, 8, 6)
    )
    maps = (cams, segmentation, inputs.embeddings, plain, inputs.teacher_logits, inputs.teacher_embeddings)
    keywords = {"tags": inputs.tags, "labeled": (images + 1) // 2, "progress": 0.3, "draws": contrast_draws(16)}
    return Case(loss, (*maps, inputs.labels), keywords)


def _pairs(loss: nn.Module, *channels: int) -> Callable[[int], Case]:
    """A loss over pairs of pixels of maps with these channels."""
    return lambda n: Case(loss, (*_maps(19, *((n, c, 6, 5) for c in channels))[:-1], _labels(20, n, classes=3)))


CASES: dict[str, Callable[[int], Case]] = {
    "prototype_contrast": lambda n: _contrast("paper", n),
    "prototype_contrast_official": lambda n: _contrast("official", n),
    "prototype_contrast_memory": _contrast_with_memory,
    "equivariant": lambda n: Case(losses.EquivariantRegularization(), _maps(2, (n, 3, 6, 5), (n, 3, 4, 3))),
    "equivariant_cross": lambda n: Case(
        losses.EquivariantCrossRegularization(),
        _maps(3, (n, 3, 6, 5), (n, 4, 6, 5), (n, 3, 4, 3), (n, 4, 4, 3)),
    ),
    "min_pooling": lambda n: Case(losses.MinPooling(), _maps(4, (n, 3, 5, 4))),
    "puzzle_reconstruction": lambda n: Case(losses.PuzzleReconstruction(), _maps(6, (n, 3, 4, 6), (n, 3, 4, 6))),
    "puzzle_reconstruction_selection": lambda n: Case(
        losses.PuzzleReconstruction("selection"), _maps(7, (n, 3, 4, 6), (n, 3, 4, 6))
    ),
    "multilabel_soft_margin": lambda n: Case(losses.MultilabelSoftMargin(), _maps(5, (n, 3, 4, 3))),
    "multilabel_soft_margin_smoothed": lambda n: Case(losses.MultilabelSoftMargin(0.1), _maps(5, (n, 3, 4, 3))),
    "saliency": _saliency,
    "reliable_segmentation": lambda n: Case(losses.ReliableSegmentation(), (_maps(8, (n, 4, 3, 4))[0], _labels(8, n))),
    "reliable_segmentation_official": lambda n: Case(
        losses.ReliableSegmentation(0.1, per_image=False), (_maps(8, (n, 4, 3, 4))[0], _labels(8, n))
    ),
    "activation_consistency": lambda n: Case(
        losses.ActivationConsistency(0.1),
        (_maps(9, (n, 3, 2, 3))[0], _maps(10, (n, 1, 3, 4))[0].detach(), _labels(9, n)),
    ),
    "weak_to_strong": lambda n: _weak_to_strong("kept", n),
    "weak_to_strong_official": lambda n: _weak_to_strong("all", n),
    "unreliable_contrast": lambda n: _unreliable("paper", n),
    "unreliable_contrast_official": lambda n: _unreliable("official", n),
    "semantic_affinity": _pairs(losses.SemanticAffinity(3), 4),
    "inter_pixel_relations": _pairs(losses.InterPixelRelations(3), 1, 2),
    "patch_token_contrast": _pairs(losses.PatchTokenContrast(), 4),
    "attention_affinity": lambda n: Case(
        losses.AttentionAffinity(2), (_maps(22, (n, 30, 30, 1))[0].squeeze(-1), _labels(22, n, classes=3))
    ),
    "csrm": lambda n: _csrm("paper", n),
    "csrm_official": lambda n: _csrm("official", n),
}
"""Every loss, by name: a function of the number of images, at most 3."""
