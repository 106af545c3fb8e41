"""Cross-supervision's formulas against their literal readings."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.literal import csrm as literal
from wsss_contrast import functional
from wsss_contrast.functional import cross_supervision

EXACT = {"rtol": 1e-11, "atol": 1e-13}


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(shape, generator=generator, dtype=torch.float64)


def some_labels(seed: int, *shape: int, classes: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, shape, generator=generator)
    return labels.masked_fill(torch.rand(shape, generator=generator) < 0.3, 255)


@pytest.fixture(params=["cpu", "device"])
def branch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on a CPU, and what runs where values cannot be read."""
    if request.param == "device":
        monkeypatch.setattr(cross_supervision, "readable", lambda _: False)


@pytest.mark.parametrize("tags", [None, [[1, 0, 1], [0, 0, 0]]], ids=["all", "tagged"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.bool], ids=str)
def test_tag_probabilities(tags: list[list[int]] | None, dtype: torch.dtype) -> None:
    logits = normal(0, 2, 4, 3, 2)
    tags = None if tags is None else torch.tensor(tags).to(dtype)
    got = functional.tag_probabilities(logits, tags)
    torch.testing.assert_close(got, literal.tag_probabilities(logits, tags), **EXACT)
    if tags is not None:
        assert (got[1, 0] == 1).all()
        assert (got[1, 1:] == 0).all()


def test_half_logits_are_softened_in_float32() -> None:
    logits = normal(1, 1, 4, 2, 2).half()
    assert torch.equal(functional.tag_probabilities(logits, None), logits.float().softmax(dim=1))


def test_entropy() -> None:
    probabilities = literal.tag_probabilities(normal(2, 2, 4, 3, 2), torch.tensor([[1, 1, 0], [0, 1, 1]]))
    torch.testing.assert_close(functional.entropy(probabilities), literal.entropy(probabilities), **EXACT)
    uniform = torch.full((1, 4, 1, 1), 0.25)
    assert functional.entropy(uniform).item() == pytest.approx(math.log(4))


@pytest.mark.usefixtures("branch")
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1 / 3, 0.8, 1.0])
@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_quantile_is_that_of_torch(size: int, share: float) -> None:
    values = normal(3, size).view(1, size)
    got = functional.quantile(values, share)
    torch.testing.assert_close(got, torch.quantile(values, share), **EXACT)
    assert got.item() == pytest.approx(literal.percentile(values.flatten().tolist(), share))
    counted = torch.arange(size)[None] % 3 != 1
    torch.testing.assert_close(
        functional.quantile(values, share, counted), torch.quantile(values[counted], share), **EXACT
    )


@pytest.mark.usefixtures("branch")
def test_quantile_of_equal_values_is_exact() -> None:
    """Strict comparisons rest on it: of flat entropies none lies below."""
    for share in (0.0, 0.13, 0.5, 0.8, 1.0):
        values = torch.full((11,), 0.1)
        assert functional.quantile(values, share) == values[0]
    assert functional.quantile(values, 1.0, values > 1) == math.inf
    assert functional.quantile(values[:0], 0.3) == math.inf


def test_quantile_above_the_limit_of_torch() -> None:
    values = (torch.arange(2**24 + 1_001, dtype=torch.int32) % 1000).float()
    assert functional.quantile(values, 1.0) == 999
    assert functional.quantile(values, 0.25).item() == pytest.approx(250, abs=1)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_quantile_needs_a_share(share: float) -> None:
    with pytest.raises(ValueError, match=rf"`share` must be in \[0, 1\], got {share}"):
        functional.quantile(torch.ones(3), share)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_segmentation_nll(smoothing: float) -> None:
    logits, labels = normal(4, 2, 4, 3, 2).requires_grad_(), some_labels(5, 2, 3, 2)
    got = functional.segmentation_nll(logits, labels, smoothing)
    assert (got[labels == 255] == 0).all()
    losses = [
        literal.cross_entropy(vector, literal.one_hot(label, 4), smoothing)
        for vector, label in zip(literal.pixels(logits), labels.flatten().tolist(), strict=True)
        if label != 255
    ]
    torch.testing.assert_close(got[labels != 255], torch.stack(losses), **EXACT)
    slopes = [torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (got, torch.stack(losses))]
    torch.testing.assert_close(*slopes, **EXACT)
    hard = torch.nn.functional.one_hot(labels.clamp_max(3), 4).movedim(-1, 1) * (labels != 255)[:, None]
    torch.testing.assert_close(functional.segmentation_nll(logits, hard.double(), smoothing), got, **EXACT)
    soft = literal.tag_probabilities(normal(6, 2, 4, 3, 2), None)
    want = [
        literal.cross_entropy(vector, target.tolist(), smoothing)
        for vector, target in zip(literal.pixels(logits), literal.pixels(soft), strict=True)
    ]
    torch.testing.assert_close(
        functional.segmentation_nll(logits, soft, smoothing).flatten(), torch.stack(want), **EXACT
    )


def test_class_masks_have_every_image_of_a_batch() -> None:
    """The released encoder fills the first image alone."""
    labels = torch.tensor([[[0, 1]], [[2, 255]], [[1, 1]]])
    expected = [[[1, 0], [0, 1], [0, 0]], [[0, 0], [0, 0], [1, 0]], [[0, 0], [1, 1], [0, 0]]]
    assert functional.class_masks(labels, 3).squeeze(2).int().tolist() == expected


def test_has_foreground() -> None:
    labels = torch.tensor([[[0, 255]], [[255, 255]], [[0, 2]], [[1, 255]]])
    assert functional.has_foreground(labels).tolist() == [False, False, True, True]
    soft = torch.tensor([[[0.9], [0.1]], [[0.0], [0.0]], [[0.4], [0.6]]])[..., None]
    assert functional.has_foreground(soft).tolist() == [False, False, True]


@pytest.mark.parametrize("confidence", [0.0, 0.5, 1.0])
def test_confident_labels(confidence: float) -> None:
    probabilities = literal.tag_probabilities(normal(7, 2, 4, 3, 2), None)
    probabilities[0, :, 0, 0] = torch.tensor([0.5, 0.5, 0.0, 0.0])  # not above a half
    probabilities[0, :, 0, 1] = torch.tensor([0.0, 0.0, 0.0, 1.0])  # not above 1
    got = functional.confident_labels(probabilities, confidence)
    assert torch.equal(got, literal.confident_labels(probabilities, confidence))
    assert (got == 255).any() == (confidence > 0)


@pytest.mark.parametrize("size", [(2, 3), (4, 6), (8, 6), (3, 5), (11, 7)], ids=str)
def test_nearest_labels(size: tuple[int, int]) -> None:
    labels = torch.arange(2 * 8 * 6).view(2, 8, 6)
    assert torch.equal(functional.nearest_labels(labels, size), literal.nearest(labels, *size))
