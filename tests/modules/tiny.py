"""A tiny backbone, tiny random photos and a silent trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wsss_contrast.modules import CAM, EPS, SEAM, PuzzleCAM

CLASSES = 3
OPTIONS: dict[str, Any] = {"backbone": "test_resnet", "weights": None, "scales": (1.0,), "flip": False}


def cam(**options: Any) -> CAM:
    return CAM(CLASSES, **OPTIONS | options)


def seam(**options: Any) -> SEAM:
    return SEAM(CLASSES, view_size=32, **OPTIONS | options)


def puzzle_cam(**options: Any) -> PuzzleCAM:
    return PuzzleCAM(CLASSES, **OPTIONS | options)


def eps(**options: Any) -> EPS:
    return EPS(CLASSES, **OPTIONS | options)


MODULES = {"CAM": cam, "SEAM": seam, "PuzzleCAM": puzzle_cam, "EPS": eps}


class RandomPhotos(Dataset):
    """Photos of noise with random tags; masks hold tagged classes, background and ignored pixels."""

    def __init__(self, length: int = 4, side: int = 64, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(length, 3, side, side, generator=generator)
        self.tags = torch.randint(0, 2, (length, CLASSES), generator=generator).float()
        self.tags[:, 0] = 1
        ids = torch.randint(0, CLASSES + 1, (length, side, side), generator=generator)
        present = torch.cat([torch.ones(length, 1), self.tags], dim=1).bool()
        self.masks = torch.where(present.gather(1, ids.flatten(1)).view_as(ids), ids, 255)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image": self.images[index],
            "tags": self.tags[index],
            "mask": self.masks[index],
            "saliency": (self.masks[index] > 0)[None].float(),
            "name": f"photo_{index}",
        }


def loader(batch_size: int = 2, shuffle: bool = False, **options: Any) -> DataLoader:
    return DataLoader(RandomPhotos(**options), batch_size=batch_size, shuffle=shuffle)


def batch(length: int = 2) -> dict[str, Tensor]:
    return next(iter(loader(length)))


def trainer(folder: Path, **options: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "default_root_dir": folder,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_steps": 2,
    }
    return L.Trainer(**defaults | options)
