"""CSRM's losses, memory, mixing and schedules, a pixel and a class at a time. Equation numbers are the paper's.

Where the released code differs, an argument has its value too. Class 0 is the background, 255 is no label. Pixels are
numbered in (image, row, column) order; ties go to the lowest id.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .maps import resize

VOID = 255


def pixels(maps: Tensor) -> list[Tensor]:
    """The vectors of (N, C, h, w) maps, in order."""
    images, _, height, width = maps.shape
    return [maps[n, :, row, column] for n in range(images) for row in range(height) for column in range(width)]


# Classification, Eq. 5 on logits.


def soft_margin(cams: Tensor, tags: Tensor, smoothing: float = 0.0) -> Tensor:
    images, classes, height, width = cams.shape
    total = 0 * cams.sum()
    for n in range(images):
        for k in range(classes):
            z = sum(cams[n, k].flatten()) / (height * width)
            t = (1 - smoothing) * float(tags[n, k]) + smoothing * 0.5
            total = total - t * torch.log(1 / (1 + torch.exp(-z))) - (1 - t) * torch.log(1 / (1 + torch.exp(z)))
    return total / max(images * classes, 1)


# Cross-entropy.


def cross_entropy(logits: Tensor, target: Sequence[float], smoothing: float) -> Tensor:
    """Of one pixel, to a distribution over classes."""
    norm = torch.log(sum(torch.exp(z - logits.max()) for z in logits)) + logits.max()
    classes = len(logits)
    loss = 0 * logits.sum()
    for c in range(classes):
        share = (1 - smoothing) * target[c] + smoothing / classes
        loss = loss + share * (norm - logits[c])
    return loss


def one_hot(label: int, classes: int) -> list[float]:
    return [1.0 if c == label else 0.0 for c in range(classes)]


def mean(values: Sequence[Tensor], like: Tensor) -> Tensor:
    """Of nothing, 0 with a graph."""
    return sum(values) / len(values) if values else 0 * like.sum()


def reliable_segmentation(logits: Tensor, labels: Tensor, smoothing: float = 0.0, per_image: bool = True) -> Tensor:
    """Eqs. 6 and 7. An image without foreground is dropped. Labels are ids, or distributions (all 0 for none)."""
    classes = logits.shape[1]
    logits = resize(logits, *labels.shape[-2:])
    of_images = []
    for n in range(len(logits)):
        losses, foreground = [], False
        for row in range(labels.shape[-2]):
            for column in range(labels.shape[-1]):
                if labels.is_floating_point():
                    target = [float(x) for x in labels[n, :, row, column]]
                    counted, best = sum(target) > 0, target.index(max(target))
                else:
                    best = int(labels[n, row, column])
                    target, counted = one_hot(best, classes), best != VOID
                if counted:
                    foreground = foreground or best != 0
                    losses.append(cross_entropy(logits[n, :, row, column], target, smoothing))
        if foreground:
            of_images.append(losses)
    if per_image:
        return mean([sum(losses) / len(losses) for losses in of_images], logits)
    return mean([loss for losses in of_images for loss in losses], logits)


def tag_probabilities(logits: Tensor, tags: Tensor | None) -> Tensor:
    """The softmax; with tags, times the tags with the background's 1, and normalised again."""
    images, _, height, width = logits.shape
    result = torch.zeros_like(logits)
    for n in range(images):
        for row in range(height):
            for column in range(width):
                vector = logits[n, :, row, column]
                share = torch.exp(vector - vector.max()) / torch.exp(vector - vector.max()).sum()
                if tags is not None:
                    share = share * torch.tensor([1.0, *map(float, tags[n])], dtype=share.dtype)
                result[n, :, row, column] = share / share.sum()
    return result


def confident_labels(probabilities: Tensor, confidence: float) -> Tensor:
    """Eq. 8: the best class, 255 where it is not more probable than sigma."""
    images, _, height, width = probabilities.shape
    labels = []
    for vector in pixels(probabilities):
        values = vector.tolist()
        best = max(values)
        labels.append(values.index(best) if best > confidence else VOID)
    return torch.tensor(labels, dtype=torch.long).reshape(images, height, width)


def activation_consistency(cams: Tensor, background: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Eq. 9: raw maps behind the student's background logit, which is a constant."""
    size = labels.shape[-2:]
    logits = torch.cat([resize(background.detach(), *size), resize(cams, *size)], dim=1)
    losses = [
        cross_entropy(vector, one_hot(label, len(vector)), smoothing)
        for vector, label in zip(pixels(logits), labels.flatten().tolist(), strict=True)
        if label != VOID
    ]
    return mean(losses, cams)


# Entropy.


def entropy(probabilities: Tensor) -> Tensor:
    images, _, height, width = probabilities.shape
    values = [sum(-float(p) * math.log(float(p) + 1e-10) for p in vector) for vector in pixels(probabilities)]
    return torch.tensor(values, dtype=probabilities.dtype).reshape(images, height, width)


def percentile(values: Sequence[float], share: float) -> float:
    """With linear interpolation between neighbours in order; inf of nothing."""
    if not values:
        return math.inf
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def weak_to_strong(logits: Tensor, labels: Tensor, entropies: Tensor, share: float, normalizer: str = "kept") -> Tensor:
    """Eqs. 10 to 12. ``"all"`` divides by the kept pixels twice: the mean over them, times all over kept."""
    logits = resize(logits, *labels.shape[-2:])
    label, e = labels.flatten().tolist(), entropies.flatten().tolist()
    threshold = percentile([x for x, y in zip(e, label, strict=True) if y != VOID], 1 - share)
    kept = [i for i in range(len(label)) if label[i] != VOID and e[i] < threshold]
    vectors = pixels(logits)
    result = mean([cross_entropy(vectors[i], one_hot(label[i], len(vectors[i])), 0.0) for i in kept], logits)
    return result * len(label) / len(kept) if normalizer == "all" and kept else result


# The contrast, Sec. 3.4.


def nearest(labels: Tensor, height: int, width: int) -> Tensor:
    images, rows, columns = labels.shape
    result = torch.zeros(images, height, width, dtype=labels.dtype)
    for n in range(images):
        for i in range(height):
            for j in range(width):
                result[n, i, j] = labels[n, (i * rows) // height, (j * columns) // width]
    return result


def rank(probabilities: Sequence[float], index: int) -> int:
    """The place of a class among all, from the most probable; the first is 0."""
    order = sorted(range(len(probabilities)), key=lambda c: (-probabilities[c], c))
    return order.index(index)


class Pixel(NamedTuple):
    """What decides the part of one pixel."""

    probabilities: list[float]
    label: int
    labeled: bool
    low: bool
    high: bool
    tags: list[bool]


def describe(logits: Tensor, labels: Tensor, tags: Tensor, labeled: Tensor, share: float) -> list[Pixel]:
    """The entropy thresholds are over the unlabelled images; in labelled ones every pixel with a label passes both."""
    _, _, height, width = logits.shape
    probabilities = tag_probabilities(logits, None)
    label = nearest(labels, height, width).flatten().tolist()
    e = entropy(probabilities).flatten().tolist()
    image = [pixel // (height * width) for pixel in range(len(label))]
    unlabeled = [e[pixel] for pixel in range(len(label)) if not labeled[image[pixel]]]
    lowest, highest = percentile(unlabeled, share), percentile(unlabeled, 1 - share)
    result = []
    for pixel, vector in enumerate(pixels(probabilities)):
        n = image[pixel]
        if labeled[n]:
            low = high = label[pixel] != VOID
        else:
            low, high = e[pixel] < lowest, e[pixel] >= highest
        of_image = [True, *(bool(tag) for tag in tags[n])]
        result.append(Pixel(vector.tolist(), label[pixel], bool(labeled[n]), low, high, of_image))
    return result


def is_negative(
    pixel: Pixel,
    index: int,
    low_rank: int = 3,
    high_rank: int = 6,
    high_rank_included: bool = False,
    confidence: float = 0.01,
    own_class: bool = False,
) -> bool:
    """Ranks count from 1 here. Own rule for labelled images; the paper has none and the released code's is taken."""
    place = rank(pixel.probabilities, index) + 1
    if not pixel.high or not pixel.probabilities[index] < confidence:
        return False
    if pixel.labeled:
        return place <= low_rank and pixel.label != index
    if pixel.label == index and not own_class:
        return False
    last = high_rank if high_rank_included else high_rank - 1
    return (place <= low_rank and not pixel.tags[index]) or low_rank < place <= last


class Fifo:
    """The last rows of each class."""

    def __init__(self, capacities: Sequence[int]) -> None:
        self.capacities = list(capacities)
        self.rows: list[list[Tensor]] = [[] for _ in capacities]

    def push(self, row: Tensor, index: int) -> None:
        self.rows[index].append(row)
        if len(self.rows[index]) > self.capacities[index]:
            self.rows[index].pop(0)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b) / (a.square().sum().sqrt().clamp_min(1e-8) * b.square().sum().sqrt().clamp_min(1e-8))


def info_nce(query: Tensor, positive: Tensor, negatives: Sequence[Tensor], temperature: float) -> Tensor:
    """Eq. 13 for one query."""
    of_positive = torch.exp(cosine(query, positive) / temperature)
    return -torch.log(of_positive / (of_positive + sum(torch.exp(cosine(query, n) / temperature) for n in negatives)))


def contrast(
    embeddings: Tensor,
    teacher: Tensor,
    logits: Tensor,
    labels: Tensor,
    tags: Tensor,
    labeled: Tensor,
    share: float,
    memory: Fifo,
    of_queries: Tensor,
    of_negatives: Tensor,
    temperature: float = 0.5,
    query_confidence: float = 0.3,
    class_mean: str = "all",
    train: bool = True,
    **negatives: Any,
) -> Tensor:
    """L_m. ``of_queries`` (C, Q) and ``of_negatives`` (C, Q n), in [0, 1), choose among candidates and rows."""
    classes = logits.shape[1]
    described = describe(logits, labels, tags, labeled, share)
    students, teachers = pixels(embeddings), [vector.detach() for vector in pixels(teacher)]
    if train:
        for index in range(classes):
            for pixel, row in zip(described, teachers, strict=True):
                if is_negative(pixel, index, **negatives):
                    memory.push(row, index)
    reliable = [
        [i for i, pixel in enumerate(described) if pixel.low and pixel.label == index] for index in range(classes)
    ]
    present = [index for index in range(classes) if reliable[index]]
    total = 0 * embeddings.sum()
    if len(present) <= 1:
        return total
    for index in present:
        prototype = sum(teachers[i] for i in reliable[index]) / len(reliable[index])
        candidates = [i for i in reliable[index] if described[i].probabilities[index] > query_confidence]
        rows = memory.rows[index]
        if not candidates or not rows:
            continue
        queries = of_queries.shape[1]
        each = of_negatives.shape[1] // queries
        for q in range(queries):
            query = students[candidates[int(of_queries[index, q] * len(candidates))]]
            drawn = [rows[int(u * len(rows))] for u in of_negatives[index, q * each : (q + 1) * each]]
            total = total + info_nce(query, prototype, drawn, temperature) / queries
    return total / (classes if class_mean == "all" else len(present))


# The total, Eq. 14.

EPOCHS, WARMUP = 15, 1


def schedule(epoch: int, compat: str) -> dict[str, float]:
    """sigma, lambda and alpha at an epoch of 15, the first for warming up."""
    rising = 0.1 + 0.9 * max(epoch - WARMUP, 0) / (EPOCHS - WARMUP)
    on = 0.0 if epoch < WARMUP else 1.0
    return {
        "confidence": rising if compat == "paper" else 0.5,
        "seg_to_cam": on * (1.0 if compat == "paper" else rising),
        "weak_to_strong": on,
        "contrast": on,
        "unreliable": 0.2 * (1 - epoch / EPOCHS),
    }


def terms(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    plain_logits: Tensor,
    labels: Tensor,
    tags: Tensor,
    original_tags: Tensor,
    labeled: int,
    epoch: int,
    compat: str,
    memory: Fifo,
    of_queries: Tensor,
    of_negatives: Tensor,
) -> dict[str, Tensor]:
    """The weighted terms. ``student`` and ``teacher``: activation maps, segmentation, embeddings."""
    now = schedule(epoch, compat)
    official = compat == "official"
    smoothing = 0.1 if official else 0.0
    size = labels.shape[-2:]
    plain = tag_probabilities(plain_logits, tags if official else None)
    of_teacher = confident_labels(plain, -1.0)
    large = resize(student[1], *size)
    entropies = entropy(tag_probabilities(resize(teacher[1][labeled:], *size), None))
    contrasted = contrast(
        student[2],
        teacher[2],
        teacher[1],
        torch.cat([labels[:labeled], of_teacher[labeled:]]),
        original_tags if official else tags,
        torch.tensor([n < labeled for n in range(len(tags))]),
        now["unreliable"],
        memory,
        of_queries,
        of_negatives,
        class_mean="present" if official else "all",
        high_rank_included=official,
        confidence=1.0 if official else 0.01,
        own_class=official,
    )
    supervised = reliable_segmentation(large[:labeled], labels[:labeled], smoothing, per_image=not official)
    followed = confident_labels(plain, now["confidence"])
    consistent = weak_to_strong(
        large[labeled:], of_teacher[labeled:], entropies, now["unreliable"], "all" if official else "kept"
    )
    return {
        "classification": soft_margin(student[0], tags, smoothing),
        "segmentation": supervised,
        "seg_to_cam": now["seg_to_cam"] * activation_consistency(student[0], large[:, :1], followed, smoothing),
        "weak_to_strong": now["weak_to_strong"] * consistent,
        "contrast": now["contrast"] * contrasted,
    }


# ClassMix.


def classes_of(labels: Tensor) -> list[int]:
    return sorted({int(label) for label in labels.flatten()} - {VOID})


def mix(
    images: Tensor,
    tags: Tensor,
    labels: Tensor,
    logits: Tensor,
    onto: Sequence[int],
    sources: Sequence[int],
    chosen: Sequence[Sequence[int]],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Result n: image ``onto[n]`` with the regions of ``chosen[n]`` of image ``sources[n]``, both as they were."""
    result = [x[list(onto)].clone() for x in (images, tags, labels, logits)]
    for n, (source, classes) in enumerate(zip(sources, chosen, strict=True)):
        for row in range(labels.shape[1]):
            for column in range(labels.shape[2]):
                if int(labels[source, row, column]) in classes:
                    result[0][n, :, row, column] = images[source, :, row, column]
                    result[2][n, row, column] = labels[source, row, column]
                    result[3][n, :, row, column] = logits[source, :, row, column]
        for c in classes:
            if c != 0:
                result[1][n, c - 1] = 1
    return tuple(result)


def pasted_count(labels: Tensor) -> int:
    """How many classes of an image the paste policy takes: half of the foreground's, at least one if there is any."""
    count = len([c for c in classes_of(labels) if c != 0])
    return max(count // 2, 1) if count else 0


def cyclic_count(labels: Tensor) -> int:
    """The original's: half of all classes, the background counted, rounded down."""
    count = len(classes_of(labels))
    return (count - count % 2) // 2
