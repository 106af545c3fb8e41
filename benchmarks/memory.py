"""The memory that a call needs, beyond what the process had before (Linux)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def peak_growth(call: Callable[[], T]) -> tuple[T, float]:
    """What the call gives, and by how many MiB the process grew at most while it ran."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what there is now
    before = resident()
    result = call()
    return result, _mebibytes("VmHWM") - before


def resident() -> float:
    """MiB that the process has in memory."""
    return _mebibytes("VmRSS")


def _mebibytes(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 1024
