"""The dense CRF in PyTorch against ``pydensecrf2``: ``python benchmarks/dense_crf.py``.

On photographs, 21 labels a photo: the truth in blocks of 16 px, right with a probability of 0.7. How far apart the
probabilities are, how many labels agree, and the time a photo, interleaved. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from memory import peak_growth
from photographs import animals
from torch import Tensor

from wsss_contrast.data import as_photos
from wsss_contrast.functional import NO_LABEL, dense_crf, hard_unaries
from wsss_contrast.refine import CRF_SETTINGS, mean_field

LABELS = 21
BLOCK = 16
FAR = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50, help="2 at least")
    parser.add_argument("--settings", nargs="+", default=["ppc", "psa", "deeplab"], choices=list(CRF_SETTINGS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch; pydensecrf2 has one")
    parser.add_argument("--device", default="cpu", help="of PyTorch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    inputs = load(args.images)
    print(f"{len(inputs)} photographs, {LABELS} labels, {args.threads} threads, {args.device}\n")
    largest = max(inputs, key=lambda pair: pair[0].numel())
    for call in (by_pydensecrf, by_torch):
        process = multiprocessing.get_context("spawn").Process(target=peak, args=(call, *largest))
        process.start()
        process.join()
    columns = ["labels that agree, at least", "largest difference", f"pixels over {FAR}, at most"]
    columns += ["pydensecrf2, s", "PyTorch, s", "ratio"]
    print(f"\n| settings | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name in args.settings:
        compare(name, inputs, torch.device(args.device))


def peak(call: Callable[..., Tensor], photo: Tensor, unaries: Tensor) -> None:
    """Print what a process grows by, in one of its own: what an earlier call gave back would not count."""
    call("ppc", photo[..., :32, :32], unaries[..., :32, :32])  # loads the libraries
    _, mebibytes = peak_growth(lambda: call("ppc", photo, unaries))
    print(f"{call.__name__}: {mebibytes:.0f} MiB on the CPU, {photo.shape[-1]} x {photo.shape[-2]} px", flush=True)


def load(images: int) -> list[tuple[Tensor, Tensor]]:
    """Photos (1, 3, H, W) and unaries (1, 21, H, W), spread evenly over the validation photos."""
    data = animals("train_mini", 224, seed=0)
    data.setup("validate")
    photos = data.val_sets["val"]
    inputs = []
    for index in np.linspace(0, len(photos) - 1, min(images, len(photos))).round().astype(int):
        sample = photos[int(index)]
        truth = sample["mask"].masked_fill(sample["mask"] == NO_LABEL, 0)
        blocks = truth[BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK]
        coarse = blocks.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        height, width = truth.shape
        labels = torch.zeros_like(truth)
        labels[: coarse.shape[0], : coarse.shape[1]] = coarse[:height, :width]
        inputs.append((as_photos(sample["image"][None]), hard_unaries(labels[None], LABELS, 0.7)))
    return inputs


def by_pydensecrf(name: str, photo: Tensor, unaries: Tensor) -> Tensor:
    return torch.from_numpy(mean_field(photo[0].permute(1, 2, 0).numpy(), unaries[0].numpy(), name))


def by_torch(name: str, photo: Tensor, unaries: Tensor) -> Tensor:
    settings = CRF_SETTINGS[name]
    kernels = settings.bilateral, settings.gaussian
    return dense_crf(photo, unaries, *kernels, settings.iterations, settings.rows_first)[0].cpu()


def timed(call: Callable[..., Tensor], *args: object) -> tuple[Tensor, float]:
    began = time.perf_counter()
    result = call(*args)
    return result, time.perf_counter() - began


def compare(name: str, inputs: list[tuple[Tensor, Tensor]], device: torch.device) -> None:
    by_torch(name, *(tensor.to(device) for tensor in inputs[0]))  # the device is up
    apart, far, agree, times = 0.0, 0.0, 1.0, []
    for photo, unaries in inputs:
        theirs, their_time = timed(by_pydensecrf, name, photo, unaries)
        ours, our_time = timed(by_torch, name, photo.to(device), unaries.to(device))
        apart = max(apart, float((ours - theirs).abs().max()))
        far = max(far, float(((ours - theirs).abs().amax(dim=0) > FAR).float().mean()))
        agree = min(agree, float((ours.argmax(dim=0) == theirs.argmax(dim=0)).float().mean()))
        times.append((their_time, our_time))
    low, ratio, high = statistics.quantiles([theirs / ours for theirs, ours in times], n=4)
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    print(
        f"| `{name}` | {100 * agree:.3f} % | {apart:.1e} | {100 * far:.3f} % | {medians[0]:.3f} | {medians[1]:.3f} "
        f"| {ratio:.2f} ({low:.2f} to {high:.2f}) |",
        flush=True,
    )


if __name__ == "__main__":
    main()
