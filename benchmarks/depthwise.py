"""Depthwise convolutions in float32 or in bf16 where a backbone learns on a CPU: ``python benchmarks/depthwise.py``.

Forward and backward of EfficientNet-Lite0 at output stride 16, interleaved; medians, and the ratio with its quartiles.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext
from unittest import mock

import torch

from wsss_contrast.nn import TimmBackbone, backbone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--crop-size", type=int, default=192)
    args = parser.parse_args()
    network = TimmBackbone(weights=None).to(memory_format=torch.channels_last)
    images = torch.randn(8, 3, args.crop_size, args.crop_size).contiguous(memory_format=torch.channels_last)

    def step() -> float:
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            last, _ = network(images)
        last.float().square().mean().backward()
        return time.perf_counter() - began

    step()
    float32, bfloat16 = [], []
    for _ in range(args.rounds):
        float32.append(step())
        with mock.patch.object(backbone, "_DepthwiseInFloat32", nullcontext):
            bfloat16.append(step())
    ratios = [slow / fast for fast, slow in zip(float32, bfloat16, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"float32 {statistics.median(float32):.3f} s, bf16 {statistics.median(bfloat16):.3f} s", end=", ")
    print(f"ratio {middle:.2f} ({low:.2f} to {high:.2f}), {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
