"""Losses of CSRM, PSA and IRN on some of the images of a batch, for the tests with several processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wsss_contrast.losses import (
    ActivationConsistency,
    ContrastDraws,
    CSRMLoss,
    CSRMMaps,
    InterPixelRelations,
    ReliableSegmentation,
    SemanticAffinity,
    UnreliablePixelContrast,
    WeakToStrong,
)
from wsss_contrast.metrics import SeedMIoU
from wsss_contrast.nn import ClassMemoryBank

from .cases import Pixels, contrast_draws, unreliable_pixels

IMAGES, CLASSES = 6, 5
CONTRASTS: dict[str, dict[str, Any]] = {
    "contrast": {"negative_confidence": 0.2},
    "contrast official": {
        "negative_confidence": 1.0,
        "high_rank_included": True,
        "own_class": True,
        "class_mean": "present",
    },
}
TERMS = {
    "segmentation": lambda p, maps, _: ReliableSegmentation(0.1)(maps, p.labels),
    "segmentation official": lambda p, maps, _: ReliableSegmentation(0.1, per_image=False)(maps, p.labels),
    "seg to cam": lambda p, maps, _: ActivationConsistency(0.1)(maps[:, 1:], maps[:, :1], p.labels),
    "weak to strong": lambda p, maps, entropy: WeakToStrong()(maps, p.labels, entropy, 0.3),
    "weak to strong official": lambda p, maps, entropy: WeakToStrong("all")(maps, p.labels, entropy, 0.3),
    "semantic affinity": lambda p, maps, _: sum(SemanticAffinity(2)(maps, p.labels[:, ::2, ::2]).values()),
    "inter-pixel relations": lambda p, maps, _: sum(
        InterPixelRelations(2)(maps[:, :1], maps[:, 1:3], p.labels[:, ::2, ::2]).values()
    ),
}
Result = tuple[Tensor, Tensor, list[Tensor]]


def memory(dtype: torch.dtype = torch.float64) -> ClassMemoryBank:
    """Small enough to turn round."""
    return ClassMemoryBank(CLASSES, 3, 11, 14, dtype)


def take(rows: slice, dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """Some images, as new leaves, floating ones of this type."""
    parts = [(x.detach()[rows], x.requires_grad) for x in tensors]
    return [(x.to(dtype) if x.is_floating_point() else x).requires_grad_(wants) for x, wants in parts]


def autocast(dtype: torch.dtype) -> torch.autocast:
    """On for a half-precision type."""
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)


def contents(bank: ClassMemoryBank) -> list[Tensor]:
    return [bank.rows(index) for index in range(bank.num_classes)]


def term(name: str, rows: slice, dtype: torch.dtype = torch.float64) -> Result:
    """Value and gradient; the third image has no label, the fourth no foreground."""
    pixels = unreliable_pixels(40, IMAGES)
    pixels.labels[2], pixels.labels[3] = 255, 0
    generator = torch.Generator().manual_seed(41)
    maps = torch.randn(IMAGES, CLASSES, 4, 3, generator=generator, dtype=torch.float64).requires_grad_()
    entropy = torch.rand(IMAGES, 8, 6, generator=generator, dtype=torch.float64)
    maps, entropy, *part = take(rows, dtype, maps, entropy, *pixels)
    with autocast(dtype):
        loss = TERMS[name](Pixels(*part), maps, entropy)
    return loss.detach(), torch.autograd.grad(loss, maps)[0], []


def contrast(name: str, rows: slice, rank: int = 0, dtype: torch.dtype = torch.float64) -> list[Result]:
    """Three steps with one memory: value, gradient, memory. Labelled images and others take turns.

    The numbers of the ranks beside the first count for nothing.
    """
    loss = UnreliablePixelContrast(
        CLASSES, 3, queries=5, negatives=3, low_rank=2, high_rank=4, bank=memory(dtype), **CONTRASTS[name]
    )
    results = []
    for step in range(3):
        pixels = unreliable_pixels(42 + step, IMAGES)
        pixels = pixels._replace(labeled=torch.tensor([True, False, True, False, False, True]))
        part = Pixels(*take(rows, dtype, *pixels))
        with autocast(dtype):
            value = loss(*part, 0.3, draws=contrast_draws(100 * rank + step, queries=5))
        results.append((value.detach(), torch.autograd.grad(value, part.embeddings)[0], contents(loss.bank)))
    return results


def counted(rows: slice) -> SeedMIoU:
    """The seed metric after two batches."""
    metric, generator = SeedMIoU(3), torch.Generator().manual_seed(47)
    for _ in range(2):
        cams = torch.rand(IMAGES, 3, 8, 6, generator=generator) * 2 - 1
        masks = torch.randint(0, 4, (IMAGES, 8, 6), generator=generator)
        metric.update(cams[rows], masks.masked_fill(cams[:, 0] > 0.8, 255)[rows])
    return metric


def push(rows: slice, dtype: torch.dtype) -> list[Tensor]:
    """The memory after pushes of more rows than it holds, and of none; most rows are of no class."""
    bank, generator = memory(dtype), torch.Generator().manual_seed(43)
    for each in (5, 0, 30):
        new = torch.rand(IMAGES * each, 3, generator=generator)
        members = torch.rand(IMAGES * each, CLASSES, generator=generator) < 0.2
        part = slice(rows.start * each, rows.stop * each)
        bank.push(new[part], members[part])
    return contents(bank)


def total(order: list[int], labeled: int, compat: str, draws: ContrastDraws | None = None) -> dict[str, Any]:
    """The terms of CSRM's total of some images, with the gradients of the sum of all by image."""
    pixels = unreliable_pixels(44, IMAGES)
    generator = torch.Generator().manual_seed(45)
    cams = torch.randn(IMAGES, CLASSES - 1, 2, 2, generator=generator, dtype=torch.float64)
    maps, plain = torch.randn(2, IMAGES, CLASSES, 4, 3, generator=generator, dtype=torch.float64)
    plain = torch.nn.functional.interpolate(pixels.teacher_logits + plain, scale_factor=2)
    loss = CSRMLoss(
        CLASSES, 3, compat, contrast={"queries": 5, "negatives": 3, "negative_confidence": 0.5}, bank=memory()
    )
    student = CSRMMaps(*(x.detach()[order].requires_grad_() for x in (cams, maps, pixels.embeddings)))
    teacher = CSRMMaps(cams[order], pixels.teacher_logits[order], pixels.teacher_embeddings[order])
    terms = loss(
        *(student, teacher, plain[order], pixels.labels[order], pixels.tags[order], labeled, 0.3),
        draws=contrast_draws(46, queries=5) if draws is None else draws,
    )
    slopes = {
        name: torch.autograd.grad(value, student, retain_graph=True, materialize_grads=True)
        for name, value in terms.items()
    }
    return {"terms": {k: v.detach() for k, v in terms.items()}, "slopes": slopes, "bank": contents(loss.contrast.bank)}
