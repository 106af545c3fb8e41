"""ToCo's and AFA's losses against their literal readings, and their argument errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.literal import token_pairs as literal
from wsss_contrast.functional import attention_scores, token_pairs
from wsss_contrast.losses import AttentionAffinity, PatchTokenContrast
from wsss_contrast.nn import AttentionAffinityHead

LABELS = {
    "mixed": [[[0, 1, 255], [1, 1, 2]], [[0, 0, 0], [255, 2, 2]]],
    "one": [[[1, 1, 1], [1, 1, 1]], [[1, 1, 1], [1, 1, 255]]],
    "none": [[[255] * 3] * 2] * 2,
    "all different": [[[0, 1, 2], [3, 4, 5]], [[255] * 3] * 2],
}


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("labels", LABELS)
def test_patch_token_contrast(labels: str) -> None:
    features, ids = normal(0, 2, 5, 2, 3), torch.tensor(LABELS[labels])
    compare(sum(PatchTokenContrast()(features, ids).values()), literal.patch_token_contrast(features, ids), features)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("radius", [1, 2])
def test_attention_affinity(radius: int, labels: str) -> None:
    affinity, ids = normal(1, 2, 6, 6), torch.tensor(LABELS[labels])
    got = sum(AttentionAffinity(radius)(affinity, ids).values())
    compare(got, literal.attention_affinity(affinity, ids, radius), affinity)


def compare(got: Any, want: Tensor, leaf: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)
    slopes, expected = (torch.autograd.grad(loss, leaf) for loss in (got, want))
    torch.testing.assert_close(slopes, expected, rtol=1e-9, atol=1e-12)


def test_every_pair_is_counted_both_ways_and_none_with_itself() -> None:
    pairs = token_pairs(torch.tensor([[[0, 0], [1, 255]]]))
    assert pairs.same.nonzero().tolist() == [[0, 0, 1], [0, 1, 0]]
    assert pairs.different.nonzero().tolist() == [[0, 0, 2], [0, 1, 2], [0, 2, 0], [0, 2, 1]]


def test_head_is_symmetric_and_leaves_out_other_tokens() -> None:
    head = AttentionAffinityHead(3)
    layers = [torch.randn(2, heads, 8, 8) for heads in (1, 2)]
    affinity = head(layers, 6)
    assert affinity.shape == (2, 6, 6)
    torch.testing.assert_close(affinity, affinity.transpose(1, 2))
    changed = [layer.clone() for layer in layers]
    for layer in changed:
        layer[..., :2, :] = layer[..., :, :2] = 9.0
    torch.testing.assert_close(head(changed, 6), affinity)
    weight, bias = head.mix.weight.flatten(), head.mix.bias
    joined = torch.cat(layers, dim=1)[..., 2:, 2:]
    expected = (weight[:, None, None] * (joined + joined.transpose(2, 3))).sum(dim=1) + bias
    torch.testing.assert_close(affinity, expected)


def test_attention_scores_are_what_the_softmax_is_of() -> None:
    queries, keys, values = (torch.randn(2, 3, 5, 4) for _ in range(3))
    attended = torch.nn.functional.scaled_dot_product_attention(queries, keys, values)
    torch.testing.assert_close(attention_scores(queries, keys).softmax(dim=-1) @ values, attended)


FEATURES, AFFINITY, IDS = torch.zeros(2, 4, 2, 3), torch.zeros(2, 6, 6), torch.zeros(2, 2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("loss", "tensors", "message"),
    [
        (PatchTokenContrast(), (FEATURES[0], IDS), r"`features`.*\(4, 2, 3\)"),
        (PatchTokenContrast(), (FEATURES, IDS[:, :1]), r"the size of `features`, 2 x 3, got 1 x 3"),
        (PatchTokenContrast(), (FEATURES * torch.nan, IDS), "`features` has NaN"),
        (PatchTokenContrast(), (FEATURES, IDS - 1), r"`labels` must be ids .* got \[-1\]"),
        (AttentionAffinity(), (AFFINITY[0], IDS), r"`affinity` must be of shape \(N, L, L\), got \(6, 6\)"),
        (AttentionAffinity(), (AFFINITY[:, :5], IDS), r"got \(2, 5, 6\)"),
        (AttentionAffinity(), (AFFINITY, IDS[:, :, :2]), r"of the 6 tokens of `affinity`, got \(2, 2, 2\)"),
        (AttentionAffinity(), (AFFINITY, IDS.float()), "`labels` must be an int64"),
    ],
)
def test_tensors_that_do_not_go_together(loss: Any, tensors: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(*tensors)


def test_radius() -> None:
    with pytest.raises(ValueError, match="`radius` must be at least 1, got 0"):
        AttentionAffinity(0)
