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
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from csrm_speed import calls as csrm_contrast_calls
from dense_crf import by_pydensecrf, by_torch
from memory import peak_growth
from PIL import Image
from refinement_speed import DILATIONS
from torch import Tensor
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.literal import tensors
from tests.literal.csrm_contrast import contrast as csrm_contrast_literal
from wsss_contrast import __version__, functional
from wsss_contrast.callbacks import PrototypeContrastCallback
from wsss_contrast.data import SHAPES_CLASSES, FolderDataModule, ShapesDataset, as_photos
from wsss_contrast.files import write_atomically
from wsss_contrast.functional import (
    PermutohedralLattice,
    hard_unaries,
    pixel_affinity,
    propagate,
    quantile,
    resize,
    split_background,
)
from wsss_contrast.losses import (
    EquivariantCrossRegularization,
    EquivariantRegularization,
    MinPooling,
    MultilabelSoftMargin,
    PixelDraws,
    PrototypeContrast,
)
from wsss_contrast.modules import CAM, CSRM, SEAM
from wsss_contrast.refine import CRF_SETTINGS, multi_scale_cams

BATCH, CLASSES, CROP, VIEW, WIDTH = 8, 20, 448, 128, 128
MAPS, VIEW_MAPS = CROP // 8, VIEW // 8
STEP = 224  # px of the training steps


class Part(NamedTuple):
    """What is measured.

    Attributes:
        ours: the library's call; gives what must agree with the others'.
        literal: the same from a literal reading, with its name.
        floor: the operations that are left, with what they are.
        agree: by how much the results may differ, of the largest.
        memory: whether a fresh process is asked for its growth.
    """

    ours: Callable[[], Any]
    literal: tuple[str, Callable[[], Any]] | None = None
    floor: tuple[str, Callable[[], Any]] | None = None
    agree: float | None = 1e-4
    memory: bool = False


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


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape)


def tags() -> Tensor:
    """One or two of 20 classes an image, as on a photo of VOC."""
    found = torch.zeros(BATCH, CLASSES)
    found[torch.arange(BATCH), torch.arange(BATCH)] = 1
    found[::2, 14] = 1
    return found


def gradients(total: Tensor, *leaves: Tensor) -> list[Tensor]:
    return [total.detach(), *torch.autograd.grad(total, leaves)]


# --- parts


def ppc_loss() -> Part:
    """8 photos, 128 channels, maps of 56 x 56 and 16 x 16."""
    source, target = (normal(BATCH, WIDTH, side, side).requires_grad_() for side in (MAPS, VIEW_MAPS))
    cams, target_cams = (normal(BATCH, CLASSES, side, side) for side in (MAPS, VIEW_MAPS))
    pixels = BATCH * VIEW_MAPS**2
    draws = PixelDraws(torch.rand(2, pixels), torch.rand(2, pixels, CLASSES + 1))
    inputs, loss = (source, cams, target, target_cams, tags()), PrototypeContrast()
    prototypes = torch.nn.functional.normalize(normal(2 * (CLASSES + 1), WIDTH))

    def floor() -> Any:
        """For each view: embeddings and maps to the small size, unit length, one product, and the rankings of pixels by
        score for the candidates, of prototypes by similarity and by draw, and of pixels by similarity and by draw."""
        total, size = torch.zeros(()), (VIEW_MAPS, VIEW_MAPS)
        for embeddings, maps in ((source, cams), (target, target_cams)):
            unit = torch.nn.functional.normalize(resize(embeddings, size), dim=1)
            logits = unit.movedim(1, -1).flatten(0, -2) @ prototypes.T
            resize(maps, size).movedim(1, 0).flatten(1).sort(dim=1, stable=True)
            fixed = logits.detach()
            for values in (fixed[:, : CLASSES + 1], draws.prototypes[0]):
                values.sort(dim=1, stable=True)
            for values in (fixed[:, 0], draws.pixels[0]):
                values.sort(stable=True)
            total = total + logits.sum()
        return gradients(total, source, target)

    def literal() -> Any:
        return gradients(sum(tensors.prototype_contrast(*inputs, *draws).values()), source, target)

    return Part(
        lambda: gradients(sum(loss(*inputs, draws=draws).values()), source, target),
        ("class by class", literal),
        ("resize, unit length, one product, the rankings", floor),
        memory=True,
    )


def pixel_correlation() -> Part:
    """8 photos, 21 maps of 56 x 56, features of 192 channels."""
    maps, features = torch.rand(BATCH, CLASSES + 1, MAPS, MAPS), normal(BATCH, 192, MAPS, MAPS).requires_grad_()
    slope, flat = normal(BATCH, CLASSES + 1, MAPS, MAPS), normal(BATCH, 192, MAPS * MAPS)

    def of(form: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Any]:
        return lambda: gradients((form(maps, features) * slope).sum(), features)

    def floor() -> Any:
        """Half of the symmetric matrix, made twice, and one product with all of it."""
        for image in flat:
            for _ in range(2):
                block = image[:, : MAPS * MAPS // 2].T @ image
            image[:, : MAPS * MAPS // 2] @ block
            image[:, : MAPS * MAPS // 2] @ block

    return Part(
        of(functional.pixel_correlation),
        ("one matrix", of(tensors.pixel_correlation)),
        ("matrix products", floor),
        memory=True,
    )


def seam_losses() -> Part:
    """8 photos, maps of 56 x 56 and 16 x 16 compared at 448 and 128 px; classification, min-pooling, ER, ECR."""
    sizes = ((CROP, CROP), (VIEW, VIEW))
    cams = [normal(BATCH, CLASSES, side, side).requires_grad_() for side in (MAPS, VIEW_MAPS)]
    refined = [torch.rand(BATCH, CLASSES + 1, side, side).requires_grad_() for side in (MAPS, VIEW_MAPS)]
    of, leaves = tags(), [*cams, *refined]
    classify, pool = MultilabelSoftMargin(), MinPooling()
    er, ecr = EquivariantRegularization(), EquivariantCrossRegularization()

    def ours() -> Any:
        classification = sum(classify(maps, of, size=size) for maps, size in zip(cams, sizes, strict=True)) / 2
        small = [split_background(maps, 0) for maps in refined]
        pooled = sum(pool(maps, of, size=size) for maps, size in zip(small, sizes, strict=True)) / 2
        crossed = ecr(cams[0], refined[0], cams[1], refined[1], of, sizes=sizes)
        return gradients(classification + pooled + er(*cams, of, sizes=sizes) + crossed, *leaves)

    def literal() -> Any:
        large = [resize(maps[view], sizes[view]) for view in (0, 1) for maps in (cams, refined)]
        return gradients(sum(tensors.seam_losses(*large, of).values()), *leaves)

    def floor() -> Any:
        """The tagged classes' maps, raw and refined, to the size of the photos, read once, and back."""
        kept = [functional.tagged_channels(of, *pair)[1:] for pair in (cams, [r[:, 1:] for r in refined])]
        total = sum(resize(m, s).square().sum() for pair in kept for m, s in zip(pair, sizes, strict=True))
        return gradients(total, *leaves)

    return Part(ours, ("at full size", literal), ("resize of tagged maps, read once", floor), memory=True)


def csrm_contrast() -> Part:
    """8 photos, 21 classes, 256 channels, maps of 64 x 64, full memories."""
    ours, literal = csrm_contrast_calls()
    memory, queries = normal(100_000, 256), normal(CLASSES + 1, 256, 1, 256)
    drawn = torch.randint(len(memory), (CLASSES + 1, 256 * 50))

    def floor() -> None:
        """For each class the rows of 256 queries' 50 negatives, their products, and the gradient's."""
        for index, of_class in zip(drawn, queries, strict=True):
            rows = memory[index].view(256, 50, 256)
            torch.bmm(torch.bmm(of_class, rows.mT), rows)

    return Part(ours, ("class by class", literal), ("the drawn rows and their products", floor))


def entropy_quantile() -> Part:
    """8 maps of 512 x 512, of which three quarters count."""
    entropy, kept = torch.rand(BATCH, 512, 512), torch.rand(BATCH, 512, 512) < 0.75
    chosen = int(0.2 * (int(kept.sum()) - 1)) + 1
    return Part(
        lambda: [quantile(entropy, 0.2, kept)],
        ("sort", lambda: [tensors.entropy_quantile(entropy, kept, 0.2)]),
        ("`entropy[kept].kthvalue`", lambda: [entropy[kept].kthvalue(chosen).values]),
    )


def drawn_photo(side: int) -> Tensor:
    return as_photos(ShapesDataset("val", side, 1)[0]["image"][None])


def pixel_adaptive() -> Part:
    """21 maps of 320 x 320, 48 neighbours, 5 steps."""
    affinity = pixel_affinity(drawn_photo(320))
    maps = torch.rand(1, CLASSES + 1, 320, 320)

    def floor() -> None:
        """A product and a sum of each map with each neighbour's weights, in place."""
        total = torch.zeros_like(maps)
        for _ in range(5 * affinity.shape[1]):
            total.addcmul_(maps, affinity[:, :1])

    return Part(
        lambda: [propagate(maps, affinity, DILATIONS, 5)],
        ("a tensor of all neighbours", lambda: [tensors.pixel_adaptive(maps, affinity, DILATIONS, 5)]),
        ("48 x 5 `addcmul_`", floor),
        memory=True,
    )


def dense_crf() -> Part:
    """A drawn photo of 240 x 240, 21 labels, 10 steps."""
    photo = drawn_photo(240)
    labels = (photo.sum(dim=1) // 40).clamp(0, CLASSES).long()
    unaries = hard_unaries(labels, CLASSES + 1, 0.7)
    call = "pydensecrf2", lambda: [by_pydensecrf("deeplab", photo, unaries)]
    rows, columns = torch.meshgrid(torch.arange(240.0), torch.arange(240.0), indexing="ij")
    places, values = torch.stack([rows, columns], dim=-1).view(1, -1, 2), torch.rand(1, 240 * 240, CLASSES + 1)
    near = PermutohedralLattice(places / CRF_SETTINGS["deeplab"].gaussian[0])
    deviations = CRF_SETTINGS["deeplab"].bilateral

    def floor() -> None:
        """The photo's lattice, and ten filterings of 21 maps by each of two kernels."""
        colors = photo.flatten(2).mT.float() / deviations[1]
        alike = PermutohedralLattice(torch.cat([places / deviations[0], colors], dim=-1))
        for _ in range(10):
            near.filter(values)
            alike.filter(values)

    return Part(
        lambda: [by_torch("deeplab", photo, unaries)], call, ("a lattice and the filterings", floor), agree=0.05
    )


def multi_scale() -> Part:
    """8 photos of 240 x 320, four scales with mirror images."""
    module = CAM(CLASSES, weights=None).eval().to(memory_format=torch.channels_last)
    images, of = normal(BATCH, 3, 240, 320), torch.ones(BATCH, CLASSES)

    def together() -> Any:
        return [multi_scale_cams(module.seed_maps, images, of)]

    def apart() -> Any:
        photos = zip(images.split(1), of.split(1), strict=True)
        return [torch.cat([multi_scale_cams(module.seed_maps, *photo) for photo in photos])]

    @torch.no_grad()
    def floor() -> None:
        """The network's passes alone, a photo at a time."""
        for photo in images.split(1):
            for scale in (0.5, 1, 1.5, 2):
                module.seed_maps(resize(photo, (int(240 * scale), int(320 * scale))).expand(2, -1, -1, -1))

    return Part(
        together, ("one photo at a time", apart), ("the network's passes, a photo at a time", floor), agree=1e-3
    )


PARTS: dict[str, Callable[[], Part]] = {
    "PPC loss": ppc_loss,
    "PCM": pixel_correlation,
    "SEAM losses": seam_losses,
    "CSRM contrast": csrm_contrast,
    "entropy quantile": entropy_quantile,
    "PAR": pixel_adaptive,
    "dense CRF": dense_crf,
    "multi-scale inference": multi_scale,
}


# --- training steps


class LiteralSEAM(SEAM):
    """With the correlation module and the losses in their usual form."""

    def refined(self, images: Tensor, matrix: Tensor | None = None) -> tuple[Tensor, Tensor]:
        ours, functional_of_pcm = functional.pixel_correlation, sys.modules["wsss_contrast.nn.pixel_correlation"]
        functional_of_pcm.pixel_correlation = lambda maps, features, valid: tensors.pixel_correlation(maps, features)
        try:
            return super().refined(images, matrix)
        finally:
            functional_of_pcm.pixel_correlation = ours

    def _losses(self, source: Any, target: Any, tags: Tensor, *sizes: tuple[int, int]) -> dict[str, Tensor]:
        large = [resize(m, size) for maps, size in zip((source, target), sizes, strict=True) for m in maps]
        return tensors.seam_losses(*large, tags)


class LiteralCSRM(CSRM):
    """With the contrast class by class, of the released constants."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        contrast = self.losses.contrast
        memory = [torch.zeros(0, contrast.bank.embedding_dim) for _ in contrast.bank.capacities]

        def forward(
            embeddings: Tensor, teacher: Tensor, logits: Tensor, labels: Tensor, *more: Any, generator: Any, draws: Any
        ) -> Tensor:
            small = functional.nearest_labels(labels, (embeddings.shape[-2], embeddings.shape[-1]))
            rest = *more, memory, list(contrast.bank.capacities)
            return csrm_contrast_literal(embeddings, teacher, logits, small, *rest, generator=generator, draws=draws)

        contrast.forward = forward


class Clock(L.Callback):
    """Seconds of each batch, and of the way to the next one."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.waits: list[float] = []
        self._last = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        now = time.perf_counter()
        if self.steps:
            self.waits.append(now - self._last)
        self._last = now

    def on_train_batch_end(self, *_: Any) -> None:
        now = time.perf_counter()
        self.steps.append(now - self._last)
        self._last = now


def fit(module: CAM, callbacks: Sequence[L.Callback], steps: int, data: Any) -> Clock:
    clock = Clock()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}
    options = {"limit_val_batches": 0, "num_sanity_val_steps": 0, "enable_progress_bar": False}
    L.Trainer(max_steps=steps, callbacks=[*callbacks, clock], **quiet, **options).fit(module, data)
    return clock


def batches() -> list[dict[str, Any]]:
    images = normal(BATCH, 3, STEP, STEP).contiguous(memory_format=torch.channels_last)
    batch = {"image": images, "tags": tags(), "name": ["photo"] * BATCH, "labeled": BATCH // 2}
    return [batch, batch, batch]


def training_steps() -> dict[str, Callable[[], float]]:
    """Seconds of a step, by method, and of the backbones' passes in it alone."""
    options, view = {"weights": "offline"}, STEP * VIEW // CROP
    modules: dict[str, tuple[CAM, list[L.Callback]]] = {
        "CAM": (CAM(CLASSES, **options), []),
        "SEAM": (SEAM(CLASSES, view_size=view, **options), []),
        "SEAM, literal": (LiteralSEAM(CLASSES, view_size=view, **options), []),
        "SEAM + PPC": (SEAM(CLASSES, view_size=view, **options), [PrototypeContrastCallback()]),
        "CSRM": (CSRM(CLASSES, compat="official", loss={"warmup": 0.0}, **options), []),
        "CSRM, literal": (LiteralCSRM(CLASSES, compat="official", loss={"warmup": 0.0}, **options), []),
    }
    given = batches()
    small = resize(given[0]["image"], (view, view)).contiguous(memory_format=torch.channels_last)

    def step(name: str) -> float:
        module, callbacks = modules[name]
        data = DataLoader(given, batch_size=None)  # type: ignore[arg-type]
        return min(fit(module, callbacks, len(given), data).steps[1:])  # the first has the loops' start in it

    def passes(name: str, views: Sequence[Tensor]) -> float:
        module = modules[name][0].train()
        taken = []
        for _ in given:
            began = time.perf_counter()
            for view in views:
                found = module.backbone(view)
                found = found[0] if isinstance(found, tuple) else found
                found.sum().backward()
            if name == "CSRM":
                with torch.no_grad():
                    module.teacher.network.backbone(views[0])
            taken.append(time.perf_counter() - began)
        module.zero_grad(set_to_none=True)
        return min(taken[1:])

    views = {"CAM": [given[0]["image"]], "SEAM": [given[0]["image"], small], "CSRM": [given[0]["image"]]}
    calls = {name: lambda name=name: step(name) for name in modules}
    return calls | {f"backbone of {name}": lambda name=name: passes(name, views[name]) for name in views}


def loading_share(rounds: int, workers: int = 2) -> list[float]:
    """The part of a CAM's training on JPEG files of 500 x 500, cut to 224 px, in which it waits for the next batch."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "images").mkdir()
        drawn = ShapesDataset("train", 500, 64)
        rows = ["name,tags"]
        for index in range(len(drawn)):
            picture = drawn.draw(index)[0]
            Image.fromarray(picture).save(Path(folder, "images", f"{index}.jpg"), quality=90)
            rows.append(f"{index},{SHAPES_CLASSES[index % 6]}")
        Path(folder, "tags.csv").write_text("\n".join(rows))
        data = FolderDataModule(folder, crop_size=STEP, resize_long=(STEP, 320), batch_size=BATCH, num_workers=workers)
        shares = []
        for _ in range(rounds):
            clock = fit(CAM(6, weights=None), [], 7, data)
            waits, steps = clock.waits[1:], clock.steps[2:]  # behind the workers' start
            shares.append(sum(waits) / (sum(waits) + sum(steps)))
        return shares


# --- running


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
