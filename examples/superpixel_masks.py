"""Masks for SEPL where there is no segment-anything model: superpixels stand in for them.

    python examples/superpixel_masks.py VOC2012/JPEGImages runs/segments
    wsss-contrast predict --refine par+sepl:runs/segments ...

A superpixel is a piece of like colour, here of a watershed that starts at the points of a grid; two grids give small
and large ones. A segment-anything model gives objects and their parts instead: this shows the format, not what SEPL can
gain.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps


def superpixels(photo, step):
    """Labels (H, W) from 1 of a photo (H, W, 3), from a point in each square of ``step`` pixels."""
    labels = np.zeros(photo.shape[:2], np.int32)
    step = min(step, *labels.shape)
    points = labels[step // 2 :: step, step // 2 :: step]
    points[:] = 1 + np.arange(points.size).reshape(points.shape)
    cv2.watershed(photo, labels)
    if not (labels > 0).any():  # a photo of two rows, which are all border
        return np.ones_like(labels)
    while (labels < 0).any():  # the lines between them, which go to a neighbour
        labels = np.where(labels < 0, cv2.dilate(labels.astype(np.float32), np.ones((3, 3))), labels).astype(np.int32)
    return labels


def run_lengths(mask):
    """COCO's uncompressed run-length encoding: column after column, how many are 0, then 1, then 0, and so on."""
    pixels = np.concatenate([[False], mask.T.ravel()])
    ends = np.append(np.flatnonzero(pixels[1:] != pixels[:-1]), mask.size)
    return {"size": list(mask.shape), "counts": np.diff(ends, prepend=0).tolist()}


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("photos", type=Path, help="folder of photos")
parser.add_argument("out", type=Path, help="folder for the masks, NAME.json for each photo")
parser.add_argument("--steps", type=int, nargs="+", default=[32, 96], help="sides of the grids' squares in pixels")
args = parser.parse_args()
args.out.mkdir(parents=True, exist_ok=True)
for path in sorted(args.photos.iterdir()):
    if path.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        continue
    photo = np.array(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    of_steps = [superpixels(photo, step) for step in args.steps]
    masks = [labels == label for labels in of_steps for label in np.unique(labels)]
    (args.out / f"{path.stem}.json").write_text(json.dumps([{"segmentation": run_lengths(mask)} for mask in masks]))
    print(f"{path.name}: {len(masks)} masks")
