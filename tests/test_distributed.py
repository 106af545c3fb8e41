"""Several gloo processes give the values and gradients that one process gives on the joined batch."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from wsss_contrast import distributed
from wsss_contrast.losses import PixelDraws, PrototypeContrast
from wsss_contrast.nn import ClassMemoryBank

from .losses import distributed_cases as csrm
from .losses.cases import Views, draws, views

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")

HEIGHT, WIDTH = 4, 3
LATE = [[0, 0, 0, 1], [1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0]]
"""Tags of six images; the last class is in the first image only."""
SPLITS = {
    2: {"equal": (3, 3), "unequal": (1, 5), "empty": (6, 0)},
    3: {"equal": (2, 2, 2), "empty": (2, 0, 4)},
}
SPLITS[3]["unequal"] = (3, 1, 2)
SETTINGS = {
    "paper": {"compat": "paper", "top_k": 5},
    "paper-short": {"compat": "paper"},
    "paper-plain": {"compat": "paper", "mine_prototypes": False, "sample_pixels": False, "background": -1},
    "official": {"compat": "official", "background": 0},
    "official-plain": {"compat": "official", "top_k": 3, "mine_prototypes": False, "sample_pixels": False},
}
"""``paper-short`` asks for more candidates than a rank has pixels."""
CASES = list(itertools.product(("equal", "unequal", "empty"), SETTINGS))


def joined_batch(setting: str) -> tuple[Views, PixelDraws, Tensor]:
    """Six images, random numbers, and the target's valid pixels."""
    inputs = views(31, images=6, classes=4, target=(HEIGHT, WIDTH), background=SETTINGS[setting].get("background"))
    inputs = inputs._replace(tags=torch.tensor(LATE))
    valid = torch.rand(6, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) < 0.8
    return inputs, draws(inputs, 32), valid


PRECISIONS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Other types than float64, and what gradients may differ by, of a tensor's largest; half precision under autocast."""


def step(
    setting: str, inputs: Views, numbers: PixelDraws, valid: Tensor, dtype: torch.dtype = torch.float64
) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, ...]]]:
    """The terms, and the gradient of each."""
    inputs = Views(*csrm.take(slice(None), dtype, *inputs))
    with csrm.autocast(dtype):
        terms = PrototypeContrast(**SETTINGS[setting])(*inputs, target_valid=valid, draws=numbers)
    slopes = {name: torch.autograd.grad(term, inputs.embeddings, retain_graph=True) for name, term in terms.items()}
    return {name: term.detach() for name, term in terms.items()}, slopes


def remembered(rows: slice) -> list[tuple[dict[str, Tensor], list[Tensor], list[Tensor]]]:
    """Four steps with one memory: terms, the gradients of their sum by view, and the memory. Classes come and go."""
    loss = PrototypeContrast(top_k=5, bank=ClassMemoryBank(5, 4, 3, 4, torch.float64))
    results = []
    tags_of_steps = [LATE, [[1, 0, 0, 0]] * 6, [[0, 0, 0, 1], *[[0, 1, 0, 0]] * 5], [[1, 0, 0, 0]] * 6]
    for number, tags in enumerate(tags_of_steps):
        loss.train(number < 3)
        inputs = views(60 + number, images=6, classes=4, target=(HEIGHT, WIDTH))._replace(tags=torch.tensor(tags))
        part, numbers = rank_share(inputs, draws(inputs, number), rows)
        terms = loss(*part, draws=numbers)
        slopes = list(torch.autograd.grad(sum(terms.values()), part.embeddings))
        memory = [loss.bank.rows(index) for index in range(5)]
        results.append(({name: term.detach() for name, term in terms.items()}, slopes, memory))
    return results


def rank_share(inputs: Views, numbers: PixelDraws, rows: slice) -> tuple[Views, PixelDraws]:
    """A rank's images, as new leaves, and its random numbers."""
    pixels = slice(rows.start * HEIGHT * WIDTH, rows.stop * HEIGHT * WIDTH)
    part = Views(*(x.detach()[rows].requires_grad_(x.requires_grad) for x in inputs))
    return part, PixelDraws(*(x[:, pixels] for x in numbers))


def rows_of(rank: int, split: tuple[int, ...]) -> slice:
    return slice(sum(split[:rank]), sum(split[: rank + 1]))


def csrm_results(split: tuple[int, ...], rank: int) -> dict[str, object]:
    """CSRM's losses and memory on a rank's images."""
    rows = rows_of(rank, split)
    results = {name: csrm.term(name, rows) for name in csrm.TERMS}
    results |= {name: csrm.contrast(name, rows, rank) for name in csrm.CONTRASTS}
    return results | {str(dtype): csrm.push(rows, dtype) for dtype in (torch.float32, torch.float16)}


def in_precision(rows: slice, rank: int, dtype: torch.dtype) -> dict[str, list[csrm.Result]]:
    """CSRM's losses on some images, step by step."""
    results = {name: [csrm.term(name, rows, dtype)] for name in csrm.TERMS}
    return results | {name: csrm.contrast(name, rows, rank, dtype) for name in csrm.CONTRASTS}


def run_rank(rank: int, world: int, folder: str) -> None:
    """One process: every case on its rows of the batch, and the collectives alone."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    results = {}
    for split, setting in CASES:
        rows = rows_of(rank, SPLITS[world][split])
        inputs, numbers, valid = joined_batch(setting)
        results[split, setting] = step(setting, *rank_share(inputs, numbers, rows), valid[rows])
        for dtype in PRECISIONS:
            part = rank_share(inputs, numbers, rows)
            results[split, setting, dtype] = step(setting, *part, valid[rows], dtype)
    for split, counts in SPLITS[world].items():
        for dtype in PRECISIONS:
            results["csrm", split, dtype] = in_precision(rows_of(rank, counts), rank, dtype)
        metric = csrm.counted(rows_of(rank, counts)).compute()
        results["metric", split] = metric.iou, metric.miou
        results["csrm", split] = csrm_results(counts, rank)
        results["memory", split] = remembered(rows_of(rank, counts))
    own = list(range(6))[rows_of(rank, SPLITS[world]["equal"])]
    results["total"] = {compat: csrm.total(own, 1, compat) for compat in ("paper", "official")}
    for split, counts in {**SPLITS[world], "none": (0,) * world}.items():
        for dtype in (torch.float32, torch.int64, torch.bool):
            own = (torch.arange(sum(counts) * 6).reshape(-1, 2, 3) % 5).to(dtype)[rows_of(rank, counts)]
            results["rows", split, dtype] = distributed.all_gather_rows(own)
    leaf = torch.ones(2, requires_grad=True)
    results["gather"] = distributed.all_gather(leaf * (rank + 1)), distributed.world_size()
    results["strided"] = distributed.all_gather(torch.arange(6).reshape(2, 3).T + rank)
    results["graph"] = distributed.all_gather_rows(leaf)[0].requires_grad
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3], ids=lambda n: f"{n} processes")
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of the processes computed; they are started once."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, args=(request.param, str(folder)), nprocs=request.param)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(request.param)]


@pytest.mark.parametrize(("split", "setting"), CASES)
def test_processes_equal_one_process(ranks: list[dict], split: str, setting: str) -> None:
    terms, slopes = step(setting, *joined_batch(setting))
    assert all(term > 0 for term in terms.values())
    close = {"rtol": 1e-9, "atol": 1e-12}
    for name in terms:
        parts = [rank[split, setting] for rank in ranks]
        mean = torch.stack([values[name] for values, _ in parts]).mean()
        torch.testing.assert_close(mean, terms[name], **close)
        for view in (0, 1):
            gradient = torch.cat([gradients[name][view] for _, gradients in parts]) / len(ranks)
            torch.testing.assert_close(gradient, slopes[name][view], **close)


def assert_near(parts: list[Tensor], expected: Tensor, tolerance: float) -> None:
    """The ranks' gradients, by DDP's mean, are those of one process, to a part of the largest."""
    found = torch.cat(parts) / len(parts)
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize(("split", "setting"), CASES)
def test_prototypes_in_precision(ranks: list[dict], split: str, setting: str, dtype: torch.dtype) -> None:
    terms, slopes = step(setting, *joined_batch(setting), dtype)
    parts = [rank[split, setting, dtype] for rank in ranks]
    for name, value in terms.items():
        mean = torch.stack([values[name] for values, _ in parts]).mean()
        torch.testing.assert_close(mean, value, rtol=PRECISIONS[dtype], atol=0)
        for view in (0, 1):
            assert_near([found[name][view] for _, found in parts], slopes[name][view], PRECISIONS[dtype])


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("split", ["equal", "unequal", "empty"])
def test_csrm_in_precision(ranks: list[dict], split: str, dtype: torch.dtype) -> None:
    """The memories of the ranks are the same to the last bit in every type."""
    for name, steps in in_precision(slice(0, 6), 0, dtype).items():
        for number, (value, slope, memory) in enumerate(steps):
            parts = [rank["csrm", split, dtype][name][number] for rank in ranks]
            mean = torch.stack([part[0] for part in parts]).mean()
            torch.testing.assert_close(mean, value, rtol=PRECISIONS[dtype], atol=0)
            assert_near([part[1] for part in parts], slope, PRECISIONS[dtype])
            for _, _, of_rank in parts:
                assert all(torch.equal(a, b) for a, b in zip(of_rank, memory, strict=True)), name


@pytest.mark.parametrize("split", ["equal", "unequal", "empty"])
def test_seed_metric(ranks: list[dict], split: str) -> None:
    curve = csrm.counted(slice(0, 6)).compute()
    for rank in ranks:
        assert torch.equal(rank["metric", split][0], curve.iou)
        assert torch.equal(rank["metric", split][1], curve.miou)


CLOSE = {"rtol": 1e-9, "atol": 1e-12}


@pytest.mark.parametrize("split", ["equal", "unequal", "empty"])
def test_prototypes_with_a_memory(ranks: list[dict], split: str) -> None:
    """Each step's terms and gradients, and after it the memory, which is the same on all ranks."""
    for step, (terms, slopes, memory) in enumerate(remembered(slice(0, 6))):
        parts = [rank["memory", split][step] for rank in ranks]
        for name, term in terms.items():
            assert term > 0
            torch.testing.assert_close(torch.stack([part[0][name] for part in parts]).mean(), term, **CLOSE)
        for view in (0, 1):
            slope = torch.cat([part[1][view] for part in parts]) / len(ranks)
            torch.testing.assert_close(slope, slopes[view], **CLOSE)
        for _, _, of_rank in parts:
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(of_rank, parts[0][2], strict=True))
            torch.testing.assert_close(of_rank, memory, **CLOSE)
    assert [len(rows) for rows in memory] == [4, 3, 3, 0, 3]


@functools.cache
def one_process() -> dict[str, object]:
    return csrm_results((6,), 0)


@pytest.mark.parametrize("name", [*csrm.TERMS, *csrm.CONTRASTS])
@pytest.mark.parametrize("split", ["equal", "unequal", "empty"])
def test_csrm_processes_equal_one_process(ranks: list[dict], split: str, name: str) -> None:
    """Value, gradient, and after each of three steps the memory, whose rows are in rank order."""
    expected = one_process()[name]
    found = [rank["csrm", split][name] for rank in ranks]
    if name in csrm.TERMS:
        expected, found = [expected], [[result] for result in found]
    for step, (value, slope, memory) in enumerate(expected):
        assert value > 0
        parts = [results[step] for results in found]
        torch.testing.assert_close(torch.stack([part[0] for part in parts]).mean(), value, **CLOSE)
        torch.testing.assert_close(torch.cat([part[1] for part in parts]) / len(ranks), slope, **CLOSE)
        for _, _, of_rank in parts:
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(of_rank, memory, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("split", ["equal", "unequal", "empty"])
def test_memory_of_processes_is_that_of_one(ranks: list[dict], split: str, dtype: torch.dtype) -> None:
    expected = one_process()[str(dtype)]
    assert all(len(rows) for rows in expected)
    for rank in ranks:
        found = rank["csrm", split][str(dtype)]
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("compat", ["paper", "official"])
def test_csrm_total_of_processes(ranks: list[dict], compat: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank's first image is labelled. One process has all labelled images first; but its contrast takes images,
    candidates and the memory's rows in another order than the ranks, and so draws others: here the ranks' order is put
    to it."""
    each = 6 // len(ranks)
    first = [rank * each for rank in range(len(ranks))]
    order = first + [image for image in range(6) if image not in first]
    back = torch.tensor(order).argsort()
    forward = csrm.UnreliablePixelContrast.forward

    def in_rank_order(self, *inputs, **keywords):
        return forward(self, *(x[back] if isinstance(x, Tensor) else x for x in inputs), **keywords)

    monkeypatch.setattr(csrm.UnreliablePixelContrast, "forward", in_rank_order)
    expected = csrm.total(order, len(ranks), compat)
    found = [rank["total"][compat] for rank in ranks]
    for name, value in expected["terms"].items():
        assert value > 0
        torch.testing.assert_close(torch.stack([part["terms"][name] for part in found]).mean(), value, **CLOSE)
        for index in range(3):
            slope = torch.cat([part["slopes"][name][index] for part in found]) / len(ranks)
            torch.testing.assert_close(slope, expected["slopes"][name][index][back], **CLOSE)
    for part in found:
        for ours, theirs in zip(part["bank"], expected["bank"], strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize("split", ["equal", "unequal", "empty", "none"])
def test_all_gather_rows(ranks: list[dict], split: str, dtype: torch.dtype) -> None:
    counts = (0,) * len(ranks) if split == "none" else SPLITS[len(ranks)][split]
    expected = (torch.arange(sum(counts) * 6).reshape(-1, 2, 3) % 5).to(dtype)
    for rank, result in enumerate(ranks):
        joined, start = result["rows", split, dtype]
        assert joined.dtype == dtype
        assert torch.equal(joined, expected)
        assert start == sum(counts[:rank])


def test_all_gather(ranks: list[dict]) -> None:
    for result in ranks:
        gathered, world = result["gather"]
        assert world == len(ranks)
        assert torch.equal(gathered, torch.arange(1.0, len(ranks) + 1)[:, None].expand(-1, 2))
        assert not gathered.requires_grad
        assert not result["graph"]
        assert torch.equal(result["strided"][1], torch.arange(6).reshape(2, 3).T + 1)


def test_without_processes_the_collectives_do_nothing() -> None:
    x = torch.ones(3, 2, requires_grad=True)
    assert distributed.world_size() == 1
    assert distributed.all_gather(x).shape == (1, 3, 2)
    assert not distributed.all_gather(x).requires_grad
    joined, start = distributed.all_gather_rows(x)
    assert torch.equal(joined, x)
    assert start == 0
    assert not joined.requires_grad
