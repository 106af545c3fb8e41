"""What each refiner makes of the seeds of SEAM + PPC on photographs: ``python benchmarks/refinement.py``.

Trains SEAM + PPC once (see photographs.py), keeps its seeds, refines them with each refiner in a process of its own,
and prints mIoU, seconds a photo and peak memory. Everything is a file in ``runs/refinement``; a rerun with the same
arguments continues.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory import peak_growth
from photographs import ANIMALS, animals, tables
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from wsss_contrast.comparison import train
from wsss_contrast.data import as_photos
from wsss_contrast.metrics import segmentation_scores
from wsss_contrast.pictures import write_atomically
from wsss_contrast.refine import CRF_SETTINGS, DenseCRF, Refiner, pseudo_labels, refiner

SPLITS = ("train", "val")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=310)
    parser.add_argument("--crop-size", type=int, default=224)
    parser.add_argument("--view-size", type=int, default=112)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=200, help="photos of each split, spread evenly")
    parser.add_argument("--out", type=Path, default=Path("runs/refinement"))
    args = parser.parse_args()

    threshold = seeds(args)
    print("| refiner | train | val | seconds a photo (quartiles) | peak memory, MiB |")
    print("|---|---:|---:|---:|---:|")
    distinct = {settings: name for name, settings in reversed(CRF_SETTINGS.items())}.values()
    sets = [f"crf:{name}" for name in reversed(list(distinct))]
    for name in ("none", "par", *sets, "crf:psa background 4", "crf:eps background 8"):
        path = args.out / f"{name.replace(':', '_').replace(' ', '_')}.json"
        if not path.is_file():
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
                found = fresh.submit(refined, name, args.out, threshold).result()
            write_atomically(json.dumps(found).encode(), path)
        found = json.loads(path.read_text())
        low, middle, high = statistics.quantiles(found["seconds"], n=4)
        print(
            f"| {name} | {found['train']:.1f} | {found['val']:.1f} | {middle:.3f} ({low:.3f} to {high:.3f}) "
            f"| {found['memory']:.0f} |",
            flush=True,
        )


def seeds(args: argparse.Namespace) -> float:
    """Write each photo with its seeds; return the background threshold that was chosen on the training photos."""
    wanted = {name: value for name, value in vars(args).items() if name != "out"}
    record, done = args.out / "arguments.json", args.out / "seeds.json"
    if not any(args.out.glob("*")):
        write_atomically(json.dumps(wanted).encode(), record)
    known = json.loads(record.read_text()) if record.is_file() else None
    if known != wanted:
        raise SystemExit(f"{args.out}: has results of {known or 'unknown arguments'}; give another --out")
    if done.is_file():
        return float(json.loads(done.read_text())["threshold"])
    common = {"num_classes": len(ANIMALS), "weights": "offline", "output_stride": 16, "scales": [1.0]}
    method = tables(args.crop_size, args.view_size, common)[5]["SEAM + PPC"]
    data = animals("train_mini", args.crop_size, args.seed)
    weights = args.out / "seam_ppc.pt"
    if weights.is_file():
        module = method(args.seed)[0]
        module.load_state_dict(torch.load(weights, weights_only=True))
    else:
        module = train(method, data, args.steps, args.seed)
        content = io.BytesIO()
        torch.save(module.state_dict(), content)
        write_atomically(content.getvalue(), weights)
    data.setup("validate")
    module.eval()
    metric = module.first_metric
    for split in SPLITS:
        dataset = data.val_sets[split]
        for index in np.linspace(0, len(dataset) - 1, min(args.images, len(dataset))).round().astype(int):
            sample = dataset[int(index)]
            image, tags = sample["image"][None], sample["tags"][None]
            with torch.no_grad():
                maps = module.seeds(image, tags)
            if split == "train":
                metric.update(maps, sample["mask"][None])
            path = args.out / split / f"{sample['name']}.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"photo": as_photos(image), "seeds": maps, "tags": tags, "mask": sample["mask"]}, path)
    curve = metric.compute()
    threshold = float(curve.thresholds[curve.best])
    write_atomically(json.dumps({"threshold": threshold}).encode(), done)
    return threshold


def power_background(crf: DenseCRF, power: int) -> Refiner:
    """A refiner that scores the background by ``(1 - max) ** power``, as PSA and EPS do, not by the threshold."""

    def refine(photos: Tensor, scores: Tensor, present: Tensor) -> Tensor:
        foreground = scores[:, 1:]
        background = (1 - foreground.amax(dim=1, keepdim=True)) ** power
        return crf(photos, torch.cat([background, foreground], dim=1), present)

    return refine


def refined(name: str, out: Path, threshold: float) -> dict[str, Any]:
    """Scores, seconds for each photo, and by how much the process grows for a photo, for a refiner by name."""
    torch.set_num_threads(1)
    kind, _, settings = name.partition(":")
    if kind == "crf":
        settings, _, power = settings.partition(" background ")
        crf = DenseCRF(settings)  # in this process, to be measured
        refine: Refiner | None = power_background(crf, int(power)) if power else crf
    else:
        refine = refiner(name)
    found: dict[str, Any] = {"seconds": [], "memory": 0.0}
    for split in SPLITS:
        confusion = MulticlassConfusionMatrix(len(ANIMALS) + 1, ignore_index=255)
        for path in sorted((out / split).glob("*.pt")):
            sample = torch.load(path, weights_only=True)

            def timed(of: Any = sample) -> tuple[Tensor, float]:
                began = time.perf_counter()
                labels = pseudo_labels(of["photo"], of["seeds"], of["tags"], threshold, refine=refine)
                return labels, time.perf_counter() - began

            (labels, seconds), memory = peak_growth(timed)
            found["seconds"].append(seconds)
            found["memory"] = max(found["memory"], memory)
            confusion.update(labels, sample["mask"][None])
        found[split] = 100 * segmentation_scores(confusion.compute()).miou
    return found


if __name__ == "__main__":
    main()
