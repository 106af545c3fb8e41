"""Cases of reference values: what a checker compares, and how a file becomes rows.

Errors are relative: the largest absolute error of a tensor over the largest absolute value of its reference.

To claim a file: write a function from its content to its cases, and mark it with ``@checks(pattern)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VALUE_TOLERANCE = 2e-5
GRADIENT_TOLERANCE = 5e-5


@dataclass
class Case:
    """What a case of a file came to: errors, or a status (and a note) where nothing was compared."""

    file: str
    name: str = ""
    status: str = ""
    note: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    gradient_errors: dict[str, float] = field(default_factory=dict)
    wrong: dict[str, int] = field(default_factory=dict)
    tolerance: float = VALUE_TOLERANCE

    def values(self, ours: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
        """Compare each of ``ours`` with the reference of its name, integers exactly."""
        for name, value in ours.items():
            expected = reference[name]
            if isinstance(value, Tensor) and not value.is_floating_point():
                same_shape = value.shape == expected.shape
                self.wrong[name] = int((value != expected).sum()) if same_shape else max(expected.numel(), 1)
            else:
                self.errors[name] = relative_error(value, expected)

    def gradients(self, term: str, value: Tensor, leaves: dict[str, Tensor], reference: Mapping[str, Any]) -> None:
        """Compare the gradients of one term with respect to ``leaves``."""
        found = torch.autograd.grad(value, list(leaves.values()), retain_graph=True, allow_unused=True)
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True):
            gradient = torch.zeros_like(leaf) if gradient is None else gradient
            self.gradient_errors[f"d {term} / d {name}"] = relative_error(gradient, reference[name])

    @property
    def compared(self) -> bool:
        return bool(self.errors or self.gradient_errors or self.wrong)

    @property
    def out_of_tolerance(self) -> list[str]:
        """What differs too much, and by how much. NaN does."""
        return (
            [f"{name}: {e:.1e}" for name, e in self.errors.items() if not e <= self.tolerance]
            + [f"{name}: {e:.1e}" for name, e in self.gradient_errors.items() if not e <= GRADIENT_TOLERANCE]
            + [f"{name}: {n} wrong" for name, n in self.wrong.items() if n]
        )

    @property
    def failed(self) -> bool:
        return self.status == "FAIL" or bool(self.out_of_tolerance)

    def __str__(self) -> str:
        """The row: status, file and case, worst errors of values and gradients, wrong labels, a note."""
        status = "FAIL" if self.failed else self.status or "ok"
        title = f"{self.file} [{self.name}]" if self.name else self.file
        worst = [f"{max(e.values()):.1e}" if e else "-" for e in (self.errors, self.gradient_errors)]
        wrong = str(sum(self.wrong.values())) if self.wrong else "-"
        note = self.note or "; ".join(self.out_of_tolerance[:3])
        return f"{status:8} {title:42} {worst[0]:>9} {worst[1]:>9} {wrong:>6}  {note}".rstrip()


Check = Callable[[Case], None]
Cases = Mapping[str, Check | str]
"""Each case's function, or why there is none: "skipped: " and the reason."""
Checker = Callable[[Any, Path], Cases]
CHECKERS: dict[str, Checker] = {}


def checks(pattern: str) -> Callable[[Checker], Checker]:
    """Register a function from a file's content and folder to its cases; the longest match counts."""
    return lambda checker: CHECKERS.setdefault(pattern, checker)


def relative_error(ours: Any, reference: Any) -> float:
    """Largest absolute error over largest absolute reference; inf for another shape or a missed zero."""
    ours, reference = (torch.as_tensor(x).detach().double() for x in (ours, reference))
    if ours.shape != reference.shape:
        return float("inf")
    error, scale = (float(x.abs().max()) if x.numel() else 0.0 for x in (ours - reference, reference))
    return error / scale if scale != 0 else (0.0 if error == 0 else float("inf"))


def check_file(path: Path) -> Iterator[Case]:
    """The cases of one file. Whatever goes wrong becomes a row, so that it hides no other file or case."""
    claims = [pattern for pattern in CHECKERS if fnmatch(path.name, pattern)]
    if not claims:
        yield Case(path.name, status="unknown")
        return
    try:
        cases = CHECKERS[max(claims, key=len)](torch.load(path, weights_only=True), path.parent)
    except Exception as error:  # unreadable, or of another format
        yield Case(path.name, status="FAIL", note=_reason(error))
        return
    compared = False
    for name, check in cases.items():
        case = Case(path.name, name)
        if isinstance(check, str):
            case.status, _, case.note = check.partition(": ")
        else:
            try:
                check(case)
            except Exception as error:
                case.status, case.note = "FAIL", _reason(error)
        compared |= case.compared or case.failed
        yield case
    if not compared:
        yield Case(path.name, status="FAIL", note="not checked: no case of this file could be compared")


def _reason(error: Exception) -> str:
    what = f"no entry {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
    return f"not checked: {what.splitlines()[0][:200]}"
