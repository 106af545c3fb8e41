"""The teacher's decay and average (Mean Teacher; the schedule of the released CSRM), a number at a time."""

from __future__ import annotations

from collections.abc import Sequence


def decay(step: int, most: float = 0.99, copy_steps: int = 0, ramp_start: int = 0) -> float:
    """How much of the teacher is kept after optimiser step ``step``, the first of which is 1."""
    if step <= copy_steps:
        return 0.0
    ramp = 1.0 - 1.0 / (1.0 + step - ramp_start)
    if ramp > most:
        return most
    return ramp


def teacher(start: Sequence[float], students: Sequence[Sequence[float]], first: int = 1, **how: float) -> list[float]:
    """A teacher's weights after it has followed each of ``students``, from optimiser step ``first`` on."""
    weights = list(start)
    for index, student in enumerate(students):
        kept = decay(first + index, **how)
        for i in range(len(weights)):
            weights[i] = kept * weights[i] + (1.0 - kept) * student[i]
    return weights
