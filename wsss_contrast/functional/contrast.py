"""Pixel-to-prototype contrast, PPC (Du et al., CVPR 2022). Equation numbers are that paper's.

A *view* has N images with h x w pixels, in total P = N h w pixels in the order (image, row, column). Labels are class
ids, with ``IGNORE`` (-1) for pixels that take no part. C counts the background.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .cross_supervision import class_masks
from .maps import best_class, full_precision, mask_by_tags, normalize_cams, unit, with_background

IGNORE = -1


def assign_pixels(foreground: Tensor, tags: Tensor, background_score: float, background: int = 0) -> Tensor:
    """The class of each pixel (Eq. 4): argmax over the image's tagged classes and a constant background score.

    Args:
        foreground: (N, K, h, w) normalised foreground maps, see :func:`normalize_cams`.
        tags: (N, K) multi-hot; classes that an image is not tagged with can't win.
        background_score: the score that a foreground class must exceed.
        background: index of the background in the class list, 0 (first) or -1 (last).

    Returns:
        (N, h, w) class ids in [0, K]. Ties go to the lowest id.
    """
    scores = mask_by_tags(full_precision(foreground), tags)
    constant = torch.full_like(scores[:, :1], background_score)
    return best_class(with_background(scores, constant, background))


def candidate_scores(
    cams: Tensor, tags: Tensor, background_score: float, background: int = 0, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Labels and prototype candidates as the paper has them.

    The tags mask the normalised maps. A class's candidates are the pixels assigned to it, scored by its map; the
    background, for which the paper states no map, is scored by 1 - max over the foreground (as in SEAM).

    Args:
        cams: (N, K, h, w) raw foreground maps.
        tags: (N, K) multi-hot.
        background_score: see :func:`assign_pixels`.
        background: see :func:`assign_pixels`.
        valid: (N, h, w) bool, pixels that take part; all by default.

    Returns:
        Labels (N, h, w), ``IGNORE`` where a pixel takes no part, and scores (N, C, h, w) that are -inf where it is no
        candidate of a class.
    """
    foreground = mask_by_tags(normalize_cams(cams, valid=valid), tags)
    labels = assign_pixels(foreground, tags, background_score, background)
    scores = with_background(foreground, 1 - foreground.amax(dim=1, keepdim=True), background)
    assigned = class_masks(labels, scores.shape[1])
    return _leave_out(labels, scores.masked_fill(~assigned, -math.inf), valid)


def candidate_scores_official(
    cams: Tensor, tags: Tensor, background_score: float, background: int = 0, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Labels and prototype candidates as the released code has them: every pixel is a candidate of every class.

    The tags decide the labels only; the background's score is a constant, so its candidates are all tied.
    Arguments and result as in :func:`candidate_scores`.
    """
    foreground = normalize_cams(cams, signed=True, valid=valid)
    labels = assign_pixels(foreground, tags, background_score, background)
    constant = torch.full_like(foreground[:, :1], background_score)
    return _leave_out(labels, with_background(foreground, constant, background), valid)


def _leave_out(labels: Tensor, scores: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    if valid is None:
        return labels, scores
    return labels.masked_fill(~valid, IGNORE), scores.masked_fill(~valid[:, None], -math.inf)


def top_candidates(
    features: Tensor, scores: Tensor, top_k: int, indices: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The ``top_k`` highest-scoring pixels of each class over a batch, the set Omega of Eq. 5.

    Args:
        features: (N, D, h, w).
        scores: (N, C, h, w), -inf where a pixel is no candidate.
        top_k: how many to keep; fewer where the batch has fewer pixels.
        indices: (C, k) flat pixel indices to take instead.

    Returns:
        Scores (C, k) and features (C, k, D). Ties go to the lowest pixel index.
    """
    by_class = scores.movedim(1, 0).flatten(1)
    by_pixel = features.movedim(1, -1).flatten(0, -2)
    if indices is None:
        indices = by_class.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
    return by_class.gather(1, indices), by_pixel[indices]


def merge_candidates(scores: Tensor, features: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The top candidates of a batch from those of its W parts: (W, C, k) and (W, C, k, D) to (C, k) and (C, k, D)."""
    parts, classes, k = scores.shape
    flat = scores.movedim(0, 1).reshape(classes, parts * k)
    order = flat.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
    vectors = features.movedim(0, 1).reshape(classes, parts * k, -1)
    return flat.gather(1, order), vectors.gather(1, order[..., None].expand(-1, -1, vectors.shape[-1]))


def estimate_prototypes(scores: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    r"""One prototype a class: the score-weighted mean of its candidates' features, L2-normalised (Eq. 5).

    .. math::

        p_c = \operatorname{normalize}\Big(\sum_{i \in \Omega_c} u_c(i)\, v_i \Big/ \sum_{i \in \Omega_c} u_c(i)\Big)

    Args:
        scores: (C, k), -inf for an empty place.
        features: (C, k, D).

    Returns:
        Prototypes (C, D), zeros for a class without candidates, and a (C,) bool that tells which have some.
    """
    valid = scores > -math.inf
    weights = torch.where(valid, scores, 0.0)
    total = weights.sum(dim=1, keepdim=True)
    mean = torch.einsum("ck,ckd->cd", weights / torch.where(total == 0, 1.0, total), features)
    return unit(mean, dim=1), valid.any(dim=1)


def pixel_to_prototype_nll(logits: Tensor, labels: Tensor, negatives: Tensor) -> Tensor:
    r"""The negative log-likelihood of each pixel's own prototype against its negatives (the log of Eqs. 6, 7 and 9).

    .. math::

        \ell_i = -\log \frac{\exp(v_i^\top p_{y_i} / \tau)}
        {\exp(v_i^\top p_{y_i} / \tau) + \sum_{c \in \mathcal N_i} \exp(v_i^\top p_c / \tau)}

    Args:
        logits: (P, C) similarities of pixels and prototypes, divided by the temperature.
        labels: (P,) class ids; the value at an ignored pixel has no meaning and no gradient problem.
        negatives: (P, C) bool, the prototypes in the denominator beside the positive.

    Returns:
        (P,), ``logsumexp(positive, negatives) - positive``.
    """
    positive = logits.gather(1, labels.clamp_min(0)[:, None])
    rest = logits.masked_fill(~negatives, -math.inf)
    return (torch.cat([positive, rest], dim=1).logsumexp(dim=1, keepdim=True) - positive).squeeze(1)


def all_negatives(labels: Tensor, present: Tensor) -> Tensor:
    """Every class that has a prototype, but for the pixel's own: (P,) labels and (C,) bool to (P, C) bool."""
    return present & (labels.clamp_min(0)[:, None] != torch.arange(present.shape[0], device=labels.device))


def semi_hard_negatives(
    logits: Tensor, negatives: Tensor, keys: Tensor, hard: float = 0.6, share: float = 0.5
) -> Tensor:
    """Semi-hard prototype mining: some of a pixel's most similar negatives, at random.

    Of n negatives the ``ceil(hard n)`` most similar are hard; of these ``floor(share n)``, at least one, are kept.
    The paper's "top 60 %, then 50 %" is read as shares of all negatives, as the released code's constants do (13 and
    10 of 21).

    Args:
        logits: (P, C) similarities.
        negatives: (P, C) bool, see :func:`all_negatives`.
        keys: (P, C) random numbers; the hard negatives with the lowest are kept.
        hard: share of the negatives that are hard.
        share: share of the negatives that are kept.

    Returns:
        (P, C) bool.
    """
    count = negatives.sum(dim=1, keepdim=True).double()
    is_hard = _rank(logits.masked_fill(~negatives, -math.inf), descending=True) < (hard * count).ceil()
    is_hard &= negatives
    chosen = _rank(keys.masked_fill(~is_hard, math.inf)) < (share * count).floor().clamp_min(1)
    return chosen & is_hard


def semi_hard_negatives_official(logits: Tensor, hard: float = 0.6, share: float = 0.5) -> Tensor:
    """The released code's mining: of all prototypes, the positive included, the most similar but the very hardest.

    Ranks ``ceil(hard C) - floor(share C) + 1`` to ``ceil(hard C)`` (4 to 13 of 21, counting from 1). Deterministic.

    Args:
        logits: (P, C) similarities.
        hard: share of the prototypes that are hard.
        share: share of the prototypes that are kept.
    """
    classes = logits.shape[1]
    last = math.ceil(hard * classes)
    rank = _rank(logits, descending=True)
    return (rank >= last - math.floor(share * classes)) & (rank < last)


def sample_pixels(similarity: Tensor, labels: Tensor, keys: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Hard pixel sampling: for each class, half of its pixels at random and its half least similar to the prototype.

    A pixel can be in both halves and then counts twice. A half of n pixels is ``ceil(n / 2)``, so that a single pixel
    counts.

    Args:
        similarity: (P,) similarity of each pixel to its own prototype.
        labels: (P,) class ids, ``IGNORE`` for none.
        keys: (P,) random numbers; the pixels with the lowest are the random half.
        classes: C.

    Returns:
        How often each pixel counts (P,), 0, 1 or 2, and the number of pixels of each class (C,).
    """
    similarity, labels, count, of_pixel = _class_counts(similarity, labels, classes)
    half = (of_pixel + 1) // 2
    chosen = (_rank_in_class(keys, labels) < half).long() + (_rank_in_class(similarity, labels) < half).long()
    return chosen * (labels < classes), count


def sample_pixels_official(
    similarity: Tensor, labels: Tensor, keys: Tensor, classes: int, hard: float = 0.6
) -> tuple[Tensor, Tensor]:
    """The released code's sampling: half at random, and a semi-hard half that leaves out the very hardest.

    Of n pixels each half has ``n // 2``; the semi-hard half ends at rank ``floor(hard n)`` by rising similarity.
    Arguments and result as in :func:`sample_pixels`.
    """
    similarity, labels, count, of_pixel = _class_counts(similarity, labels, classes)
    half = of_pixel // 2
    last = (of_pixel.double() * hard).floor().long()
    rank = _rank_in_class(similarity, labels)
    chosen = (_rank_in_class(keys, labels) < half).long() + ((rank >= last - half) & (rank < last)).long()
    return chosen * (labels < classes), count


def _class_counts(similarity: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Detached similarities, labels with ``IGNORE`` as an extra class, pixels a class, and the same for each pixel."""
    labels = torch.where(labels < 0, classes, labels)
    count = _count(labels, classes + 1)
    return similarity.detach(), labels, count[:classes], count[labels]


def _count(labels: Tensor, classes: int) -> Tensor:
    return torch.zeros(classes, dtype=torch.long, device=labels.device).scatter_add_(0, labels, torch.ones_like(labels))


def _rank(values: Tensor, descending: bool = False) -> Tensor:
    """The place of each value in its row, 0 for the first; ties by lowest index."""
    order = values.sort(dim=1, descending=descending, stable=True).indices
    places = torch.arange(values.shape[1], device=values.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def _rank_in_class(values: Tensor, labels: Tensor) -> Tensor:
    """The place of each pixel among the pixels of its class, by rising value; ties by lowest index."""
    by_value = values.sort(stable=True).indices
    by_class = labels[by_value].sort(stable=True)
    order = by_value[by_class.indices]
    places = torch.arange(values.shape[0], device=values.device)
    first = torch.searchsorted(by_class.values, by_class.values)
    return torch.empty_like(order).scatter_(0, order, places - first)
