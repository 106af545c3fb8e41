"""What the dense CRF gains by processes and by the classes present: ``python benchmarks/crf_processes.py``.

The photos and seeds are those that refinement.py keeps in ``runs/refinement``. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from wsss_contrast.files import write_atomically
from wsss_contrast.pictures import mask_image, png
from wsss_contrast.refine import DenseCRF, hard_unaries, mean_field

VOC_LABELS = 21
THRESHOLD = 0.3  # of the background; no matter for the time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=Path, default=Path("runs/refinement"), help="what refinement.py wrote")
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    paths = sorted(args.seeds.glob("*/*.pt"))[: args.photos]
    if not paths:
        raise SystemExit(f"{args.seeds}: has no seeds; run refinement.py first")
    dense_crf(paths, args.rounds, args.processes)


def report(what: str, ratios: list[float]) -> None:
    print(
        f"{what}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} rounds)",
        flush=True,
    )


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def load(paths: list[Path]) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.bool_]]]:
    for path in paths:
        sample = torch.load(path, weights_only=True)
        scores = F.pad(sample["seeds"][0].clamp(min=0), (0, 0, 0, 0, 1, 0), value=THRESHOLD)
        present = F.pad(sample["tags"][0], (1, 0), value=1.0) > 0
        yield sample["photo"][0].permute(1, 2, 0).numpy(), scores.numpy(), present.numpy()


def refine_and_write(crf: DenseCRF, paths: list[Path], out: Path) -> None:
    for path, probabilities in zip(paths, crf.stream(load(paths)), strict=True):
        write_atomically(png(mask_image(probabilities.argmax(axis=0))), out / f"{path.stem}.png")


def usual_call(paths: list[Path], out: Path) -> None:
    """All labels of VOC, whatever is on the photo."""
    for path, (photo, scores, present) in zip(paths, load(paths), strict=True):
        labels = np.where(present[:, None, None], scores, -1).argmax(axis=0)
        best = mean_field(photo, hard_unaries(labels, VOC_LABELS, 0.7)).argmax(axis=0)
        write_atomically(png(mask_image(best)), out / f"{path.stem}.png")


def dense_crf(paths: list[Path], rounds: int, processes: int) -> None:
    by_processes, by_labels, by_both = [], [], []
    with tempfile.TemporaryDirectory() as folder, DenseCRF(processes=processes) as pool:
        out, alone = Path(folder), DenseCRF()
        list(pool.stream(load(paths[: 2 * processes])))  # the processes are up
        for chunk in np.array_split(np.array(paths, object), rounds):
            some = list(chunk)
            one = seconds(lambda some=some: refine_and_write(alone, some, out))
            many = seconds(lambda some=some: refine_and_write(pool, some, out))
            few = some[:4]
            restricted = seconds(lambda few=few: refine_and_write(alone, few, out))
            usual = seconds(lambda few=few: usual_call(few, out))
            by_processes.append(one / many)
            by_labels.append(usual / restricted)
            by_both.append((usual / len(few)) / (many / len(some)))
    report(f"dense CRF, {len(paths)} photos with reading and writing, one process over {processes}", by_processes)
    report(f"dense CRF, {VOC_LABELS} labels over the classes present, one process", by_labels)
    report(f"dense CRF, {VOC_LABELS} labels in one process over the classes present in {processes}", by_both)


if __name__ == "__main__":
    main()
