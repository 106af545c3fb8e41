"""Random inputs for the losses: small, seeded, float64."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wsss_contrast import losses


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


class Case(NamedTuple):
    """A loss with inputs: ``inputs`` in the order of ``forward``, tags last, and keyword arguments."""

    loss: nn.Module
    inputs: tuple[Tensor, ...]
    keywords: Mapping[str, object] = MappingProxyType({})

    def to(self, to: Callable[[Tensor], Tensor]) -> Case:
        """The same case with each tensor changed by ``to``, as new leaves."""
        inputs = tuple(to(x.detach()).requires_grad_(x.requires_grad) for x in self.inputs)
        keywords = {name: losses.PixelDraws(*map(to, numbers)) for name, numbers in self.keywords.items()}
        return self._replace(inputs=inputs, keywords=keywords)

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


CASES: dict[str, Callable[[int], Case]] = {
    "prototype_contrast": lambda n: _contrast("paper", n),
    "prototype_contrast_official": lambda n: _contrast("official", n),
    "equivariant": lambda n: Case(losses.EquivariantRegularization(), _maps(2, (n, 3, 6, 5), (n, 3, 4, 3))),
    "equivariant_cross": lambda n: Case(
        losses.EquivariantCrossRegularization(),
        _maps(3, (n, 3, 6, 5), (n, 4, 6, 5), (n, 3, 4, 3), (n, 4, 4, 3)),
    ),
    "min_pooling": lambda n: Case(losses.MinPooling(), _maps(4, (n, 3, 5, 4))),
    "multilabel_soft_margin": lambda n: Case(losses.MultilabelSoftMargin(), _maps(5, (n, 3, 4, 3))),
}
"""Every loss, by name: a function of the number of images, at most 3."""
