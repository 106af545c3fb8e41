"""The bytes that the losses exchange in a step, counted and by formula: ``python benchmarks/gathered_bytes.py``.

Starts 2 and 3 gloo processes. Each takes a step of every loss, forward and backward, on batches of different sizes,
and counts what the collectives carry where they reach PyTorch's dispatcher. The first table has what a rank receives,
by formula and counted; the second has the formulas at the papers' sizes, beside the reduction of the gradients. Exits
with 1 if a count is not what its formula says.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from wsss_contrast import losses
from wsss_contrast.metrics import SeedMIoU
from wsss_contrast.nn import ClassMemoryBank, TimmBackbone

PROTOTYPES = "8*C*k*(D + 1) + 8 + 24*P"
WEAK_TO_STRONG = "16 + 8*L"
UNRELIABLE = "16 + 8*P + 4*R*(D + C) + 4*C*(D + 1) + 8*C + 4*C*Q*(1 + M)"
FORMULAS = {
    "PrototypeContrast": PROTOTYPES,
    "PrototypeContrast, without mining and sampling": PROTOTYPES,
    "PrototypeContrast, official": PROTOTYPES,
    "PrototypeContrast, with a memory": f"{PROTOTYPES} + 8 + 4*R*(D + C)",
    "UnreliablePixelContrast": UNRELIABLE,
    "UnreliablePixelContrast, memory in float16": UNRELIABLE.replace("4*R", "2*R"),
    "WeakToStrong": WEAK_TO_STRONG,
    "WeakToStrong, official": f"{WEAK_TO_STRONG} + 16",
    "ReliableSegmentation": "8",
    "ActivationConsistency": "8",
    "CSRMLoss": f"{UNRELIABLE} + {WEAK_TO_STRONG} + 16",
    "PatchTokenContrast": "16",
    "AttentionAffinity": "16",
    "SemanticAffinity": "24",
    "InterPixelRelations": "40",
    "EquivariantRegularization": "0",
    "EquivariantCrossRegularization": "0",
    "MinPooling": "0",
    "MultilabelSoftMargin": "0",
    "PuzzleReconstruction": "0",
    "SaliencyLoss": "0",
    "SeedMIoU, at the end of a validation": "24 + 8*C*(C - 1)*(T + 1)",
}
"""The bytes that a rank gives to each other one, in float32; it receives as many of each. docs/scaling.md names the
letters."""

SIDE = 8  # of the maps; labels and the source view have twice that
SIZES = {"C": 6, "D": 16, "k": SIDE**2 // 8, "Q": 5, "M": 3, "T": 7}
MOST_IMAGES = 4
PAPERS = {
    "PrototypeContrast, 128 channels": ("PrototypeContrast", {"C": 21, "D": 128, "k": 32, "P": 8 * 16**2}),
    "PrototypeContrast, 256 channels": ("PrototypeContrast", {"C": 21, "D": 256, "k": 32, "P": 8 * 16**2}),
    "PrototypeContrast, 128 channels, with a memory": (
        "PrototypeContrast, with a memory",
        {"C": 21, "D": 128, "k": 32, "P": 8 * 16**2, "R": 2 * 21},
    ),
    "WeakToStrong": ("WeakToStrong", {"L": 8 * 512**2}),
    **{
        f"UnreliablePixelContrast, {share} pushed": (
            "UnreliablePixelContrast",
            {"C": 21, "D": 256, "P": 16 * 128**2, "Q": 50, "M": 256, "R": rows},
        )
        for share, rows in (("no pixel", 0), ("a tenth of the pixels", 16 * 128**2 // 10), ("every pixel", 16 * 128**2))
    },
}
"""VOC: 20 classes and the background. PPC: 8 photos a rank, a target view of 128 px at stride 8. CSRM: 8 + 8 photos of
512 px, maps at stride 4."""
BACKBONES = ("resnet38d", "resnet101", "resnest269e")
RANKS = (2, 4, 8, 16, 64)


def by_formula(name: str, sizes: dict[str, int]) -> int:
    return int(eval(FORMULAS[name], {}, sizes))  # what is printed is what is held


class Counter(TorchDispatchMode):
    """Counts the bytes that this process gives to each other one, and those that it receives of all."""

    def __init__(self) -> None:
        super().__init__()
        self.gives = self.receives = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d" and func.__name__ != "barrier.default":  # which carries nothing of ours
            if func.__name__ != "allgather_.default":
                raise NotImplementedError(f"no rule for what {func} carries")
            outputs, inputs = args[:2]
            self.gives += sum(map(_bytes, inputs))
            self.receives += sum(_bytes(x) for parts in outputs for x in parts) - sum(map(_bytes, inputs))
        return func(*args, **(kwargs or {}))


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def steps(images: int) -> dict[str, Callable[[], Any]]:
    """A step of each loss on random inputs of so many images."""
    channels, foreground, width, unlabeled = SIZES["C"], SIZES["C"] - 1, SIZES["D"], images - images // 2
    few = {"queries": SIZES["Q"], "negatives": SIZES["M"]}
    tags = torch.eye(foreground, dtype=torch.long)[torch.arange(images) % (foreground)]

    def maps(number: int, side: int = SIDE, of: int = images) -> Tensor:
        return (3 * torch.randn(of, number, side, side)).requires_grad_()

    def labels(side: int = SIDE, of: int = images) -> Tensor:
        return torch.randint(0, channels, (of, side, side))

    def memory(dtype: torch.dtype = torch.float32) -> ClassMemoryBank:
        return ClassMemoryBank(channels, width, capacity=20, background_capacity=20, dtype=dtype)

    def prototypes(**options: Any) -> Any:
        source = maps(width, 2 * SIDE), maps(foreground, 2 * SIDE)
        return losses.PrototypeContrast(**{"top_k": SIZES["k"]} | options)(*source, maps(width), maps(foreground), tags)

    def unreliable(**options: Any) -> Tensor:
        loss = losses.UnreliablePixelContrast(channels, width, **few, bank=memory(**options))
        labeled = torch.arange(images) >= unlabeled
        return loss(maps(width), maps(width), maps(channels), labels(2 * SIDE), tags, labeled, 0.3)

    def weak_to_strong(**options: Any) -> Tensor:
        entropy = torch.rand(unlabeled, 2 * SIDE, 2 * SIDE)
        return losses.WeakToStrong(**options)(maps(channels, of=unlabeled), labels(2 * SIDE, unlabeled), entropy, 0.3)

    def csrm() -> Any:
        student, teacher = (losses.CSRMMaps(maps(foreground), maps(channels), maps(width)) for _ in range(2))
        loss = losses.CSRMLoss(channels, width, contrast=few, bank=memory())
        return loss(student, teacher, maps(channels, 2 * SIDE), labels(2 * SIDE), tags, images - unlabeled, 0.5)

    def seeds() -> Any:
        metric = SeedMIoU(foreground, [n / SIZES["T"] for n in range(SIZES["T"])])
        metric.update(maps(foreground), labels())
        return metric.compute().miou

    return {
        "PrototypeContrast": prototypes,
        "PrototypeContrast, without mining and sampling": lambda: prototypes(
            mine_prototypes=False, sample_pixels=False
        ),
        "PrototypeContrast, official": lambda: prototypes(compat="official", top_k=None),
        "PrototypeContrast, with a memory": lambda: prototypes(bank=memory()),
        "UnreliablePixelContrast": unreliable,
        "UnreliablePixelContrast, memory in float16": lambda: unreliable(dtype=torch.float16),
        "WeakToStrong": weak_to_strong,
        "WeakToStrong, official": lambda: weak_to_strong(normalizer="all"),
        "ReliableSegmentation": lambda: losses.ReliableSegmentation()(maps(channels), labels()),
        "ActivationConsistency": lambda: losses.ActivationConsistency()(maps(foreground), maps(1), labels()),
        "CSRMLoss": csrm,
        "PatchTokenContrast": lambda: losses.PatchTokenContrast()(maps(width), labels()),
        "AttentionAffinity": lambda: losses.AttentionAffinity()(maps(1, SIDE**2)[:, 0], labels()),
        "SemanticAffinity": lambda: losses.SemanticAffinity(2)(maps(width), labels()),
        "InterPixelRelations": lambda: losses.InterPixelRelations(2)(maps(1), maps(2), labels()),
        "EquivariantRegularization": lambda: losses.EquivariantRegularization()(
            maps(foreground, 2 * SIDE), maps(foreground), tags
        ),
        "EquivariantCrossRegularization": lambda: losses.EquivariantCrossRegularization()(
            maps(foreground, 2 * SIDE), maps(channels, 2 * SIDE), maps(foreground), maps(channels), tags
        ),
        "MinPooling": lambda: losses.MinPooling()(maps(foreground), tags),
        "MultilabelSoftMargin": lambda: losses.MultilabelSoftMargin()(maps(foreground), tags),
        "PuzzleReconstruction": lambda: losses.PuzzleReconstruction()(maps(foreground), maps(foreground), tags),
        "SaliencyLoss": lambda: losses.SaliencyLoss()(maps(channels), tags, torch.rand(images, 1, SIDE, SIDE)),
        "SeedMIoU, at the end of a validation": seeds,
    }


def count(rank: int, world: int, folder: str) -> None:
    """One process: for each loss what it gave and received, and how many rows it pushed, to a file."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    found = {}
    for name, step in steps(MOST_IMAGES - rank).items():
        pushes = mock.patch.object(ClassMemoryBank, "push", autospec=True, side_effect=ClassMemoryBank.push)
        with pushes as push, Counter() as counter:
            result = step()
            total = sum(result.values()) if isinstance(result, dict) else result
            if total.requires_grad:
                total.backward()
        rows = sum(int(call.args[2].any(dim=1).sum()) for call in push.call_args_list)  # of a class
        found[name] = {"gives": counter.gives, "receives": counter.receives, "rows": rows}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def counted(world: int) -> list[dict[str, dict[str, int]]]:
    """What each of so many processes counted."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(count, args=(world, folder), nprocs=world)
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(world)]


def expected(name: str, ranks: Sequence[dict[str, dict[str, int]]]) -> int:
    """What a rank gives by the formula, at the sizes of the rank that has the most."""
    largest = {
        "P": MOST_IMAGES * SIDE**2,
        "L": (MOST_IMAGES - MOST_IMAGES // 2) * (2 * SIDE) ** 2,
        "R": max(rank[name]["rows"] for rank in ranks),
    }
    return by_formula(name, SIZES | largest)


def compare(results: dict[int, list[dict[str, dict[str, int]]]]) -> tuple[list[str], list[str]]:
    """The table of what a rank receives, by line, and the counts that are wrong."""
    worlds = "".join(f" by formula, {world} ranks | counted |" for world in results)
    lines, wrong = [f"| loss | a rank gives, bytes |{worlds}", "|---|---|" + "---:|" * 2 * len(results)], []
    for name, formula in FORMULAS.items():
        cells = ""
        for world, ranks in results.items():
            gives = expected(name, ranks)
            receives = sorted({rank[name]["receives"] for rank in ranks})
            cells += f" {(world - 1) * gives:,} | {' / '.join(f'{number:,}' for number in receives)} |"
            for number, rank in enumerate(ranks):
                found, told = (rank[name]["gives"], rank[name]["receives"]), (gives, (world - 1) * gives)
                if found != told:
                    wrong.append(f"{name}: of {world} ranks number {number} gave and received {found}, not {told}")
        lines.append(f"| {name} | `{formula}` |{cells}")
    return lines, wrong


def at_the_papers_sizes() -> list[str]:
    """The table of what a rank receives in a step, in MB of 1,000,000 bytes, by line."""
    lines = ["| MB a step | a rank gives |" + "".join(f" {world} ranks |" for world in RANKS)]
    lines.append("|---|---:|" + "---:|" * len(RANKS))
    rows = {name: (by_formula(*of), [float(world - 1) for world in RANKS]) for name, of in PAPERS.items()}
    for name in BACKBONES:
        with torch.device("meta"):
            network = TimmBackbone(name, weights=None, output_stride=None)
        gradients = 4 * sum(p.numel() for p in network.parameters())
        rows[f"gradients of {name}"] = gradients, [2 * (world - 1) / world for world in RANKS]  # in a ring
    for name, (gives, times) in rows.items():
        lines.append(f"| {name} | {gives / 1e6:.2f} |" + "".join(f" {gives * number / 1e6:,.1f} |" for number in times))
    return lines


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", choices=(2, 3), default=[2, 3])
    options = parser.parse_args(args)
    lines, wrong = compare({world: counted(world) for world in options.processes})
    print("\n".join([*lines, "", *at_the_papers_sizes()]))
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
