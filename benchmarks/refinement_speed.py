"""Speed and memory of refinement and inference, as ratios: ``python benchmarks/refinement_speed.py``.

The photos and seeds are those that refinement.py keeps in ``runs/refinement``. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from memory import peak_growth
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.literal import tensors
from wsss_contrast.files import write_atomically
from wsss_contrast.functional import pixel_affinity, propagate
from wsss_contrast.modules import CAM
from wsss_contrast.pictures import mask_image, png
from wsss_contrast.refine import DenseCRF, hard_unaries, mean_field, multi_scale_cams

VOC_LABELS = 21
THRESHOLD = 0.3  # of the background; no matter for the time
DILATIONS = (1, 2, 4, 8, 12, 24)


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
    pixel_adaptive(paths[0], args.rounds)
    multi_scale(args.rounds)


def report(what: str, ratios: list[float]) -> None:
    print(
        f"{what}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} rounds)",
        flush=True,
    )


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


# --- dense CRF


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


# --- pixel-adaptive refinement


def par_inputs(path: Path) -> tuple[Tensor, Tensor]:
    torch.set_num_threads(1)
    photo = torch.load(path, weights_only=True)["photo"]
    return pixel_affinity(photo), torch.rand(
        1, VOC_LABELS, *photo.shape[2:], generator=torch.Generator().manual_seed(0)
    )


def par_peak(path: Path, sliced: bool) -> float:
    """MiB that a process grows by in one step."""
    affinity, maps = par_inputs(path)
    step = propagate if sliced else tensors.pixel_adaptive
    return peak_growth(lambda: step(maps, affinity, DILATIONS, 1))[1]


def pixel_adaptive(path: Path, rounds: int) -> None:
    threads = torch.get_num_threads()
    affinity, maps = par_inputs(path)
    whole = tensors.pixel_adaptive(maps, affinity, DILATIONS, 5)
    difference = (propagate(maps, affinity, DILATIONS, 5) - whole).abs().max()
    ratios = []
    for _ in range(rounds):
        taken = seconds(lambda: tensors.pixel_adaptive(maps, affinity, DILATIONS, 5))
        ratios.append(taken / seconds(lambda: propagate(maps, affinity, DILATIONS, 5)))
    torch.set_num_threads(threads)
    size = f"{VOC_LABELS} classes at {maps.shape[-1]} x {maps.shape[-2]}"
    report(f"PAR, {size}, time of the whole tensor over the sliced form", ratios)
    peaks = []
    for sliced in (False, True):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            peaks.append(fresh.submit(par_peak, path, sliced).result())
    print(f"PAR, memory: {peaks[0]:.0f} MiB over {peaks[1]:.0f} MiB; largest difference {float(difference):.1e}")


# --- multi-scale inference


def multi_scale(rounds: int, batch: int = 8) -> None:
    module = CAM(20, weights=None).eval().to(memory_format=torch.channels_last)
    images, tags = torch.randn(batch, 3, 240, 320), torch.ones(batch, 20)

    def together() -> None:
        multi_scale_cams(module.seed_maps, images, tags)

    def apart() -> None:
        for index in range(batch):
            multi_scale_cams(module.seed_maps, images[index : index + 1], tags[index : index + 1])

    together()
    ratios = [seconds(apart) / seconds(together) for _ in range(rounds)]
    report(f"multi-scale inference, images a second, batches of {batch} over one at a time", ratios)


if __name__ == "__main__":
    main()
