"""What refiners make of a method's seeds on photographs: ``python benchmarks/refinement.py --method "SEAM + PPC"``.

Trains the method (see photographs.py and csrm_photographs.py), keeps its seeds, refines them with each refiner in a
process of its own, and prints mIoU, seconds a photo and peak memory. ``psa`` and ``irn`` first learn from the labels of
the training photos, and walk for 2 to the power of 8 steps, ``psa:6`` of 6, ``irn:6 above 0.2`` with what of the scores
is above 0.2; for ``sepl``, superpixels stand in for the segments. Everything is a file in ``runs/refinement`` or
``runs/weights``; a rerun with the same arguments continues.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import csrm_photographs
import lightning as L
import numpy as np
import torch
from memory import peak_growth
from photographs import ANIMALS, animals, data_root, tables
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from wsss_contrast import __version__
from wsss_contrast.callbacks import MaskWriter
from wsss_contrast.comparison import Kept, train
from wsss_contrast.data import SegmentFolder, as_photos
from wsss_contrast.files import write_atomically
from wsss_contrast.metrics import THRESHOLDS, SeedCurve, SeedMIoU, segmentation_scores
from wsss_contrast.modules import CAM, CSRM, SEAM, AffinityNet, IRNet, PairModule
from wsss_contrast.refine import CRF_SETTINGS, SEPL, DenseCRF, Refiner, label_maker, pseudo_labels, refiner

SPLITS = ("train", "val")
SUPERPIXELS = Path(__file__).parents[1] / "examples" / "superpixel_masks.py"
WALKS: dict[str, tuple[type[PairModule], int]] = {"psa": (AffinityNet, 8), "irn": (IRNet, 3)}
"""The modules of the walks, and their papers' epochs."""


def main() -> None:
    distinct = {settings: name for name, settings in reversed(CRF_SETTINGS.items())}.values()
    sets = [f"crf:{name}" for name in reversed(list(distinct))]
    names = ["none", "par", *sets, "crf:psa background 4", "crf:eps background 8"]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=("SEAM", "SEAM + PPC", "CSRM"), default="SEAM + PPC")
    parser.add_argument("--refiners", nargs="+", default=names, help="crf, psa, psa:LOGT, irn, sepl, ...")
    parser.add_argument("--steps", type=int, default=310, help="of SEAM")
    parser.add_argument("--crop-size", type=int, default=224, help="of SEAM and of the walks' networks")
    parser.add_argument("--view-size", type=int, default=112, help="of SEAM")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=200, help="photos of each split, spread evenly")
    parser.add_argument("--out", type=Path, default=Path("runs/refinement"))
    parser.add_argument("--weights", type=Path, default=Path("runs/weights"), help="for checkpoints of the methods")
    args = parser.parse_args()
    args.out = args.out / f"{args.method.lower().replace(' + ', '_')}_{args.seed}"

    threshold = seeds(args)
    print("| refiner | train | val | threshold | seconds a photo (quartiles) | peak memory, MiB |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in args.refiners:
        path = args.out / f"{name.replace(':', '_').replace(' ', '_')}.json"
        if not path.is_file():
            made = ready(name, args)
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
                found = fresh.submit(refined, made, args.out, threshold).result()
            write_atomically(json.dumps(found).encode(), path)
        for row in shown(name, json.loads(path.read_text()), threshold):
            print(row, flush=True)


def shown(name: str, found: dict[str, Any], threshold: float) -> list[str]:
    """The rows of a refiner: with the seeds' threshold, and with its own where that is another."""
    low, middle, high = statistics.quantiles(found["seconds"], n=4)
    cost = f"{middle:.3f} ({low:.3f} to {high:.3f}) | {found['memory']:.0f} |"
    rows = [f"| {name} | {found['train']:.1f} | {found['val']:.1f} | {threshold:.2f} | {cost}"]
    own = found.get("own")
    if own and own["threshold"] != threshold:
        rows.append(f"| the same | {own['train']:.1f} | {own['val']:.1f} | {own['threshold']:.2f} | | |")
    return rows


def method(args: argparse.Namespace) -> Kept[CAM]:
    """The method whose seeds are refined."""
    if args.method == "CSRM":
        csrm = csrm_photographs.rows(csrm_photographs.arguments(["--weights", str(args.weights)]))["CSRM"]
        assert isinstance(csrm, Kept)
        return csrm
    common = {"num_classes": len(ANIMALS), "weights": "offline", "output_stride": 16, "scales": [1.0]}
    of_settings = f"{args.out.name}_{args.steps}_{args.crop_size}_{args.view_size}"
    return Kept(
        tables(args.crop_size, args.view_size, common)["5"][args.method],
        args.weights / of_settings,
        lambda made, seed: train(made, animals("train_mini", args.crop_size, seed), args.steps, seed),
    )


def trained(args: argparse.Namespace) -> CAM:
    """The method's module with what it has learnt."""
    kind = CSRM if args.method == "CSRM" else SEAM
    module: CAM = kind.load_from_checkpoint(method(args).checkpoint(args.seed), map_location="cpu", weights_only=True)
    return module.eval()


def seeds(args: argparse.Namespace) -> float:
    """Write each photo with its seeds; return the background threshold that was chosen on the training photos."""
    wanted = {name: value for name, value in vars(args).items() if name not in ("out", "weights", "refiners")}
    wanted["version"] = __version__
    record, done = args.out / "arguments.json", args.out / "seeds.json"
    if not any(args.out.glob("*")):
        write_atomically(json.dumps(wanted).encode(), record)
    known = json.loads(record.read_text()) if record.is_file() else None
    if known != wanted:
        raise SystemExit(f"{args.out}: has results of {known or 'unknown arguments'}; give another --out")
    if done.is_file():
        return float(json.loads(done.read_text())["threshold"])
    module = trained(args)
    data = animals("train_mini", args.crop_size, args.seed)
    data.setup("validate")
    metric = SeedMIoU(len(ANIMALS))
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
    threshold = THRESHOLDS[curve.best]
    write_atomically(json.dumps({"threshold": threshold}).encode(), done)
    return threshold


def ready(name: str, args: argparse.Namespace) -> str:
    """What the refiner needs is made; returns it as :func:`~wsss_contrast.refine.refiner` takes it."""
    walked, above, floor = name.partition(" above ")
    kind, _, logt = walked.partition(":")
    if kind in WALKS:
        made = ":".join([kind, *([logt] if logt else []), str(walk(kind, args).checkpoint(args.seed))])
        return made + above + floor
    if name.endswith("sepl"):
        return f"{name}:{superpixels(args.out)}"
    return name


def walk(name: str, args: argparse.Namespace) -> Kept[PairModule]:
    """The network of a walk, which learns from labels of all training photos that its method makes of the seeds."""
    labels, (kind, epochs) = args.out / f"{name}_labels", WALKS[name]
    make_data = partial(animals, "train_mini", args.crop_size, args.seed)

    def train_alone(made: Any, seed: int) -> None:
        module = trained(args)
        chosen = seeds(args)  # IRN's thresholds are a third and twice of what is best for its maps
        made_by = f"irn:{chosen / 3:.2f}:{min(2 * chosen, 0.99):.2f}" if name == "irn" else name
        module.make_labels, module.refine = label_maker(made_by), DenseCRF(name)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        L.Trainer(callbacks=[MaskWriter(str(labels))], **quiet).predict(module, make_data(predict_split="train_mini"))
        data = make_data(labels=str(labels))
        data.setup("fit")
        train(made, data, epochs * len(data.train_dataloader()), seed)

    return Kept(lambda _seed: (kind(weights="offline"), []), args.out / name, train_alone)


def superpixels(out: Path) -> Path:
    """The folder of segments of the photos with seeds."""
    photos, segments = out / "photos", out / "segments"
    for path in (path for split in SPLITS for path in (out / split).glob("*.pt")):
        link = photos / f"{path.stem}.jpg"
        link.parent.mkdir(exist_ok=True)
        if not link.is_symlink():
            link.symlink_to((data_root() / "JPEGImages" / link.name).resolve())
    subprocess.run([sys.executable, SUPERPIXELS, photos, segments], check=True, stdout=subprocess.DEVNULL)
    return segments


def power_background(crf: DenseCRF, power: int) -> Refiner:
    """A refiner that scores the background by ``(1 - max) ** power``, as PSA and EPS do, not by the threshold."""

    def refine(photos: Tensor, scores: Tensor, present: Tensor) -> Tensor:
        foreground = scores[:, 1:]
        background = (1 - foreground.amax(dim=1, keepdim=True)) ** power
        return crf(photos, torch.cat([background, foreground], dim=1), present)

    return refine


class Above:
    """A walk that gets only what of the classes' scores is above a floor."""

    keeps_constants = True

    def __init__(self, refine: Refiner, floor: float) -> None:
        self.refine, self.floor = refine, floor

    def __call__(self, photos: Tensor, scores: Tensor, present: Tensor) -> Tensor:
        classes = (scores[:, 1:] - self.floor).clamp(min=0)
        return self.refine(photos, torch.cat([scores[:, :1], classes], dim=1), present)


def by_name(name: str) -> Refiner | None:
    """A refiner that works in this process, to be measured."""
    name, _, floor = name.partition(" above ")
    if floor:
        walk = refiner(name)
        assert walk is not None
        return Above(walk, float(floor))
    kind, _, settings = name.partition(":")
    if kind == "crf+sepl":
        return SEPL(SegmentFolder(settings), before=DenseCRF("ppc"))
    if kind != "crf":
        return refiner(name)
    settings, _, power = settings.partition(" background ")
    crf = DenseCRF(settings or "ppc")
    return power_background(crf, int(power)) if power else crf


def refined(name: str, out: Path, threshold: float) -> dict[str, Any]:
    """mIoU, seconds for each photo, and by how much the process grows for a photo.

    Where a threshold can be chosen after the refiner, ``own`` has the one that is best for the training photos.
    """
    torch.set_num_threads(1)
    refine = by_name(name)
    sweeps = getattr(refine, "keeps_constants", False)
    found: dict[str, Any] = {"seconds": [], "memory": 0.0}
    curves: dict[str, SeedCurve] = {}
    for split in SPLITS:
        confusion, metric = MulticlassConfusionMatrix(len(ANIMALS) + 1, ignore_index=255), SeedMIoU(len(ANIMALS))
        for path in sorted((out / split).glob("*.pt")):
            sample = torch.load(path, weights_only=True)
            scores: list[Tensor] = []

            def recorded(photos: Tensor, of: Tensor, present: Tensor, kept: list[Tensor] = scores) -> Tensor:
                assert refine is not None
                kept.append(refine(photos, of, present))
                return kept[0]

            def timed(of: Any = sample, photo: str = path.stem, by: Any = recorded if sweeps else refine) -> Any:
                began = time.perf_counter()
                labels = pseudo_labels(of["photo"], of["seeds"], of["tags"], threshold, refine=by, names=[photo])
                return labels, time.perf_counter() - began

            (labels, seconds), memory = peak_growth(timed)
            found["seconds"].append(seconds)
            found["memory"] = max(found["memory"], memory)
            confusion.update(labels, sample["mask"][None])
            if sweeps:
                metric.update(scores[0][:, 1:], sample["mask"][None])
        found[split] = 100 * segmentation_scores(confusion.compute()).miou
        if sweeps:
            curves[split] = metric.compute()
    if sweeps:
        best = curves["train"].best
        own = {split: 100 * float(curve.miou[best]) for split, curve in curves.items()}
        found["own"] = {"threshold": THRESHOLDS[best], **own}
    return found


if __name__ == "__main__":
    main()
