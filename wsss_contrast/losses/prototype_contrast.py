"""Pixel-to-prototype contrast (PPC)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_contrast import distributed, functional
from wsss_contrast._checks import (
    check_choice,
    check_draws,
    check_fraction,
    check_generator,
    check_maps,
    check_numbers,
    check_same_channels,
    check_tags,
    check_valid,
    check_whole,
    kind,
)
from wsss_contrast.functional.maps import readable, unit
from wsss_contrast.nn.memory_bank import ClassMemoryBank


class PixelDraws(NamedTuple):
    """Random numbers in [0, 1) for both views, to repeat a step. P = N h w counts the target view's pixels.

    Attributes:
        pixels: (2, P), which pixels the random half of hard pixel sampling takes: the lowest of each class.
        prototypes: (2, P, C), which hard negatives semi-hard mining keeps: the lowest of each pixel.
    """

    pixels: Tensor
    prototypes: Tensor


class _View(NamedTuple):
    """One view, flattened to pixels."""

    embeddings: Tensor  # (P, D), unit length
    labels: Tensor  # (P,), IGNORE for none
    scores: Tensor  # (C, k) of this rank's candidates
    vectors: Tensor  # (C, k, D)


class PrototypeContrast(nn.Module):
    """Pixel-to-prototype contrast across two views and within each: Eqs. 4 to 9 of [1].

    Pixels get a class from the maps and tags (Eq. 4). Each class of each view gets a prototype, the mean of its most
    certain pixels over the whole batch (Eq. 5). Each pixel is drawn to the other view's prototype of its class
    (cross-prototype, Eq. 6), to its own view's prototype of the class that the other view gives it (cross-CAM, Eq.
    7), and to its own view's prototype of its class (intra-view, Eq. 9, with semi-hard prototype mining and hard
    pixel sampling). Gradient flows through the pixels' embeddings only; maps, prototypes and choices are constants.

    Add the sum of the terms to the host's loss (Eq. 1).

    Shapes: N images, K foreground classes, C = K + 1 with the background, D embedding width. The source view may be
    of another size: its embeddings and maps are resized to (h, w), the size of the target view's embeddings (bilinear,
    aligned corners).

    Args:
        temperature: tau of Eq. 4.
        top_k: K of Eq. 5, candidates a class. ``None``: 32, or ``h w // 8`` with ``compat="official"``.
        background: whether and where the maps carry a background channel: ``None``, 0 (first) or -1 (last). Its
            values count for nothing. It also places the background in the class list (first for ``None``).
        background_score: the constant score that a foreground class must exceed at a pixel, in (0, 1).
        cross_prototype_weight: alpha of Eq. 1 and 8, for the cross-prototype term. 0 leaves the term out.
        cross_cam_weight: alpha for the cross-CAM term.
        intra_view_weight: beta of Eq. 1.
        mine_prototypes: semi-hard prototype mining in the intra-view term.
        sample_pixels: hard pixel sampling in the intra-view term.
        hard_ratio: share of the negatives (official: of pixels, too) that count as hard.
        compat: ``"paper"`` or ``"official"``, what the released code computes where it differs from the paper: every
            pixel of the batch is a candidate for every class, tagged or not; the background's candidates are tied;
            all classes stay in the softmax; mining is by rank and may take the positive as a negative; the hard half
            of the pixels leaves out the hardest; the intra-view term is a mean over classes; features are averaged
            without normalisation; a term is the mean of both views, where the paper adds them.
        bank: a memory of the prototypes of past steps (not in the paper), for ``compat="paper"`` only. A class that has
            no prototype in a view of the batch gets the mean of its rows, L2-normalised, if it has rows: one more
            negative, and in the cross terms a positive, where only one of the views has the class. Then the batch's
            prototypes are appended, the source view's first; in evaluation the memory is read, not written. All rows
            are read in each step, so keep it small, some 50 a class. Its classes are those of the class list: with
            ``background=-1`` its class 0, of ``background_capacity``, is the first foreground class.

    Distributed contract: prototypes, pixel sampling and all means are those of the joined batch. Each rank gathers
    the C x k candidates of every rank and three numbers a pixel. A rank returns its own pixels' share times the
    number of ranks, so that the mean over ranks, which DDP takes of gradients, is the value of one process on the
    joined batch. Every rank must call it, with an empty batch if need be. Random draws are each rank's own. The memory
    is the same on every rank, and that of one process on the joined batch.

    [1] Weakly Supervised Semantic Segmentation by Pixel-to-Prototype Contrast, CVPR 2022.

    >>> _ = torch.manual_seed(0)
    >>> contrast = PrototypeContrast(top_k=8)
    >>> embeddings = torch.randn(2, 16, 8, 8, requires_grad=True)
    >>> cams, tags = torch.randn(2, 3, 8, 8), torch.tensor([[1, 0, 1], [0, 1, 0]])
    >>> terms = contrast(embeddings, cams, embeddings.flip(-1), cams.flip(-1), tags)
    >>> sorted(terms)
    ['cross_cam', 'cross_prototype', 'intra_view']
    >>> sum(terms.values()).backward()
    """

    def __init__(
        self,
        temperature: float = 0.1,
        top_k: int | None = None,
        background: Literal[0, -1] | None = None,
        background_score: float = 0.2,
        cross_prototype_weight: float = 0.1,
        cross_cam_weight: float = 0.1,
        intra_view_weight: float = 0.1,
        mine_prototypes: bool = True,
        sample_pixels: bool = True,
        hard_ratio: float = 0.6,
        compat: Literal["paper", "official"] = "paper",
        bank: ClassMemoryBank | None = None,
    ) -> None:
        super().__init__()
        check_numbers(temperature=temperature, background_score=background_score)
        if not temperature > 0:
            raise ValueError(f"`temperature` must be positive, got {temperature}")
        if top_k is not None:
            check_whole(top_k=top_k)
            if top_k < 1:
                raise ValueError(f"`top_k` must be at least 1, got {top_k}")
        check_choice((None, 0, -1), background=background)
        if not 0 < background_score < 1:
            raise ValueError(f"`background_score` must be in (0, 1), got {background_score}")
        weights = (cross_prototype_weight, cross_cam_weight, intra_view_weight)
        check_numbers(
            cross_prototype_weight=cross_prototype_weight,
            cross_cam_weight=cross_cam_weight,
            intra_view_weight=intra_view_weight,
        )
        if not all(weight >= 0 for weight in weights):
            raise ValueError(f"the weights must not be negative, got {weights}")
        if not any(weights):
            raise ValueError(f"at least one weight must be positive, got {weights}")
        check_choice(("paper", "official"), compat=compat)
        check_fraction(hard_ratio=hard_ratio)
        if compat == "official" and hard_ratio < 0.5:
            raise ValueError(f"`hard_ratio` must be at least 0.5 with compat='official', got {hard_ratio}")
        if not isinstance(bank, ClassMemoryBank | None):
            raise ValueError(f"`bank` must be a ClassMemoryBank or None, got {bank!r}")
        if compat == "official" and bank is not None:
            raise ValueError(
                "`bank` must be None with compat='official', where every class has a prototype from the batch: it "
                "would never be read"
            )
        self.temperature = temperature
        self.top_k = top_k
        self.background = background
        self.background_score = background_score
        self.cross_prototype_weight = cross_prototype_weight
        self.cross_cam_weight = cross_cam_weight
        self.intra_view_weight = intra_view_weight
        self.mine_prototypes = mine_prototypes
        self.sample_pixels = sample_pixels
        self.hard_ratio = hard_ratio
        self.compat = compat
        self.bank = bank

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, top_k={self.top_k}, compat={self.compat!r}"

    def forward(
        self,
        source_embeddings: Tensor,
        source_cams: Tensor,
        target_embeddings: Tensor,
        target_cams: Tensor,
        tags: Tensor,
        *,
        source_valid: Tensor | None = None,
        target_valid: Tensor | None = None,
        generator: torch.Generator | None = None,
        draws: PixelDraws | None = None,
        candidate_indices: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The weighted terms of both views.

        Args:
            source_embeddings: (N, D, h1, w1), the projector's output for the source view, any scale.
            source_cams: (N, K or K + 1, h1', w1'), its activation maps, not normalised, any range.
            target_embeddings: (N, D, h, w).
            target_cams: (N, K or K + 1, h', w').
            tags: (N, K) multi-hot image tags, without background.
            source_valid: (N, h, w) bool, pixels that take part; all by default. The second result of
                :func:`~wsss_contrast.functional.warp`, for both views, where the target view is more than a resize;
                the source's embeddings and maps are warped before they come here.
            target_valid: (N, h, w) bool.
            generator: source of the random draws, on any device.
            draws: the random numbers themselves, instead of ``generator``.
            candidate_indices: a (C, k) tensor of pixel indices for each view that replaces the choice of the top K.

        Returns:
            ``cross_prototype``, ``cross_cam``, ``intra_view``: scalars times their weights, for a positive weight. A
            term with nothing to compare is a zero with a graph.

        Raises:
            ValueError: shapes or dtypes that do not go together, NaN in CPU tensors, tags that are not 0 or 1, a memory
                of another number of classes or another width.
        """
        check_maps(
            source_embeddings=source_embeddings,
            source_cams=source_cams,
            target_embeddings=target_embeddings,
            target_cams=target_cams,
        )
        check_same_channels(source_embeddings=source_embeddings, target_embeddings=target_embeddings)
        check_same_channels(source_cams=source_cams, target_cams=target_cams)
        classes = target_cams.shape[1] + (self.background is None)
        if classes < 2:
            raise ValueError(f"the maps need a foreground channel, got 1 channel with background={self.background}")
        check_tags(tags, target_cams.shape[0], classes - 1)
        check_valid(source_valid, target_embeddings, "source_valid")
        check_valid(target_valid, target_embeddings, "target_valid")
        if self.bank is not None:
            theirs, own = (self.bank.num_classes, self.bank.embedding_dim), (classes, target_embeddings.shape[1])
            if theirs != own:
                raise ValueError(
                    f"`bank` is of {theirs[0]} classes and {theirs[1]} columns; the maps are of {own[0]} classes with "
                    f"the background, the embeddings of {own[1]} channels"
                )
        with torch.autocast(target_embeddings.device.type, enabled=False):
            size = (target_embeddings.shape[-2], target_embeddings.shape[-1])
            indices = self._check_indices(candidate_indices, classes, len(target_embeddings) * size[0] * size[1])
            views = (
                self._view(source_embeddings, source_cams, tags, size, source_valid, indices[0]),
                self._view(target_embeddings, target_cams, tags, size, target_valid, indices[1]),
            )
            return self._terms(views, classes, generator, draws)

    def _view(
        self,
        embeddings: Tensor,
        cams: Tensor,
        tags: Tensor,
        size: tuple[int, int],
        valid: Tensor | None,
        indices: Tensor | None,
    ) -> _View:
        embeddings = functional.resize(functional.full_precision(embeddings), size)
        units = unit(embeddings, dim=1)
        with torch.no_grad():
            foreground = functional.split_background(cams.detach(), self.background)
            foreground = functional.resize(functional.full_precision(foreground).to(embeddings.dtype), size)
            official = self.compat == "official"
            candidates = functional.candidate_scores_official if official else functional.candidate_scores
            labels, scores = candidates(foreground, tags, self.background_score, self.background or 0, valid)
            top_k = self.top_k or (max(size[0] * size[1] // 8, 1) if official else 32)
            vectors = (embeddings if official else units).detach()
            scores, vectors = functional.top_candidates(vectors, scores, top_k, indices)
            short = top_k - scores.shape[1]
            if short > 0 and indices is None:  # the same shape on every rank, also with a short or empty batch
                scores = F.pad(scores, (0, short), value=-math.inf)
                vectors = F.pad(vectors, (0, 0, 0, short))
        return _View(units.movedim(1, -1).flatten(0, -2), labels.flatten(), scores, vectors)

    def _terms(
        self, views: tuple[_View, _View], classes: int, generator: torch.Generator | None, draws: PixelDraws | None
    ) -> dict[str, Tensor]:
        prototypes, present = self._prototypes(views)
        # One product for all terms: (P, 2, C), each view's pixels against both views' prototypes.
        logits = [
            torch.einsum("pd,vcd->pvc", view.embeddings, prototypes.to(view.embeddings.dtype)) / self.temperature
            for view in views
        ]
        draws = self._draws(draws, generator, logits[0].shape[0], classes, logits[0])
        own = [logits[i][:, i].gather(1, views[i].labels.clamp_min(0)[:, None]).squeeze(1) for i in (0, 1)]
        # What a choice or a mean over the joined batch needs of each pixel, in one gather: (P, view, 3).
        of_pixels = torch.stack(
            [torch.stack([own[i].detach(), draws.pixels[i], views[i].labels.to(own[i].dtype)], dim=-1) for i in (0, 1)],
            dim=1,
        )
        joined, start = distributed.all_gather_rows(of_pixels)
        part = slice(start, start + of_pixels.shape[0])

        terms: dict[str, Tensor] = {}
        for name, weight in (
            ("cross_prototype", self.cross_prototype_weight),
            ("cross_cam", self.cross_cam_weight),
            ("intra_view", self.intra_view_weight),
        ):
            if weight == 0:
                continue
            values = []
            for i in (0, 1):
                # Cross-prototype: the other view's prototypes. Cross-CAM: the other view's labels.
                prototypes_of = 1 - i if name == "cross_prototype" else i
                label_of = 1 - i if name == "cross_cam" else i
                labels = views[label_of].labels
                log_odds = logits[i][:, prototypes_of]
                all_labels = self._comparable(joined[:, label_of, 2].long(), present[prototypes_of])
                # In the cross-CAM term both views must see the pixel.
                all_labels = torch.where(joined[:, i, 2] < 0, functional.IGNORE, all_labels)
                if name == "intra_view":
                    negatives = self._negatives(log_odds, labels, present[prototypes_of], draws.prototypes[i])
                    share = self._pixel_shares(joined[:, i], all_labels, classes)
                else:
                    negatives = functional.all_negatives(labels, present[prototypes_of])
                    share = _mean_over(all_labels >= 0, joined.dtype)
                nll = functional.pixel_to_prototype_nll(log_odds, labels, negatives)
                values.append((nll * share[part]).sum() * distributed.world_size())
            total = values[0] + values[1]
            terms[name] = weight * (total / 2 if self.compat == "official" else total)
        return terms

    @torch.no_grad()
    def _prototypes(self, views: tuple[_View, _View]) -> tuple[Tensor, Tensor]:
        """Prototypes (2, C, D) of both views over the joined batch, and which classes have one (2, C)."""
        candidates = torch.stack([torch.cat([view.scores[..., None], view.vectors], dim=-1) for view in views])
        joined = distributed.all_gather(candidates)
        found = []
        for i in (0, 1):
            scores, vectors = joined[:, i, ..., 0], joined[:, i, ..., 1:]
            merged = functional.merge_candidates(scores, vectors, top_k=candidates.shape[2])
            found.append(functional.estimate_prototypes(*merged))
        prototypes, present = (torch.stack(parts) for parts in zip(*found, strict=True))
        return (prototypes, present) if self.bank is None else self._remembered(self.bank, prototypes, present)

    def _remembered(self, bank: ClassMemoryBank, prototypes: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """The same, with the memory's where a class has none; then the memory takes those of the batch."""
        stored = unit(bank.means().to(prototypes.dtype), dim=1)
        filled = torch.where(present[..., None], prototypes, stored), present | (bank.counts > 0)
        if self.training:
            # All ranks have the same prototypes, and a push joins the rows of all: the first rank's are enough.
            rows, members = prototypes.flatten(0, 1), torch.diag_embed(present).flatten(0, 1)
            own = slice(None) if distributed.rank() == 0 else slice(0)
            bank.push(rows[own], members[own], most=1)
        return filled

    @staticmethod
    def _draws(
        given: PixelDraws | None, generator: torch.Generator | None, pixels: int, classes: int, like: Tensor
    ) -> PixelDraws:
        shapes = [(2, pixels), (2, pixels, classes)]
        if given is None:
            check_generator(generator)
            device = like.device if generator is None else generator.device
            numbers = torch.rand(2, pixels, 1 + classes, generator=generator, device=device)
            given = PixelDraws(numbers[..., 0], numbers[..., 1:])
        else:
            check_draws(given, shapes)
        return PixelDraws(*(n.to(device=like.device, dtype=like.dtype, non_blocking=True) for n in given))

    @staticmethod
    def _check_indices(
        indices: tuple[Tensor, Tensor] | None, classes: int, pixels: int
    ) -> tuple[Tensor, Tensor] | tuple[None, None]:
        if indices is None:
            return None, None
        parts = list(indices) if isinstance(indices, tuple | list) else [indices]
        shapes = [tuple(part.shape) for part in parts if isinstance(part, Tensor) and part.dtype == torch.int64]
        if len(shapes) != 2 or shapes[0] != shapes[1] or len(shapes[0]) != 2 or shapes[0][0] != classes:
            found = ", ".join(map(kind, parts))
            raise ValueError(f"`candidate_indices` must be two int64 tensors of shape ({classes}, k), got {found}")
        for part in parts:
            if readable(part) and not bool(((part >= 0) & (part < pixels)).all()):
                raise ValueError(f"`candidate_indices` must be pixels 0 to {pixels - 1}, got {part.tolist()}")
        return indices

    def _comparable(self, labels: Tensor, present: Tensor) -> Tensor:
        """Labels with ``IGNORE`` where the class has no prototype to compare with."""
        return torch.where(present[labels.clamp_min(0)] & (labels >= 0), labels, functional.IGNORE)

    def _negatives(self, logits: Tensor, labels: Tensor, present: Tensor, keys: Tensor) -> Tensor:
        negatives = functional.all_negatives(labels, present)
        if not self.mine_prototypes:
            return negatives
        with torch.no_grad():
            if self.compat == "official":
                return functional.semi_hard_negatives_official(logits, self.hard_ratio)
            return functional.semi_hard_negatives(logits, negatives, keys, self.hard_ratio)

    def _pixel_shares(self, of_pixels: Tensor, labels: Tensor, classes: int) -> Tensor:
        """The weight of each pixel of the joined batch in the intra-view mean; they sum to at most 1."""
        similarity, keys = of_pixels[:, 0], of_pixels[:, 1]
        if not self.sample_pixels:
            return _mean_over(labels >= 0, similarity.dtype)
        if self.compat == "paper":
            times, _ = functional.sample_pixels(similarity, labels, keys, classes)
            return _mean_over(times, similarity.dtype)
        times, count = functional.sample_pixels_official(similarity, labels, keys, classes, self.hard_ratio)
        sampled = (2 * (count // 2)).clamp_min(1)[labels.clamp_min(0)]
        return times.to(similarity.dtype) / sampled / (count > 0).sum().clamp_min(1)


def _mean_over(times: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights that make a sum over pixels the mean over those that count, each as often as it does."""
    return times.to(dtype) / times.sum().clamp_min(1)
