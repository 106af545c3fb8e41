"""Pixel-to-prototype contrast (PPC), a sentence of the paper at a time. Equation numbers are the paper's.

``compat="official"`` is what the authors' released code computes. Pixels are numbered in (image, row, column)
order, classes with the background in its place. ``None`` stands for "no class" and "no candidate". Ties go to
the lowest number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .csrm import Fifo
from .maps import normalize, resize

Labels = list[int | None]
Scores = list[list[float | None]]


def assign_pixels(foreground: Tensor, tags: Tensor, background_score: float, background: int = 0) -> Labels:
    """Eq. 4: the best of the image's tagged classes and a constant background score."""
    images, classes, height, width = foreground.shape
    labels: Labels = []
    for image in range(images):
        for row in range(height):
            for column in range(width):
                score = {_background_id(classes, background): background_score}
                for k in range(classes):
                    if tags[image, k]:
                        score[_class_id(k, background)] = foreground[image, k, row, column].item()
                labels.append(max(sorted(score), key=score.__getitem__))
    return labels


def candidate_scores(
    cams: Tensor,
    tags: Tensor,
    background_score: float,
    background: int = 0,
    compat: str = "paper",
    valid: Tensor | None = None,
) -> tuple[Labels, Scores]:
    """The class of each pixel, and for each class its candidate pixels with their certainty."""
    images, classes, height, width = cams.shape
    foreground = normalize(cams, signed=compat == "official", valid=valid)
    labels = assign_pixels(foreground, tags, background_score, background)
    scores: Scores = [[None] * len(labels) for _ in range(classes + 1)]
    pixel = 0
    for image in range(images):
        for row in range(height):
            for column in range(width):
                certainty = [foreground[image, k, row, column].item() for k in range(classes)]
                if compat == "paper":
                    certainty = [value if tags[image, k] else 0.0 for k, value in enumerate(certainty)]
                    of_background = 1 - max(certainty)
                else:
                    of_background = background_score
                for k in range(classes):
                    scores[_class_id(k, background)][pixel] = certainty[k]
                scores[_background_id(classes, background)][pixel] = of_background
                if compat == "paper":  # the candidates of a class are the pixels assigned to it
                    for c in range(classes + 1):
                        if c != labels[pixel]:
                            scores[c][pixel] = None
                pixel += 1
    return labels, scores


def top_candidates(scores: Sequence[float | None], top_k: int) -> list[int]:
    """Omega of Eq. 5: the ``top_k`` most certain candidates of one class."""
    candidates = [pixel for pixel, score in enumerate(scores) if score is not None]
    return sorted(candidates, key=lambda pixel: (-scores[pixel], pixel))[:top_k]


def prototype(candidates: list[int], scores: Sequence[float | None], vectors: Tensor) -> Tensor | None:
    """Eq. 5 for one class: the certainty-weighted mean of its candidates' features, of unit length."""
    candidates = [pixel for pixel in candidates if scores[pixel] is not None]
    if not candidates:
        return None
    total, mean = 0.0, torch.zeros_like(vectors[0])
    for pixel in candidates:
        total += scores[pixel]
        mean = mean + scores[pixel] * vectors[pixel]
    return _unit(mean / total if total != 0 else mean)


def nll(positive: Tensor, negatives: list[Tensor]) -> Tensor:
    """The negative logarithm of Eqs. 6, 7 and 9 for one pixel: similarities over the temperature."""
    return -(positive.exp() / (positive.exp() + sum(negative.exp() for negative in negatives))).log()


def semi_hard_negatives(
    similarity: Sequence[float],
    negatives: list[int],
    keys: Sequence[float],
    hard: float = 0.6,
    share: float = 0.5,
) -> list[int]:
    """Of a pixel's n negatives the ``ceil(hard n)`` most similar; of these ``floor(share n)`` by their keys.

    At least one is taken.
    """
    count = len(negatives)
    hardest = sorted(negatives, key=lambda c: (-similarity[c], c))[: math.ceil(hard * count)]
    return sorted(hardest, key=lambda c: (keys[c], c))[: max(math.floor(share * count), 1)]


def semi_hard_negatives_official(similarity: Sequence[float], hard: float = 0.6, share: float = 0.5) -> list[int]:
    """Of all classes' ``ceil(hard C)`` most similar the last ``floor(share C)``; the positive may be one."""
    ranked = sorted(range(len(similarity)), key=lambda c: (-similarity[c], c))
    last = math.ceil(hard * len(ranked))
    return ranked[last - math.floor(share * len(ranked)) : last]


def sample_pixels(pixels: list[int], similarity: Sequence[float], keys: Sequence[float]) -> list[int]:
    """Of a class's pixels a half by their keys, and the half least similar to the prototype, with repeats."""
    half = math.ceil(len(pixels) / 2)
    return sorted(pixels, key=lambda p: (keys[p], p))[:half] + sorted(pixels, key=lambda p: (similarity[p], p))[:half]


def sample_pixels_official(
    pixels: list[int], similarity: Sequence[float], keys: Sequence[float], hard: float = 0.6
) -> list[int]:
    """``n // 2`` pixels by their keys, and the ``n // 2`` before rank ``int(hard n)`` by rising similarity.

    ``hard`` is at least 0.5.
    """
    half, last = len(pixels) // 2, int(hard * len(pixels))
    ranked = sorted(pixels, key=lambda p: (similarity[p], p))
    return sorted(pixels, key=lambda p: (keys[p], p))[:half] + ranked[last - half : last]


def prototype_contrast(
    source_embeddings: Tensor,
    source_cams: Tensor,
    target_embeddings: Tensor,
    target_cams: Tensor,
    tags: Tensor,
    *,
    draws: tuple[Tensor, Tensor],
    source_valid: Tensor | None = None,
    target_valid: Tensor | None = None,
    candidate_indices: tuple[Tensor, Tensor] | None = None,
    temperature: float = 0.1,
    top_k: int | None = None,
    background: int | None = None,
    background_score: float = 0.2,
    cross_prototype_weight: float = 0.1,
    cross_cam_weight: float = 0.1,
    intra_view_weight: float = 0.1,
    mine_prototypes: bool = True,
    sample_pixels: bool = True,
    hard_ratio: float = 0.6,
    compat: str = "paper",
    memory: Fifo | None = None,
    train: bool = True,
) -> dict[str, Tensor]:
    """Eqs. 6, 7 and 9 of both views, with their weights.

    The arguments are those of the library's ``PrototypeContrast``. ``draws`` are random numbers, (2, P) for
    the pixels and (2, P, C) for the prototypes: the lowest are taken. ``memory`` has prototypes of past steps; with
    ``train`` those of this one are put to them.
    """
    height, width = target_embeddings.shape[2:]
    if top_k is None:
        top_k = max(height * width // 8, 1) if compat == "official" else 32
    embeddings, labels, banks = [], [], []
    for view, (maps, cams, valid) in enumerate(
        [(source_embeddings, source_cams, source_valid), (target_embeddings, target_cams, target_valid)]
    ):
        vectors = _pixels(resize(maps, height, width))
        unit = [_unit(vector) for vector in vectors]
        if background == 0:
            cams = cams[:, 1:]
        elif background == -1:
            cams = cams[:, :-1]
        cams = resize(cams.detach(), height, width)
        classes, scores = candidate_scores(cams, tags, background_score, background or 0, compat, valid)
        if valid is not None:
            for pixel, taken in enumerate(valid.flatten().tolist()):
                if not taken:
                    classes[pixel] = None
                    for of_class in scores:
                        of_class[pixel] = None
        averaged = [vector.detach() for vector in (vectors if compat == "official" else unit)]
        bank = []
        for c, of_class in enumerate(scores):
            best = top_candidates(of_class, top_k) if candidate_indices is None else candidate_indices[view][c].tolist()
            bank.append(prototype(best, of_class, averaged) if averaged else None)
        embeddings.append(unit)
        labels.append(classes)
        banks.append(bank)
    if memory is not None:
        remembered = [_unit(sum(rows) / len(rows)) if rows else None for rows in memory.rows]
        for bank in banks:
            for c, of_batch in enumerate(bank):
                if of_batch is None:
                    bank[c] = remembered[c]
                elif train:
                    memory.push(of_batch, c)

    zero = 0 * (source_embeddings.sum() + target_embeddings.sum())
    terms = {"cross_prototype": [], "cross_cam": [], "intra_view": []}
    for view in (0, 1):
        other = 1 - view
        terms["cross_prototype"].append(zero + _cross(embeddings[view], banks[other], labels[view], temperature))
        both = [label if labels[view][pixel] is not None else None for pixel, label in enumerate(labels[other])]
        terms["cross_cam"].append(zero + _cross(embeddings[view], banks[view], both, temperature))
        intra = _intra(
            embeddings[view],
            banks[view],
            labels[view],
            temperature,
            draws[0][view].tolist(),
            draws[1][view].tolist(),
            mine_prototypes,
            sample_pixels,
            hard_ratio,
            compat,
        )
        terms["intra_view"].append(zero + intra)
    weights = {
        "cross_prototype": cross_prototype_weight,
        "cross_cam": cross_cam_weight,
        "intra_view": intra_view_weight,
    }
    views = 2 if compat == "official" else 1  # the paper adds the two views (Eq. 8), the released code averages them
    return {name: weights[name] * (a + b) / views for name, (a, b) in terms.items() if weights[name] > 0}


def _cross(embeddings: list[Tensor], bank: list[Tensor | None], labels: Labels, temperature: float) -> Tensor | float:
    """Eqs. 6 and 7: the mean over the pixels whose class has a prototype."""
    losses = []
    for embedding, label in zip(embeddings, labels, strict=True):
        if label is not None and bank[label] is not None:
            negatives = [embedding @ p / temperature for c, p in enumerate(bank) if p is not None and c != label]
            losses.append(nll(embedding @ bank[label] / temperature, negatives))
    return _mean(losses)


def _intra(
    embeddings: list[Tensor],
    bank: list[Tensor | None],
    labels: Labels,
    temperature: float,
    pixel_keys: list[float],
    prototype_keys: list[list[float]],
    mine_prototypes: bool,
    with_sampling: bool,
    hard_ratio: float,
    compat: str,
) -> Tensor | float:
    """Eq. 9, with semi-hard prototype mining and hard pixel sampling."""
    losses: dict[int, Tensor] = {}
    similarity: dict[int, float] = {}
    of_class: dict[int, list[int]] = {}
    for pixel, label in enumerate(labels):
        if label is None or bank[label] is None:
            continue
        absent = torch.zeros_like(embeddings[pixel])
        logits = [embeddings[pixel] @ (absent if p is None else p) / temperature for p in bank]
        values = [logit.item() for logit in logits]
        negatives = [c for c, p in enumerate(bank) if p is not None and c != label]
        if mine_prototypes and compat == "paper":
            negatives = semi_hard_negatives(values, negatives, prototype_keys[pixel], hard_ratio)
        elif mine_prototypes:
            negatives = semi_hard_negatives_official(values, hard_ratio)
        losses[pixel] = nll(logits[label], [logits[c] for c in negatives])
        similarity[pixel] = values[label]
        of_class.setdefault(label, []).append(pixel)
    if not with_sampling:
        return _mean(list(losses.values()))
    if compat == "paper":
        chosen = [p for pixels in of_class.values() for p in sample_pixels(pixels, similarity, pixel_keys)]
        return _mean([losses[pixel] for pixel in chosen])
    means = []
    for pixels in of_class.values():
        chosen = sample_pixels_official(pixels, similarity, pixel_keys, hard_ratio)
        means.append(_mean([losses[pixel] for pixel in chosen]))
    return _mean(means)


def _mean(values: Sequence[Tensor | float]) -> Tensor | float:
    return sum(values) / len(values) if values else 0.0


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.square().sum().sqrt().clamp_min(1e-12)


def _pixels(maps: Tensor) -> list[Tensor]:
    images, _, height, width = maps.shape
    return [maps[n, :, row, column] for n in range(images) for row in range(height) for column in range(width)]


def _class_id(k: int, background: int) -> int:
    return k + 1 if background == 0 else k


def _background_id(foreground_classes: int, background: int) -> int:
    return 0 if background == 0 else foreground_classes
