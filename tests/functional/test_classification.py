"""Classification from pooled maps against its literal reading."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.literal import seam
from wsss_contrast import functional as W


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 1)])
def test_global_average_pool(shape: tuple[int, ...]) -> None:
    maps = normal(0, *shape)
    torch.testing.assert_close(W.global_average_pool(maps), seam.global_average_pool(maps))
    assert W.global_average_pool(maps.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
def test_multilabel_soft_margin(kind: torch.dtype) -> None:
    logits, tags = (
        normal(1, 4, 3).requires_grad_(),
        torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 0, 1]]),
    )
    got, want = W.multilabel_soft_margin(logits, tags.to(kind)), seam.multilabel_soft_margin(logits, tags)
    torch.testing.assert_close(got, want)
    slope, expected = (torch.autograd.grad(x, logits)[0] for x in (got, want))
    torch.testing.assert_close(slope, expected)


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([[1e5, -1e5]], requires_grad=True)
    W.multilabel_soft_margin(logits, torch.tensor([[0, 1]])).backward()
    assert logits.grad.isfinite().all()
    right = W.multilabel_soft_margin(logits, torch.tensor([[1, 0]]))
    assert right == 0
    torch.testing.assert_close(W.multilabel_soft_margin(torch.zeros(2, 3), torch.ones(2, 3)).item(), math.log(2))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(half: torch.dtype) -> None:
    logits, tags = (normal(2, 4, 3) * 10).to(half), torch.ones(4, 3)
    assert torch.equal(W.multilabel_soft_margin(logits, tags), W.multilabel_soft_margin(logits.float(), tags))


def test_an_empty_batch_is_a_zero_with_a_graph() -> None:
    logits = torch.zeros(0, 3, requires_grad=True)
    loss = W.multilabel_soft_margin(logits, torch.zeros(0, 3))
    assert loss == 0
    loss.backward()
    assert logits.grad.shape == (0, 3)


def test_gradcheck() -> None:
    logits, maps = normal(3, 4, 3).requires_grad_(), normal(4, 2, 3, 2, 2).requires_grad_()
    tags = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 0, 1]])
    assert torch.autograd.gradcheck(lambda x: W.multilabel_soft_margin(x, tags), logits)
    assert torch.autograd.gradcheck(W.global_average_pool, maps)
