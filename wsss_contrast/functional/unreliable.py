"""The contrast of unreliable pixels: CSRM (VISAPP 2025), after U2PL and ReCo. Equation numbers are CSRM's.

P pixels are numbered in the order (image, row, column). C counts the background, which is class 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK = 2**20  # elements that are gathered at a time on a CPU: they stay in its cache


def among_highest(probabilities: Tensor, *counts: int) -> list[Tensor]:
    """Which classes are among the most probable ones of each pixel: of (P, C) a (P, C) bool for each count.

    Ties go to the lowest id.
    """
    classes = probabilities.shape[1]
    highest = probabilities.topk(min(max(counts), classes), dim=1).values if max(counts) > 0 else probabilities
    found = []
    for count in counts:
        if not 0 < count < classes:
            found.append(torch.full_like(probabilities, count > 0, dtype=torch.bool))
            continue
        last = highest[:, count - 1, None]
        above, equal = probabilities > last, probabilities == last
        room = count - above.sum(dim=1, keepdim=True)
        found.append(above | (equal & (equal.cumsum(dim=1) <= room)))
    return found


def negative_candidates(
    probabilities: Tensor,
    labels: Tensor,
    tags: Tensor,
    labeled: Tensor,
    unreliable: Tensor,
    low_rank: int,
    high_rank: int,
    confidence: float,
    own_class: bool = False,
) -> Tensor:
    """The pixels that serve as negatives of each class.

    Of the unlabelled images: unreliable pixels where the class is among the ``low_rank`` most probable though the
    image is not tagged with it, or where its rank is from ``low_rank`` + 1 to ``high_rank`` (the first is 1). Of the
    labelled images, where the paper has no rule, as the released code: pixels with a label of another class for which
    the class is among the ``low_rank`` most probable. Its probability is below ``confidence`` everywhere.

    Args:
        probabilities: (P, C) of the teacher.
        labels: (P,) ids, 255 for none.
        tags: (P, C) bool, the tags of each pixel's image, with the background.
        labeled: (P,) bool, pixels of the labelled images.
        unreliable: (P,) bool: the pixels of high entropy, and the labelled images' pixels with a label.
        low_rank: gamma_l.
        high_rank: gamma_h.
        confidence: the share below which a class is improbable.
        own_class: a pixel of an unlabelled image may be a negative of the class of its own label.

    Returns:
        (P, C) bool.
    """
    low, high = among_highest(probabilities, low_rank, high_rank)
    other = labels[:, None] != torch.arange(probabilities.shape[1], device=labels.device)
    of_unlabeled = torch.where(low, ~tags, high)
    if not own_class:
        of_unlabeled &= other
    chosen = torch.where(labeled[:, None], low & other, of_unlabeled)
    return chosen & unreliable[:, None] & (probabilities < confidence)


def choose(candidates: Tensor, numbers: Tensor) -> Tensor:
    """The candidates of given numbers: the pixel of the n-th candidate of each class.

    Args:
        candidates: (P, C) bool.
        numbers: (C, Q), from 0.

    Returns:
        (C, Q) pixels, in [0, P). Without meaning where there are not so many.
    """
    counted = candidates.t().contiguous().cumsum(dim=1, dtype=torch.int32)
    return torch.searchsorted(counted, numbers.int() + 1).clamp_max(len(candidates) - 1)


def class_sums(features: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over members of each class: features (N, D, h, w), members (N, C, h, w) bool to (C, D), and counts (C,)."""
    # Image by image: a sum over both dimensions at once would copy the features into another order.
    sums = torch.bmm(members.flatten(2).to(features.dtype), features.flatten(2).mT).sum(dim=0)
    return sums, members.sum(dim=(0, 2, 3))


class _GatherPixels(torch.autograd.Function):
    """Its gradient is scattered row by row, which indexing of channel-first features would do number by number."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, pixels: Tensor) -> Tensor:
        ctx.save_for_backward(pixels)
        ctx.shape = features.shape
        area = features.shape[2] * features.shape[3]
        return features.flatten(2)[pixels // area, :, pixels % area]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (pixels,) = ctx.saved_tensors
        images, channels, height, width = ctx.shape
        gradient = grad_outputs[0].new_zeros(images * height * width, channels)
        gradient.index_add_(0, pixels, grad_outputs[0])
        return gradient.view(images, height, width, channels).movedim(-1, 1), None


def gather_pixels(features: Tensor, pixels: Tensor) -> Tensor:
    """The features (Q, D) of some pixels (Q,), of features (N, D, h, w)."""
    rows: Tensor = _GatherPixels.apply(features, pixels)
    return rows


class _InfoNCE(torch.autograd.Function):
    """The loss of each query, and its gradient in the same pass: the negatives are gathered once and never kept."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, positives: Tensor, rows: Tensor, places: Tensor, temperature: float
    ) -> Tensor:
        count, dim = places.shape[1], rows.shape[1]
        logits = queries.new_empty(len(queries), 1 + count)
        logits[:, 0] = (queries * positives).sum(dim=1)
        gradients = torch.empty_like(queries)
        chunk = max(_CHUNK // (count * dim), 1) if rows.device.type == "cpu" else max(len(queries), 1)
        buffer = rows.new_empty(min(chunk, len(queries)) * count, dim)  # one for all: new pages cost more than the copy
        for start in range(0, len(queries), chunk):
            part = slice(start, start + chunk)
            of_part = queries[part]
            taken = torch.index_select(rows, 0, places[part].flatten(), out=buffer[: len(of_part) * count])
            negatives = taken.to(queries.dtype).view(len(of_part), count, dim)
            logits[part, 1:] = torch.bmm(negatives, of_part[:, :, None])[:, :, 0]
            share = (logits[part] / temperature).softmax(dim=1)
            torch.bmm(share[:, None, 1:], negatives, out=gradients[part, None])
            gradients[part].addcmul_(share[:, :1] - 1, positives[part])
        logits /= temperature
        losses = logits.logsumexp(dim=1) - logits[:, 0]
        ctx.save_for_backward(gradients.div_(temperature))
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradients,) = ctx.saved_tensors
        return gradients * grad_outputs[0][:, None], None, None, None, None


def info_nce(queries: Tensor, positives: Tensor, rows: Tensor, places: Tensor, temperature: float) -> Tensor:
    r"""The InfoNCE loss of each query against negatives in a memory (Eq. 13).

    .. math::

        \ell_q = -\log \frac{\exp(\cos(q, p) / \tau)}{\exp(\cos(q, p) / \tau) + \sum_n \exp(\cos(q, k_n) / \tau)}

    All vectors come with unit length. Gradient flows through the queries only; there is no second derivative.

    Args:
        queries: (Q, D).
        positives: (Q, D), each query's prototype.
        rows: (M, D), the memory, of any floating type.
        places: (Q, n), each query's negatives in it.
        temperature: tau.

    Returns:
        (Q,).
    """
    nll: Tensor = _InfoNCE.apply(queries, positives.detach(), rows.detach(), places, temperature)
    return nll
