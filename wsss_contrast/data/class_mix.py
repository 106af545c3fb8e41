"""Mixing of images by class."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from wsss_contrast._checks import check_labels
from wsss_contrast.functional import NO_LABEL


class Mix(NamedTuple):
    """Which images are mixed, and of what.

    Attributes:
        base: (N,), the image that each result begins with.
        source: (N,), the image whose regions are pasted onto it.
        classes: (N, C) bool, the classes that are pasted; none leaves the base as it is.
    """

    base: Tensor
    source: Tensor
    classes: Tensor

    def paste(self, maps: Tensor, labels: Tensor) -> Tensor:
        """The mixture of any maps (N, ..., H, W), in the regions of labels (N, H, W)."""
        region = _lookup(self.classes, labels[self.source])
        region = region.view(len(region), *(1,) * (maps.dim() - 3), *region.shape[1:])
        return torch.where(region, maps[self.source], maps[self.base])


class Mixed(NamedTuple):
    """Mixed images and what goes with them, as :class:`ClassMix` takes it."""

    images: Tensor
    tags: Tensor
    labels: Tensor
    logits: Tensor


class ClassMix:
    """ClassMix (WACV 2021): the regions of some classes of one image are pasted onto another.

    Everything is taken from the images before, so nothing is pasted twice. A result has the base's tags and those of
    the pasted classes; what is covered keeps its tag.

    Args:
        policy: ``"paste"`` (CSRM, Sec. 3.3): each image gets, from another image at random, half of its foreground
            classes, at least one. ``"cyclic"`` (the original): half of the classes of each image, the background
            counted, are pasted onto the next image; the result takes the image's place.
        probability: of mixing.
        per_image: an image is mixed or not (CSRM); otherwise the whole batch is or is not (its released code).

    >>> mix = ClassMix(probability=1.0)
    >>> labels = torch.tensor([[[0, 0]], [[1, 255]]])
    >>> images, tags = torch.arange(4.0).view(2, 1, 1, 2), torch.tensor([[0], [1]])
    >>> mixed = mix(images, tags, labels, torch.zeros(2, 2, 1, 2))
    >>> mixed.images[0], mixed.tags[0], mixed.labels[0]
    (tensor([[[2., 1.]]]), tensor([1]), tensor([[1, 0]]))
    """

    def __init__(
        self, policy: Literal["paste", "cyclic"] = "paste", probability: float = 0.5, per_image: bool = True
    ) -> None:
        if policy not in ("paste", "cyclic"):
            raise ValueError(f"`policy` must be 'paste' or 'cyclic', got {policy!r}")
        if not 0 <= probability <= 1:
            raise ValueError(f"`probability` must be in [0, 1], got {probability}")
        self.policy = policy
        self.probability = probability
        self.per_image = per_image

    def __call__(
        self,
        images: Tensor,
        tags: Tensor,
        labels: Tensor,
        logits: Tensor,
        generator: torch.Generator | None = None,
        mix: Mix | None = None,
    ) -> Mixed:
        """Mix a batch.

        Args:
            images: (N, 3, H, W).
            tags: (N, K) multi-hot, without background.
            labels: (N, H, W) int64 ids 0 to K, 255 for none.
            logits: (N, C, H, W) of a teacher, the background first.
            generator: of the random draws.
            mix: the choice itself, instead of a draw.

        Raises:
            ValueError: shapes or types that do not go together, labels of no class.
        """
        shape = (len(images), *images.shape[2:])
        if labels.shape != shape or logits.shape != (len(images), tags.shape[1] + 1, *images.shape[2:]):
            shapes = [tuple(x.shape) for x in (images, tags, labels, logits)]
            raise ValueError(f"images, tags, labels and logits do not go together: {shapes}")
        check_labels(labels, len(images), logits.shape[1])
        mix = self.draw(labels, logits.shape[1], generator) if mix is None else mix
        tags = torch.where(mix.classes[:, 1:], 1, tags[mix.base]).to(tags.dtype)
        return Mixed(mix.paste(images, labels), tags, mix.paste(labels, labels), mix.paste(logits, labels))

    def draw(self, labels: Tensor, num_classes: int, generator: torch.Generator | None = None) -> Mix:
        """Choose what is mixed, of labels (N, H, W)."""
        count, device = len(labels), labels.device if generator is None else generator.device
        numbers = torch.rand(count, num_classes + 2, generator=generator, device=device).to(labels.device)
        coins, partners, keys = numbers[:, 0], numbers[:, 1], numbers[:, 2:]
        mixed = (coins if self.per_image else coins[:1].expand(count)) < self.probability
        if count == 1:  # there is nothing to mix it with
            mixed = torch.zeros_like(mixed)
        here = torch.arange(count, device=labels.device)
        if self.policy == "paste":
            # One of the other images.
            source = (here + 1 + (partners * max(count - 1, 1)).long()) % count
            base, candidates = here, _present(labels, num_classes)[source]
            candidates[:, 0] = False
            wanted = (candidates.sum(dim=1) // 2).clamp_min(1)
        else:
            source, base, candidates = here, (here + 1) % count, _present(labels, num_classes)
            wanted = candidates.sum(dim=1) // 2
        order = keys.masked_fill(~candidates, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
        classes = candidates & (order < wanted[:, None]) & mixed[:, None]
        return Mix(torch.where(mixed, base, here), source, classes)


def _present(labels: Tensor, num_classes: int) -> Tensor:
    """(N, C) bool: the classes in labels (N, H, W)."""
    found = torch.zeros(len(labels), NO_LABEL + 1, dtype=torch.bool, device=labels.device)
    return found.scatter_(1, labels.flatten(1), True)[:, :num_classes]


def _lookup(classes: Tensor, labels: Tensor) -> Tensor:
    """(N, H, W) bool: the pixels whose label is among an image's classes (N, C)."""
    known = torch.zeros(len(classes), NO_LABEL + 1, dtype=torch.bool, device=classes.device)
    known[:, : classes.shape[1]] = classes
    return known.gather(1, labels.flatten(1)).view_as(labels)
