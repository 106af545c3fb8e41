"""The formulas of pixel-to-prototype contrast, each against its literal reading."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.literal import ppc
from wsss_contrast import functional as W

SEEDS = st.integers(0, 2**31)
BACKGROUND = pytest.mark.parametrize("background", [0, -1])


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coarse(seed: int, *shape: int) -> Tensor:
    """Numbers of which many are equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 4, shape, generator=generator).double() / 4


def some_tags(seed: int, images: int, classes: int) -> Tensor:
    return torch.randint(0, 2, (images, classes), generator=torch.Generator().manual_seed(seed))


def as_tensor(scores: ppc.Scores) -> Tensor:
    return torch.tensor([[-math.inf if s is None else s for s in row] for row in scores], dtype=torch.float64)


@BACKGROUND
@given(seed=SEEDS, images=st.integers(1, 3), classes=st.integers(1, 4))
def test_assign_pixels(background: int, seed: int, images: int, classes: int) -> None:
    maps, tags = coarse(seed, images, classes, 3, 4), some_tags(seed, images, classes)
    labels = W.assign_pixels(maps, tags, 0.5, background)
    assert labels.shape == (images, 3, 4)
    assert labels.flatten().tolist() == ppc.assign_pixels(maps, tags, 0.5, background)


def test_a_tie_with_the_background_goes_to_the_lowest_id() -> None:
    maps, tags = torch.full((1, 2, 1, 1), 0.5), torch.ones(1, 2)
    assert W.assign_pixels(maps, tags, 0.5, 0).item() == 0, "the background, first"
    assert W.assign_pixels(maps, tags, 0.5, -1).item() == 0, "the first foreground class"
    assert W.assign_pixels(maps, torch.tensor([[0, 1]]), 0.5, -1).item() == 1
    assert W.assign_pixels(maps, torch.zeros(1, 2), 0.5, -1).item() == 2


@BACKGROUND
@pytest.mark.parametrize("compat", ["paper", "official"])
@given(seed=SEEDS, images=st.integers(1, 3), classes=st.integers(1, 4), tied=st.booleans())
def test_candidate_scores(background: int, compat: str, seed: int, images: int, classes: int, tied: bool) -> None:
    cams = (coarse if tied else normal)(seed, images, classes, 3, 4)
    tags = some_tags(seed, images, classes)
    function = W.candidate_scores if compat == "paper" else W.candidate_scores_official
    labels, scores = function(cams, tags, 0.3, background)
    expected_labels, expected = ppc.candidate_scores(cams, tags, 0.3, background, compat)
    assert labels.flatten().tolist() == expected_labels
    torch.testing.assert_close(scores.movedim(1, 0).flatten(1), as_tensor(expected), rtol=1e-12, atol=1e-12)


def test_official_candidates_do_not_depend_on_the_tags() -> None:
    cams = normal(0, 2, 3, 4, 4)
    scores = [W.candidate_scores_official(cams, tags, 0.2)[1] for tags in (torch.zeros(2, 3), torch.ones(2, 3))]
    assert torch.equal(*scores)
    assert (scores[0][:, 0] == 0.2).all()


def test_official_dead_maps_are_minus_one_everywhere() -> None:
    _, scores = W.candidate_scores_official(-torch.ones(1, 1, 2, 2), torch.ones(1, 1), 0.2)
    assert (scores[:, 1] == -1).all()


def test_paper_candidates_are_the_assigned_pixels() -> None:
    labels, scores = W.candidate_scores(normal(1, 2, 3, 4, 4), some_tags(1, 2, 3), 0.2)
    assert torch.equal(scores > -math.inf, torch.nn.functional.one_hot(labels, 4).movedim(-1, 1).bool())


@given(seed=SEEDS, top_k=st.integers(1, 30), tied=st.booleans())
def test_top_candidates(seed: int, top_k: int, tied: bool) -> None:
    features, scores = normal(seed, 2, 5, 3, 4), (coarse if tied else normal)(seed + 1, 2, 3, 3, 4)
    scores = scores.masked_fill(normal(seed + 2, 2, 3, 3, 4) > 0.8, -math.inf)
    best, vectors = W.top_candidates(features, scores, top_k)
    assert best.shape == (3, min(top_k, 24))
    assert vectors.shape == (3, min(top_k, 24), 5)
    pixels = features.movedim(1, -1).flatten(0, -2)
    for c, row in enumerate(scores.movedim(1, 0).flatten(1).tolist()):
        chosen = ppc.top_candidates([None if s == -math.inf else s for s in row], top_k)
        assert best[c, : len(chosen)].tolist() == [row[p] for p in chosen]
        assert torch.equal(vectors[c, : len(chosen)], pixels[chosen])
        assert (best[c, len(chosen) :] == -math.inf).all()


def test_top_candidates_by_indices() -> None:
    features, scores = normal(0, 2, 5, 3, 4), normal(1, 2, 3, 3, 4)
    indices = torch.tensor([[0, 23], [5, 5], [12, 1]])
    best, vectors = W.top_candidates(features, scores, 99, indices)
    assert torch.equal(best, scores.movedim(1, 0).flatten(1).gather(1, indices))
    assert torch.equal(vectors, features.movedim(1, -1).flatten(0, -2)[indices])


@given(seed=SEEDS, top_k=st.integers(1, 12), parts=st.integers(1, 4), tied=st.booleans())
def test_merging_the_best_of_parts_gives_the_best_of_all(seed: int, top_k: int, parts: int, tied: bool) -> None:
    features, scores = normal(seed, parts, 5, 3, 4), (coarse if tied else normal)(seed + 1, parts, 3, 3, 4)
    each = [W.top_candidates(f[None], s[None], top_k) for f, s in zip(features, scores, strict=True)]
    merged = W.merge_candidates(*map(torch.stack, zip(*each, strict=True)), top_k)
    whole = W.top_candidates(features, scores, top_k)
    assert all(torch.equal(a, b) for a, b in zip(merged, whole, strict=True))


@given(seed=SEEDS, k=st.integers(1, 5))
def test_estimate_prototypes(seed: int, k: int) -> None:
    scores, features = normal(seed, 4, k), normal(seed + 1, 4, k, 3)
    scores = scores.masked_fill(normal(seed + 2, 4, k) > 0.5, -math.inf)
    prototypes, present = W.estimate_prototypes(scores, features)
    for c in range(4):
        row = [None if s == -math.inf else s for s in scores[c].tolist()]
        expected = ppc.prototype(list(range(k)), row, features[c])
        assert present[c] == (expected is not None)
        torch.testing.assert_close(prototypes[c], torch.zeros(3).double() if expected is None else expected)


def test_prototypes_have_unit_length_or_are_zero() -> None:
    scores = torch.tensor([[0.9, 0.5], [-math.inf, -math.inf], [0.0, 0.0], [0.3, -math.inf]])
    prototypes, present = W.estimate_prototypes(scores, normal(0, 4, 2, 3).float())
    torch.testing.assert_close(prototypes.norm(dim=1), torch.tensor([1.0, 0.0, 0.0, 1.0]))
    assert present.tolist() == [True, False, True, True]


def test_no_candidates_at_all() -> None:
    prototypes, present = W.estimate_prototypes(torch.zeros(3, 0), torch.zeros(3, 0, 4))
    assert torch.equal(prototypes, torch.zeros(3, 4))
    assert not present.any()


@given(seed=SEEDS)
def test_pixel_to_prototype_nll(seed: int) -> None:
    logits, labels = 10 * normal(seed, 6, 5), some_tags(seed, 6, 1).flatten() * 3
    negatives = normal(seed + 1, 6, 5) > 0
    nll = W.pixel_to_prototype_nll(logits, labels, negatives)
    for p in range(6):
        row = [logits[p, c] for c in range(5) if negatives[p, c]]
        torch.testing.assert_close(nll[p], ppc.nll(logits[p, labels[p]], row), rtol=1e-9, atol=1e-9)


def test_nll_without_negatives_is_zero_and_large_logits_do_not_overflow() -> None:
    labels, none = torch.tensor([1, 0]), torch.zeros(2, 3, dtype=torch.bool)
    logits = torch.tensor([[1e4, -1e4, 0.0], [1e4, 1e4, 0.0]], requires_grad=True)
    assert W.pixel_to_prototype_nll(logits, labels, none).tolist() == [0, 0]
    nll = W.pixel_to_prototype_nll(logits, labels, ~none)
    torch.testing.assert_close(nll, torch.tensor([2e4, math.log(3)]), rtol=1e-3, atol=0.5)
    nll.sum().backward()
    assert logits.grad.isfinite().all()


def test_nll_of_ignored_pixels_is_finite() -> None:
    logits = normal(0, 3, 4).requires_grad_()
    labels = torch.tensor([W.IGNORE, 2, W.IGNORE])
    negatives = W.all_negatives(labels, torch.tensor([False, False, False, False]))
    nll = W.pixel_to_prototype_nll(logits, labels, negatives)
    nll.sum().backward()
    assert nll.isfinite().all()
    assert (logits.grad == 0).all()


def test_all_negatives() -> None:
    present = torch.tensor([True, True, False, True])
    negatives = W.all_negatives(torch.tensor([0, 2, 3]), present)
    assert negatives.int().tolist() == [[0, 1, 0, 1], [1, 1, 0, 1], [1, 1, 0, 0]]


RATIOS = st.sampled_from([0.05, 0.2, 0.5, 0.6, 0.75, 1.0])


@given(seed=SEEDS, classes=st.integers(1, 22), hard=RATIOS, share=RATIOS, tied=st.booleans())
def test_semi_hard_negatives(seed: int, classes: int, hard: float, share: float, tied: bool) -> None:
    numbers = coarse if tied else normal
    logits, keys = numbers(seed, 5, classes), numbers(seed + 1, 5, classes)
    negatives = normal(seed + 2, 5, classes) > -0.5
    chosen = W.semi_hard_negatives(logits, negatives, keys, hard, share)
    for p in range(5):
        allowed = [c for c in range(classes) if negatives[p, c]]
        expected = ppc.semi_hard_negatives(logits[p].tolist(), allowed, keys[p].tolist(), hard, share)
        assert chosen[p].nonzero().flatten().tolist() == sorted(expected)


def test_semi_hard_negatives_of_21_classes() -> None:
    """20 negatives: the 12 most similar, 10 of them."""
    logits, labels = normal(3, 50, 21), torch.arange(50) % 21
    negatives = W.all_negatives(labels, torch.ones(21, dtype=torch.bool))
    chosen = W.semi_hard_negatives(logits, negatives, normal(4, 50, 21))
    assert (chosen.sum(dim=1) == 10).all()
    assert not chosen.gather(1, labels[:, None]).any(), "the positive is not its own negative"
    hardest = logits.masked_fill(~negatives, -math.inf).topk(12, dim=1).values[:, -1:]
    assert (logits >= hardest)[chosen].all()


@given(seed=SEEDS, classes=st.integers(1, 22), tied=st.booleans(), hard=st.sampled_from([0.5, 0.6, 0.9]))
def test_semi_hard_negatives_official(seed: int, classes: int, tied: bool, hard: float) -> None:
    logits = (coarse if tied else normal)(seed, 5, classes)
    chosen = W.semi_hard_negatives_official(logits, hard)
    for p in range(5):
        expected = ppc.semi_hard_negatives_official(logits[p].tolist(), hard)
        assert chosen[p].nonzero().flatten().tolist() == sorted(expected)


def test_official_negatives_are_the_4th_to_13th_of_21() -> None:
    chosen = W.semi_hard_negatives_official(-torch.arange(21.0)[None])
    assert chosen.nonzero()[:, 1].tolist() == list(range(3, 13))


@pytest.mark.parametrize("compat", ["paper", "official"])
@given(seed=SEEDS, pixels=st.integers(0, 30), tied=st.booleans(), hard=st.sampled_from([0.5, 0.6, 0.8, 1.0]))
def test_sample_pixels(compat: str, seed: int, pixels: int, tied: bool, hard: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 4, (pixels,), generator=generator)
    numbers = coarse if tied else normal
    similarity, keys = numbers(seed + 1, pixels), numbers(seed + 2, pixels)
    if compat == "paper":
        times, count = W.sample_pixels(similarity, labels, keys, 5)
    else:
        times, count = W.sample_pixels_official(similarity, labels, keys, 5, hard)
    expected = [0] * pixels
    for c in range(5):
        members = [p for p in range(pixels) if labels[p] == c]
        assert count[c] == len(members)
        if compat == "paper":
            chosen = ppc.sample_pixels(members, similarity.tolist(), keys.tolist())
        else:
            chosen = ppc.sample_pixels_official(members, similarity.tolist(), keys.tolist(), hard)
        for p in chosen:
            expected[p] += 1
    assert times.tolist() == expected


def test_a_single_pixel_counts_in_both_halves() -> None:
    times, count = W.sample_pixels(torch.ones(3), torch.tensor([2, -1, 0]), torch.ones(3), 3)
    assert times.tolist() == [2, 0, 2]
    assert count.tolist() == [1, 0, 1]
    times, _ = W.sample_pixels_official(torch.ones(3), torch.tensor([2, -1, 0]), torch.ones(3), 3)
    assert times.tolist() == [0, 0, 0], "the released code leaves it out"


def test_official_sampling_leaves_out_the_hardest_tenth() -> None:
    """Of 10 pixels by rising similarity: the hardest is left out, the next 5 are taken."""
    keys = torch.arange(10.0)
    times, _ = W.sample_pixels_official(torch.arange(10.0), torch.zeros(10, dtype=torch.long), keys, 1)
    assert times.tolist() == [1, 2, 2, 2, 2, 1, 0, 0, 0, 0]


def test_gradcheck() -> None:
    features, scores = normal(5, 2, 3, 2, 3).requires_grad_(), normal(6, 2, 4, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda f, s: W.top_candidates(f, s, 3), (features, scores))
    parts, vectors = normal(7, 2, 4, 3).requires_grad_(), normal(8, 2, 4, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, f: W.merge_candidates(s, f, 4), (parts, vectors))
    weights, candidates = (normal(9, 4, 3).abs() + 0.1).requires_grad_(), normal(10, 4, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, f: W.estimate_prototypes(s, f)[0], (weights, candidates))
    logits, labels = normal(11, 6, 4).requires_grad_(), torch.tensor([0, 1, 2, 3, -1, 0])
    negatives = normal(12, 6, 4) > 0
    assert torch.autograd.gradcheck(lambda x: W.pixel_to_prototype_nll(x, labels, negatives), logits)


def test_empty_places_take_no_gradient() -> None:
    weights = torch.tensor([[0.5, -math.inf], [-math.inf, -math.inf]], requires_grad=True)
    features = normal(13, 2, 2, 3).float().requires_grad_()
    W.estimate_prototypes(weights, features)[0].square().sum().backward()
    assert weights.grad.isfinite().all()
    assert features.grad.isfinite().all()
    assert (features.grad[0, 1] == 0).all()
    assert (features.grad[1] == 0).all()


def test_choices_have_no_gradient() -> None:
    """What mines and samples is a constant, also where its input asks for a gradient."""
    logits = normal(14, 6, 4).requires_grad_()
    labels, keys = torch.tensor([0, 1, 2, 3, -1, 0]), normal(15, 6, 4)
    negatives = W.all_negatives(labels, torch.ones(4, dtype=torch.bool))
    assert not W.semi_hard_negatives(logits, negatives, keys).requires_grad
    assert not W.semi_hard_negatives_official(logits).requires_grad
    for function in (W.sample_pixels, W.sample_pixels_official):
        times, count = function(logits[:, 0], labels, keys[:, 0], 4)
        assert not times.requires_grad
        assert not count.requires_grad


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_maps_are_computed_in_float32(half: torch.dtype) -> None:
    cams, tags = normal(16, 2, 3, 4, 4).to(half), some_tags(16, 2, 3)
    for function in (W.candidate_scores, W.candidate_scores_official):
        labels, scores = function(cams, tags, 0.2)
        expected_labels, expected = function(cams.float(), tags, 0.2)
        assert scores.dtype == torch.float32
        assert torch.equal(labels, expected_labels)
        assert torch.equal(scores, expected)
