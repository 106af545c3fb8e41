"""Speed of CSRM's contrast against a reading of it class by class: ``python benchmarks/csrm_speed.py``.

Batch 8, 21 classes, maps of 64 x 64, 256 channels, full memories, 256 queries with 50 negatives each, forward and
backward, two threads; interleaved runs. The reading, ``tests/literal/csrm_contrast.py``, has the structure of the
released code with its defects repaired. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.literal import csrm_contrast as literal
from wsss_contrast.losses import CSRM_PRESETS, ContrastDraws, UnreliablePixelContrast
from wsss_contrast.nn import ClassMemoryBank

IMAGES, CLASSES, SIDE, DIM, SHARE = 8, 21, 64, 256, 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ours, theirs = calls()
    values = [call() for call in (ours, theirs)]
    difference = float((values[0] - values[1]).abs().max() / values[1].abs().max())
    print(f"gradients differ by {difference:.1e} of the largest")
    times: dict[str, list[float]] = {"ours": [], "reading": []}
    for _ in range(args.rounds):
        for name, call in (("ours", ours), ("reading", theirs)):
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    for name, seconds in times.items():
        print(f"{name}: {statistics.median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f})")
    ratios = [b / a for a, b in zip(times["ours"], times["reading"], strict=True)]
    print(f"ratio: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} rounds)")


def calls() -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """A step of ours and one of the reading, on the same inputs; each gives its gradient."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    embeddings = normal(IMAGES, DIM, SIDE, SIDE).requires_grad_()
    teacher = normal(IMAGES, DIM, SIDE, SIDE)
    labels = torch.randint(0, CLASSES, (IMAGES, SIDE, SIDE), generator=generator)
    # A teacher that is sure of most pixels' labels.
    logits = (2 * normal(IMAGES, CLASSES, SIDE, SIDE)).scatter_add_(
        1, labels[:, None], torch.full((IMAGES, 1, SIDE, SIDE), 4.0)
    )
    tags = (torch.rand(IMAGES, CLASSES - 1, generator=generator) < 0.2).float()
    labeled = torch.arange(IMAGES) < IMAGES // 2
    options = CSRM_PRESETS["official"]["contrast"]
    bank = ClassMemoryBank(CLASSES, DIM)
    loss = UnreliablePixelContrast(CLASSES, DIM, **options, bank=bank)
    per_class = options["queries"], options["queries"] * options["negatives"]
    draws = ContrastDraws(*(torch.rand(CLASSES, count, generator=generator) for count in per_class))
    memory = []
    for index, capacity in enumerate(bank.capacities):
        rows = torch.nn.functional.normalize(normal(capacity, DIM))
        members = torch.zeros(capacity, CLASSES, dtype=torch.bool)
        members[:, index] = True
        bank.push(rows, members)
        memory.append(rows.clone())

    def ours() -> Tensor:
        value = loss(embeddings, teacher, logits, labels, tags, labeled, SHARE, draws=draws)
        return torch.autograd.grad(value, embeddings)[0]

    def theirs() -> Tensor:
        value = literal.contrast(
            *(embeddings, teacher, logits, labels, tags, labeled, SHARE, memory, list(bank.capacities)),
            draws=(draws.queries, draws.negatives),
        )
        return torch.autograd.grad(value, embeddings)[0]

    return ours, theirs


if __name__ == "__main__":
    main()
