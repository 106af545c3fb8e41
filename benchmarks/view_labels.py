"""What the labels are worth that PPC's cross-CAM term takes from a smaller view: ``python benchmarks/view_labels.py``.

Takes the SEAM + PPC that refinement.py has trained. Each training photo is resized to a square, and smaller views are
made of it as in training. A pixel of the smallest view's map gets a label from each view's maps (Eq. 4).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from photographs import ANIMALS, animals
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from wsss_contrast.functional import candidate_scores, resize, split_background
from wsss_contrast.metrics import segmentation_scores
from wsss_contrast.modules import SEAM


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("runs/weights/seam_ppc_0_310_224_112/0.ckpt"))
    parser.add_argument(
        "--views", type=int, nargs="+", default=[224, 192, 160, 128, 112], help="the first is the source"
    )
    parser.add_argument("--images", type=int, default=150)
    args = parser.parse_args()

    model = SEAM.load_from_checkpoint(args.weights, map_location="cpu", weights_only=True).eval()
    data = animals("train_mini", args.views[0], seed=0)
    data.setup("validate")
    photos = data.val_sets["train"]
    confusion = {view: MulticlassConfusionMatrix(len(ANIMALS) + 1, ignore_index=255) for view in args.views}
    agree: dict[int, list[Tensor]] = {view: [] for view in args.views}
    for index in np.linspace(0, len(photos) - 1, min(args.images, len(photos))).round().astype(int):
        sample = photos[int(index)]
        source = F.interpolate(sample["image"][None], (args.views[0],) * 2, mode="bilinear", antialias=True)
        maps = {view: split_background(model.refined(resize(source, (view, view)))[1], 0) for view in args.views}
        size = (maps[min(args.views)].shape[-2], maps[min(args.views)].shape[-1])
        truth = F.interpolate(sample["mask"][None, None].float(), size, mode="nearest-exact")[0].long()
        labels = {v: candidate_scores(resize(of, size), sample["tags"][None], 0.2)[0] for v, of in maps.items()}
        for view in args.views:
            confusion[view].update(labels[view], truth)
            agree[view].append((labels[view] == labels[args.views[0]]).float().mean())

    print("| view | pixels right | mIoU | as the source says |")
    print("|---|---:|---:|---:|")
    for view in args.views:
        counts = confusion[view].compute()
        right = float(counts.diagonal().sum() / counts.sum())
        same = float(torch.stack(agree[view]).mean())
        print(f"| {view} | {100 * right:.1f} | {100 * segmentation_scores(counts).miou:.1f} | {100 * same:.1f} |")


if __name__ == "__main__":
    main()
