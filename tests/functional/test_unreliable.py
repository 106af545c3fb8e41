"""The parts of the contrast of unreliable pixels against their literal readings."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.literal import csrm as literal
from wsss_contrast import functional
from wsss_contrast.functional import unreliable
from wsss_contrast.functional.maps import unit

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=5),
    st.lists(st.integers(-1, 6), min_size=1, max_size=3),
)
def test_among_highest(rows: list[list[int]], counts: list[int]) -> None:
    """Ties go to the lowest id."""
    for found, count in zip(functional.among_highest(torch.tensor(rows).float(), *counts), counts, strict=True):
        assert found.tolist() == [[literal.rank(row, c) < count for c in range(4)] for row in rows]


RULES = [
    dict(zip(("ranks", "included", "confidence", "own"), values, strict=True))
    for values in itertools.product([(0, 0), (1, 3), (2, 2), (2, 6)], [False, True], [0.05, 1.0], [False, True])
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
def test_negative_candidates(rule: dict) -> None:
    probabilities = (3 * normal(0, 60, 5)).softmax(dim=1)
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(-1, 5, (60,), generator=generator)
    labels[labels < 0] = 255
    tags = torch.rand(60, 5, generator=generator) < 0.5
    tags[:, 0] = True
    labeled, high = torch.rand(2, 60, generator=generator) < torch.tensor([[0.4], [0.7]])
    low_rank, high_rank = rule["ranks"]
    got = functional.negative_candidates(
        *(probabilities, labels, tags, labeled, high),
        *(low_rank, high_rank - (not rule["included"]), rule["confidence"], rule["own"]),
    )
    for pixel in range(60):
        described = literal.Pixel(
            *(probabilities[pixel].tolist(), int(labels[pixel]), bool(labeled[pixel])),
            *(False, bool(high[pixel]), tags[pixel].tolist()),
        )
        options = (low_rank, high_rank, rule["included"], rule["confidence"], rule["own"])
        assert got[pixel].tolist() == [literal.is_negative(described, c, *options) for c in range(5)]
    if not rule["own"]:
        assert not (got & (labels[:, None] == torch.arange(5))).any()


def test_choose_numbers_the_candidates_of_each_class() -> None:
    candidates = normal(2, 20, 3) > 0.3
    numbers = torch.stack([torch.arange(int(candidates[:, c].sum())).repeat(9)[:9].flip(0) for c in range(3)])
    pixels = functional.choose(candidates, numbers)
    for c in range(3):
        of_class = candidates[:, c].nonzero()[:, 0]
        assert torch.equal(pixels[c], of_class[numbers[c]])


def test_choose_beyond_the_candidates_stays_in_range() -> None:
    pixels = functional.choose(torch.zeros(4, 2, dtype=torch.bool), torch.tensor([[0, 7], [3, 1]]))
    assert ((pixels >= 0) & (pixels < 4)).all()


def test_class_sums() -> None:
    features, members = normal(3, 2, 3, 4, 5), normal(4, 2, 6, 4, 5) > 0.5
    members[:, 2] = False
    sums, counts = unreliable.class_sums(features, members)
    for c in range(6):
        chosen = [v for v, m in zip(literal.pixels(features), members[:, c].flatten(), strict=True) if m]
        assert counts[c] == len(chosen)
        torch.testing.assert_close(sums[c], sum(chosen, torch.zeros(3, dtype=torch.float64)), **EXACT)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gather_pixels(layout: torch.memory_format) -> None:
    features = normal(5, 2, 3, 4, 5).to(memory_format=layout).requires_grad_()
    pixels = torch.tensor([0, 39, 17, 17, 20, 3])
    got, want = unreliable.gather_pixels(features, pixels), torch.stack(literal.pixels(features))[pixels]
    assert torch.equal(got, want)
    weight = normal(6, 6, 3)
    slopes = [torch.autograd.grad((x * weight).sum(), features)[0] for x in (got, want)]
    torch.testing.assert_close(*slopes, **EXACT)


@pytest.mark.parametrize("chunk", [1, 2**18])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_info_nce(temperature: float, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unreliable, "_CHUNK", chunk)
    queries = normal(7, 5, 3).requires_grad_()
    positives, rows = unit(normal(8, 5, 3)), unit(normal(9, 7, 3))
    places = torch.randint(0, 7, (5, 4), generator=torch.Generator().manual_seed(0))
    got = functional.info_nce(unit(queries), positives, rows, places, temperature)
    want = torch.stack([literal.info_nce(q, positives[i], rows[places[i]], temperature) for i, q in enumerate(queries)])
    torch.testing.assert_close(got, want, **EXACT)
    weight = normal(10, 5)
    slopes = [torch.autograd.grad((x * weight).sum(), queries)[0] for x in (got, want)]
    torch.testing.assert_close(*slopes, **EXACT)


def test_info_nce_gives_no_gradient_to_positives_and_memory() -> None:
    queries, positives, rows = (unit(normal(n, 4, 3)).requires_grad_() for n in (1, 2, 3))
    loss = functional.info_nce(queries, positives, rows, torch.zeros(4, 2, dtype=torch.long), 0.5).sum()
    found = torch.autograd.grad(loss, [queries, positives, rows], allow_unused=True)
    assert [x is None for x in found] == [False, True, True]


def test_info_nce_of_a_memory_in_half_precision() -> None:
    queries, positives = unit(normal(1, 4, 3)).float(), unit(normal(2, 4, 3)).float()
    rows, places = unit(normal(3, 6, 3)).half(), torch.arange(12).view(4, 3) % 6
    got = functional.info_nce(queries, positives, rows, places, 0.5)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, functional.info_nce(queries, positives, rows.float(), places, 0.5))


def test_unit_vectors_are_those_of_the_cosine_similarity() -> None:
    a, b = normal(11, 6, 3), normal(12, 6, 3)
    torch.testing.assert_close((unit(a) * unit(b)).sum(1), torch.cosine_similarity(a, b), **EXACT)
    assert torch.equal(unit(torch.zeros(2, 3)), torch.zeros(2, 3))
