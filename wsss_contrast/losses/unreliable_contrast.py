"""The contrast of unreliable pixels with a memory (CSRM)."""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from wsss_contrast import distributed, functional
from wsss_contrast._checks import (
    check_below_one,
    check_choice,
    check_draws,
    check_generator,
    check_labels,
    check_maps,
    check_mask,
    check_numbers,
    check_share,
    check_tags,
    check_whole,
)
from wsss_contrast.functional import unreliable
from wsss_contrast.functional.maps import readable, unit
from wsss_contrast.nn.memory_bank import ClassMemoryBank

from ._quantiles import joined_quantiles


class ContrastDraws(NamedTuple):
    """Random numbers in [0, 1) of a step, to repeat it. Q queries a class and n negatives a query.

    Attributes:
        queries: (C, Q), which of a class's query candidates are taken, in the order (image, row, column).
        negatives: (C, Q n), which of a class's rows in the memory, oldest first.
    """

    queries: Tensor
    negatives: Tensor


class UnreliablePixelContrast(nn.Module):
    """InfoNCE between reliable pixels and a memory of unreliable ones: L_m, Eq. 13 of [1], after [2] and [3].

    Each class has reliable pixels: those with a label in the labelled images, those of low entropy in the unlabelled
    ones. Their mean teacher feature is the class's prototype; the student's features at those of them that the teacher
    is sure of are queries. Unreliable pixels, for which the class is improbable
    (:func:`~wsss_contrast.functional.negative_candidates`), fill the class's memory with teacher features; these are
    the queries' negatives. Gradient flows through the student's features only.

    In [1], "labelled" images are those whose labels come from activation maps; the labels of the others are the
    teacher's own.

    Args:
        num_classes: C, with the background, which is class 0. At least 2.
        embedding_dim: D, of the default memory.
        temperature: tau.
        queries: P, queries a class and step. With replacement.
        negatives: N, negatives a query. With replacement.
        low_rank: gamma_l: classes up to this rank of probability may be negative where the image is not tagged. At
            most C - 1.
        high_rank: gamma_h: classes between the ranks are negative. At most C.
        high_rank_included: whether a class of rank ``high_rank`` is one of them.
        query_confidence: the teacher's probability that a query must exceed.
        negative_confidence: the one that a negative must stay below. The released code has 1.
        own_class: whether a pixel of an unlabelled image may be a negative of its own label's class.
        class_mean: the mean of the classes' losses is over ``"all"`` C or over the ``"present"``, which have a
            reliable pixel.
        bank: the memory; by default of 30,000 rows a class and 50,000 of the background. In evaluation it is read,
            not written.

    The defaults are the paper's; :data:`~wsss_contrast.losses.CSRM_PRESETS` has the released code's. Its two defects
    (labels of a batch run together; one class's queries meet another's memory) are not offered.

    Distributed contract: entropies, prototypes, candidates and memory are those of the joined batch, which has the
    images in rank order, and rank 0's draws count for all. A rank returns its own queries'
    share times the number of ranks, so that the mean over ranks is the value of one process on the joined batch. Every
    rank must call it.

    [1] Learning Weakly Supervised Semantic Segmentation Through Cross-Supervision and Contrasting of Pixel-Level
    Pseudo-Labels, VISAPP 2025. [2] Semi-Supervised Semantic Segmentation Using Unreliable Pseudo-Labels (U2PL), CVPR
    2022. [3] Bootstrapping Semantic Segmentation with Regional Contrast (ReCo), ICLR 2022.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int = 256,
        temperature: float = 0.5,
        queries: int = 50,
        negatives: int = 256,
        low_rank: int = 3,
        high_rank: int = 6,
        high_rank_included: bool = False,
        query_confidence: float = 0.3,
        negative_confidence: float = 0.01,
        own_class: bool = False,
        class_mean: Literal["all", "present"] = "all",
        bank: ClassMemoryBank | None = None,
    ) -> None:
        super().__init__()
        check_whole(
            num_classes=num_classes, queries=queries, negatives=negatives, low_rank=low_rank, high_rank=high_rank
        )
        check_numbers(
            temperature=temperature, query_confidence=query_confidence, negative_confidence=negative_confidence
        )
        if num_classes < 2:
            raise ValueError(f"`num_classes` counts the background and must be at least 2, got {num_classes}")
        if not temperature > 0:
            raise ValueError(f"`temperature` must be positive, got {temperature}")
        if queries < 1 or negatives < 1:
            raise ValueError(f"`queries` and `negatives` must be at least 1, got {queries} and {negatives}")
        if not 0 <= low_rank <= high_rank:
            raise ValueError(f"ranks must be 0 <= low_rank <= high_rank, got {low_rank} and {high_rank}")
        if not 0 <= query_confidence < 1 or not 0 < negative_confidence <= 1:
            raise ValueError(
                "`query_confidence` must be in [0, 1) and `negative_confidence` in (0, 1], got "
                f"{query_confidence} and {negative_confidence}"
            )
        check_choice(("all", "present"), class_mean=class_mean)
        if not isinstance(bank, ClassMemoryBank | None):
            raise ValueError(f"`bank` must be a ClassMemoryBank or None, got {bank!r}")
        if low_rank >= num_classes:
            warnings.warn(
                f"low_rank={low_rank} leaves no rank of {num_classes} classes above it; {num_classes - 1} is taken",
                stacklevel=2,
            )
            low_rank = num_classes - 1
        self.bank = ClassMemoryBank(num_classes, embedding_dim) if bank is None else bank
        if self.bank.num_classes != num_classes:
            raise ValueError(f"`bank` is of {self.bank.num_classes} classes, the loss of {num_classes}")
        self.num_classes = num_classes
        self.temperature = temperature
        self.queries = queries
        self.negatives = negatives
        self.low_rank = low_rank
        self.high_rank = high_rank
        self.high_rank_included = high_rank_included
        self.query_confidence = query_confidence
        self.negative_confidence = negative_confidence
        self.own_class = own_class
        self.class_mean = class_mean

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, queries={self.queries}, negatives={self.negatives}"

    def forward(
        self,
        embeddings: Tensor,
        teacher_embeddings: Tensor,
        teacher_logits: Tensor,
        labels: Tensor,
        tags: Tensor,
        labeled: Tensor,
        share: float,
        *,
        generator: torch.Generator | None = None,
        draws: ContrastDraws | None = None,
    ) -> Tensor:
        """A scalar, at least 0. A zero with a graph if no class or only one has a reliable pixel, or no query.

        Args:
            embeddings: (N, D, h, w) of the student.
            teacher_embeddings: (N, D, h, w).
            teacher_logits: (N, C, h, w).
            labels: (N, H, W) int64 ids, 255 for none; each pixel of (h, w) takes the nearest.
            tags: (N, K) multi-hot, without background.
            labeled: (N,) bool, the labelled images.
            share: alpha, in [0, 1]: the share of the unlabelled images' pixels of lowest entropy that is reliable,
                and of highest that is unreliable. At 0 none is reliable.
            generator: of the random draws, on any device.
            draws: the random numbers themselves.

        Raises:
            ValueError: shapes or types that do not go together, NaN, labels of no class, tags that are not 0 or 1.
        """
        check_maps(embeddings=embeddings, teacher_embeddings=teacher_embeddings, teacher_logits=teacher_logits)
        if embeddings.shape != teacher_embeddings.shape or embeddings.shape[2:] != teacher_logits.shape[2:]:
            shapes = [tuple(x.shape) for x in (embeddings, teacher_embeddings, teacher_logits)]
            raise ValueError(f"features of student and teacher and the logits must be of one size, got {shapes}")
        if embeddings.shape[1] != self.bank.embedding_dim:
            theirs, own = self.bank.embedding_dim, embeddings.shape[1]
            raise ValueError(f"`bank`: the memory has rows of {theirs}, the features {own}")
        if teacher_logits.shape[1] != self.num_classes:
            raise ValueError(f"`teacher_logits` must have {self.num_classes} channels, got {teacher_logits.shape[1]}")
        check_tags(tags, len(embeddings), self.num_classes - 1)
        check_labels(labels, len(embeddings), self.num_classes)
        check_mask((len(embeddings),), labeled=labeled)
        check_share(share=share)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = functional.full_precision(embeddings)
            teacher = functional.full_precision(teacher_embeddings.detach()).to(embeddings.dtype)
            probabilities = functional.tag_probabilities(teacher_logits.detach(), None)
            labels = functional.nearest_labels(labels, (embeddings.shape[-2], embeddings.shape[-1]))
            candidates, prototypes, present = self._pixels(teacher, probabilities, labels, tags, labeled, share)
            return self._contrast(embeddings, candidates, prototypes, present, generator, draws)

    @torch.no_grad()
    def _pixels(
        self, teacher: Tensor, probabilities: Tensor, labels: Tensor, tags: Tensor, labeled: Tensor, share: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query candidates (P, C), prototypes (C, D), and (C,) which classes have one. Fills the memory."""
        of_labeled = labeled[:, None, None].expand_as(labels)
        low, high = self._entropy_masks(functional.entropy(probabilities), of_labeled, labels, share)
        certain = functional.class_masks(labels, self.num_classes) & low[:, None]
        by_pixel = probabilities.movedim(1, -1).flatten(0, 2)
        if self.training:
            of_pixel = functional.present_classes(tags)
            negatives = functional.negative_candidates(
                by_pixel,
                labels.flatten(),
                of_pixel.repeat_interleave(labels.shape[1] * labels.shape[2], dim=0),
                of_labeled.flatten(),
                high.flatten(),
                self.low_rank,
                self.high_rank - (not self.high_rank_included),
                self.negative_confidence,
                self.own_class,
            )
            keys = teacher.movedim(1, -1).clone(memory_format=torch.contiguous_format).flatten(0, 2)
            keys /= keys.norm(dim=1, keepdim=True).clamp_min(1e-8)
            self.bank.push(keys, negatives, most=min(self.high_rank, self.num_classes))
        sums, counts = unreliable.class_sums(teacher, certain)
        joined = distributed.all_gather(torch.cat([sums, counts[:, None].to(sums.dtype)], dim=1)).sum(dim=0)
        candidates = (certain & (probabilities > self.query_confidence)).movedim(1, -1).flatten(0, 2)
        return candidates, unit(joined[:, :-1]), joined[:, -1] > 0

    @staticmethod
    def _entropy_masks(entropy: Tensor, of_labeled: Tensor, labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Pixels of low and of high entropy, (N, h, w) bool; in labelled images both are the pixels with a label."""
        has_label = labels != functional.NO_LABEL
        lower, upper = joined_quantiles(entropy, ~of_labeled, [share, 1 - share])
        low, high = entropy < lower, entropy >= upper
        return torch.where(of_labeled, has_label, low), torch.where(of_labeled, has_label, high)

    def _contrast(
        self,
        embeddings: Tensor,
        candidates: Tensor,
        prototypes: Tensor,
        present: Tensor,
        generator: torch.Generator | None,
        draws: ContrastDraws | None,
    ) -> Tensor:
        found = distributed.all_gather(candidates.sum(dim=0))  # (W, C)
        total = found.sum(dim=0)
        classes = present.sum()
        active = present & (total > 0) & (self.bank.counts > 0) & (classes > 1)
        draws = self._draws(generator, draws, embeddings)
        numbers = torch.minimum((draws.queries * total[:, None]).long(), (total - 1).clamp_min(0)[:, None])
        numbers = numbers - found[: distributed.rank()].sum(dim=0)[:, None]  # this rank's are from 0 on
        own = (numbers >= 0) & (numbers < candidates.sum(dim=0)[:, None]) & active[:, None]
        pixels = functional.choose(candidates, numbers.clamp_min(0))
        places = self.bank.places(draws.negatives).view(*pixels.shape, -1)
        if readable(own):  # leave out what is not this rank's; to count would wait for a device
            at = own.nonzero(as_tuple=True)
        else:
            at = tuple(torch.cartesian_prod(*(torch.arange(n, device=own.device) for n in own.shape)).T)
        if len(at[0]) == 0 or len(embeddings) == 0:
            return (embeddings * 0).sum()
        queries = unreliable.gather_pixels(embeddings, pixels[at])
        nll = functional.info_nce(unit(queries), prototypes[at[0]], self.bank.storage, places[at], self.temperature)
        mean = torch.where(own[at], nll, 0.0).sum() / self.queries
        return (
            mean * distributed.world_size() / (self.num_classes if self.class_mean == "all" else classes.clamp_min(1))
        )

    def _draws(self, generator: torch.Generator | None, given: ContrastDraws | None, like: Tensor) -> ContrastDraws:
        per_class = (self.queries, self.queries * self.negatives)
        shapes = [(self.num_classes, count) for count in per_class]
        if given is None:
            check_generator(generator)
            device = like.device if generator is None else generator.device
            numbers = torch.rand(self.num_classes, sum(per_class), generator=generator, device=device)
            given = ContrastDraws(*numbers.split(per_class, dim=1))
        else:
            check_draws(given, shapes)
            check_below_one(given[0])
        return ContrastDraws(*(distributed.all_gather(n.to(like.device, non_blocking=True))[0] for n in given))
