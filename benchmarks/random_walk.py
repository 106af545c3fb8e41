"""Seconds and peak memory of the walks of PSA and IRN on one photo of 500 x 375.

python benchmarks/random_walk.py
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import time
from collections.abc import Callable

import torch
from memory import peak_growth
from torch import Tensor

from wsss_contrast.functional import edge_affinity, feature_affinity, random_walk


def psa(maps: Tensor) -> Callable[[], Tensor]:
    """From 448 features; beta 8, 256 steps."""
    features = torch.randn(1, 448, *maps.shape[2:])
    return lambda: random_walk(maps, feature_affinity(features))


def irn(maps: Tensor) -> Callable[[], Tensor]:
    """From boundaries; beta 10, 256 steps."""
    edges = torch.randn(1, 1, *maps.shape[2:])
    return lambda: random_walk(maps * (1 - edges.sigmoid()), edge_affinity(edges, 5, whole_map=True), beta=10)


def measure(method: Callable[[Tensor], Callable[[], Tensor]], maps: Tensor, repeats: int) -> None:
    """Print a row. In a process of its own, or memory that an earlier row gave back would not count."""
    seconds = []
    with torch.no_grad():
        method(torch.rand(1, 2, 12, 12))()  # loads the libraries
        call = method(maps)
        _, peak = peak_growth(call)
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    classes, height, width = maps.shape[1:]
    dense = 4 * (height * width) ** 2 / 2**20
    row = f"{height} x {width} | {classes} | {min(seconds):.2f} | {peak:.0f} | {dense:.0f}"
    print(f"| {method.__name__.upper()} | {row} |", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photo", type=int, nargs=2, default=(375, 500), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    print(f"| walk | map | classes | seconds | peak, MiB | one dense matrix, MiB |\n|---|---|{'---:|' * 4}", flush=True)
    for method, stride in ((psa, 8), (irn, 4)):
        height, width = (math.ceil(side / stride) for side in options.photo)
        for classes in (3, 21):  # two tags and the background, or all of VOC
            task = (method, torch.rand(1, classes, height, width), options.repeats)
            process = multiprocessing.get_context("fork").Process(target=measure, args=task)
            process.start()
            process.join()


if __name__ == "__main__":
    main()
