"""CSRM's contrast class by class, in the structure that the specification describes for the released code, repaired.

Each class: its new keys are joined to its whole memory, of which the last rows stay; the memory is copied and drawn
from; masks gather its pixels; the queries meet a block of their positive and negatives in one cosine similarity. The
benchmark measures against this reading, with the released constants; the tests hold it to the pixel-wise one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrast(
    embeddings: Tensor,
    teacher: Tensor,
    logits: Tensor,
    labels: Tensor,
    tags: Tensor,
    labeled: Tensor,
    share: float,
    memory: list[Tensor],
    capacities: list[int],
    queries: int = 256,
    negatives: int = 50,
    temperature: float = 0.5,
    low_rank: int = 3,
    high_rank: int = 6,
    query_confidence: float = 0.3,
    negative_confidence: float = 1.0,
    generator: torch.Generator | None = None,
    draws: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The loss; ``memory``, rows (n, D) for each class, is changed in place.

    Args:
        embeddings: (N, D, h, w).
        teacher: (N, D, h, w).
        logits: (N, C, h, w) of the teacher.
        labels: (N, h, w) ids, 255 for none.
        tags: (N, K).
        labeled: (N,) bool.
        share: alpha.
        memory: one tensor a class.
        capacities: most rows of each class.
        queries: a class.
        negatives: a query.
        temperature: tau.
        low_rank: gamma_l.
        high_rank: gamma_h, counted from 1 and included.
        query_confidence: that a query exceeds.
        negative_confidence: that a negative stays below.
        generator: of the draws.
        draws: numbers (C, Q) and (C, Q n) in [0, 1) instead.
    """
    classes = logits.shape[1]
    with torch.no_grad():
        probabilities = logits.softmax(dim=1)
        entropy = -(probabilities * (probabilities + 1e-10).log()).sum(dim=1)
        low, high = labels != 255, labels != 255
        if not labeled.all():
            of_unlabeled = entropy[~labeled]
            low = torch.where(labeled[:, None, None], low, entropy < torch.quantile(of_unlabeled, share))
            high = torch.where(labeled[:, None, None], high, entropy >= torch.quantile(of_unlabeled, 1 - share))
        by_pixel = probabilities.permute(0, 2, 3, 1)
        order = by_pixel.sort(dim=-1, descending=True, stable=True).indices
    student_rows, teacher_rows = embeddings.permute(0, 2, 3, 1), teacher.detach().permute(0, 2, 3, 1)

    present, prototypes, candidates = [], [], []
    for index in range(classes):
        own = labels == index
        reliable = own & low
        among_low = (order[..., :low_rank] == index).any(dim=-1)
        among_next = (order[..., low_rank:high_rank] == index).any(dim=-1)
        absent = torch.zeros_like(labeled) if index == 0 else tags[:, index - 1] == 0
        of_labeled = among_low & ~own
        of_unlabeled = (among_low & absent[:, None, None]) | among_next
        chosen = torch.where(labeled[:, None, None], of_labeled, of_unlabeled)
        chosen = chosen & high & (probabilities[:, index] < negative_confidence)
        memory[index] = torch.cat([memory[index], teacher_rows[chosen]])[-capacities[index] :]
        if reliable.any():
            present.append(index)
            prototypes.append(teacher_rows[reliable].mean(dim=0))
            candidates.append(student_rows[reliable & (probabilities[:, index] > query_confidence)])

    total = (embeddings * 0).sum()
    if len(present) <= 1:
        return total
    for index, prototype, of_class in zip(present, prototypes, candidates, strict=True):
        rows = memory[index].clone()
        if len(of_class) == 0 or len(rows) == 0:
            continue
        if draws is None:
            query = torch.randint(len(of_class), (queries,), generator=generator)
            place = torch.randint(len(rows), (queries * negatives,), generator=generator)
        else:
            query, place = (draws[0][index] * len(of_class)).long(), (draws[1][index] * len(rows)).long()
        drawn = rows[place].view(queries, negatives, -1)
        block = torch.cat([prototype.expand(queries, 1, -1), drawn], dim=1)
        similarity = torch.cosine_similarity(of_class[query][:, None], block, dim=2) / temperature
        total = total + F.cross_entropy(similarity, torch.zeros(queries, dtype=torch.long))
    return total / len(present)
