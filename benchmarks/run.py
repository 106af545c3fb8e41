"""Time and memory of the library's parts: ``python benchmarks/run.py``, a table, and ``--json FILE``.

Each part is measured against a literal reading of its equation (``tests/literal/``, or the package that it stands in
for) and against a floor: operations that no form can do without. The calls take turns; a ratio is that of one round,
and the table has the median of the rounds with the lowest and highest. Memory is what a fresh process grows by in a
call. Results must agree before they are timed. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from memory import peak_growth
from speed_parts import BATCH, PARTS, Part
from speed_steps import STEP, loading_share, training_steps
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from wsss_contrast import __version__
from wsss_contrast.files import write_atomically


class Budget(NamedTuple):
    """What the issue of this library's speed asks for; ``None`` for nothing."""

    literal: float | None = None  # the literal reading takes so many times as long, at least
    floor: float | None = None  # ours takes so many times the floor, at most
    mebibytes: float | None = None
    memory: float | None = None  # ours takes this share of the literal reading's memory, at most


BUDGETS = {
    "PPC loss": Budget(literal=5, floor=1.5),
    "PCM": Budget(literal=1, mebibytes=350),
    "SEAM losses": Budget(literal=2, memory=0.5),
    "entropy quantile": Budget(floor=1.0),
    "step of SEAM + PPC": Budget(floor=1.05),
}


def timed(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, round by round; of a call that gives seconds, those."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            result = call()
            taken = time.perf_counter() - began
            times[name].append(result if isinstance(result, float) else taken)
    return times


def growth(name: str, which: str) -> float:
    """MiB that this process grows by in a call."""
    part = prepared(name)
    call = part.ours if which == "ours" else part.literal[1]
    torch.ones(64, 64) @ torch.ones(64, 64)  # the libraries are up
    return peak_growth(call)[1]


def prepared(name: str) -> Part:
    torch.manual_seed(0)
    return PARTS[name]()


def in_a_fresh_process(call: Callable[..., float], *args: Any) -> float:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(call, *args).result()


def disagreement(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference, of the largest value of its tensor."""
    pairs = zip(ours, theirs, strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in pairs)


def measure(name: str, rounds: int) -> dict[str, Any]:
    """What the table says of a part."""
    part = prepared(name)
    calls = {"ours": part.ours}
    row: dict[str, Any] = {"sizes": (PARTS[name].__doc__ or "").strip()}
    if part.literal is not None:
        row["literal is"], calls["literal"] = part.literal
        if part.agree is not None:
            row["differs by"] = disagreement(part.ours(), part.literal[1]())
            if not row["differs by"] <= part.agree:
                raise SystemExit(f"{name}: differs from its literal reading by {row['differs by']:.1e} of the largest")
    if part.floor is not None:
        row["floor is"], calls["floor"] = part.floor
    timed(calls, 1)
    row |= timed(calls, rounds)
    if part.memory:
        row |= {f"{which} MiB": in_a_fresh_process(growth, name, which) for which in ("ours", "literal")}
    return row


def measure_steps(rounds: int) -> dict[str, dict[str, Any]]:
    times = timed(training_steps(), rounds)
    of = f"{BATCH} photos of {STEP} px, EfficientNet-Lite0"
    bare = {"sizes": of, "floor is": "the backbone's passes"}
    seam = {"literal is": "PCM and losses in their usual form", "literal": times["SEAM, literal"]}
    rows = {f"step of {name}": bare | {"ours": times[name]} for name in ("CAM", "SEAM", "CSRM")}
    for name in ("CAM", "SEAM", "CSRM"):
        rows[f"step of {name}"]["floor"] = times[f"backbone of {name}"]
    rows["step of SEAM"] |= seam
    rows["step of CSRM"] |= {"literal is": "the contrast class by class", "literal": times["CSRM, literal"]}
    rows["step of SEAM + PPC"] = {
        "sizes": of,
        "ours": times["SEAM + PPC"],
        "floor": times["SEAM"],
        "floor is": "a step of SEAM",
    }
    return rows


def spread(values: Sequence[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratios(of: Sequence[float], over: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(of, over, strict=True)]


def verdict(name: str, row: Mapping[str, Any]) -> str:
    """What the budget says, by the medians."""
    budget, said = BUDGETS.get(name, Budget()), []
    if budget.literal is not None:
        found = statistics.median(ratios(row["literal"], row["ours"]))
        said.append(("at least", budget.literal, "x the literal", found >= budget.literal))
    if budget.floor is not None:
        found = statistics.median(ratios(row["ours"], row["floor"]))
        said.append(("at most", budget.floor, "x the floor", found <= budget.floor))
    if budget.mebibytes is not None:
        said.append(("at most", budget.mebibytes, "MiB", row["ours MiB"] <= budget.mebibytes))
    if budget.memory is not None:
        held = row["ours MiB"] <= budget.memory * row["literal MiB"]
        said.append(("at most", budget.memory, "of its memory", held))
    said = [f"{bound} {value:g} {what}: {'held' if held else '**missed**'}" for bound, value, what, held in said]
    return "; ".join(said)


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    columns = ["part", "ms", "literal over ours", "ours over floor", "MiB, ours / literal", "budget"]
    lines = [f"| {' | '.join(columns)} |", "|---|---:|---:|---:|---:|---|"]
    for name, row in rows.items():
        cells = [f"{name}: {row['sizes']}", spread([1000 * s for s in row["ours"]], 0), "", "", "", verdict(name, row)]
        if "literal" in row:
            cells[2] = f"{spread(ratios(row['literal'], row['ours']))}, {row['literal is']}"
        if "floor" in row:
            cells[3] = f"{spread(ratios(row['ours'], row['floor']))}, {row['floor is']}"
        if "ours MiB" in row:
            cells[4] = f"{row['ours MiB']:.0f} / {row['literal MiB']:.0f}"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def machine(threads: int) -> str:
    """The facts that a figure is of."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    versions = f"torch {torch.__version__}, Python {platform.python_version()}, wsss_contrast {__version__}"
    return f"{model}, {threads} threads of {os.cpu_count()}, {platform.system()} {platform.release()}, {versions}"


def main(args: Sequence[str] | None = None) -> None:
    names = [*PARTS, "steps", "data loading"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args(args)
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    facts, rows = machine(options.threads), {}
    print(f"{facts}\n")
    for name in options.parts:
        if name in PARTS:
            rows[name] = measure(name, options.rounds)
    if "steps" in options.parts:
        rows |= measure_steps(options.rounds)
    print(table(rows))
    shares = loading_share(min(options.rounds, 5)) if "data loading" in options.parts else []
    if shares:
        held = "held" if statistics.median(shares) < 0.05 else "**missed**"
        percent = spread([100 * share for share in shares], 1)
        print(f"\nData loading, 2 workers, {STEP} px: {percent} % of a CAM's training is waiting; under 5: {held}")
    if options.json is not None:
        found = {"machine": facts, "parts": rows, "waiting": shares}
        write_atomically(json.dumps(found, indent=1).encode(), options.json)


if __name__ == "__main__":
    main()
