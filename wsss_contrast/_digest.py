"""A number for weights, by which a run knows them again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def digest(tensors: Iterable[tuple[str, Tensor]], *texts: str) -> str:
    """SHA-256 of names and values in the order of the names, and of texts."""
    found = hashlib.sha256()
    for name, value in sorted(tensors, key=lambda pair: pair[0]):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    for text in texts:
        found.update(text.encode())
    return found.hexdigest()
