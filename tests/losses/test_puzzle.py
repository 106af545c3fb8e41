"""The reconstruction loss of Puzzle-CAM against its literal reading, and its argument errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.literal import puzzle
from wsss_contrast.losses import PuzzleReconstruction

BOTH = pytest.mark.parametrize("reduction", ["masking", "selection"])
TAGS = {
    "random": [[1, 0, 1], [0, 1, 0]],
    "none": [[0, 0, 0], [0, 0, 0]],
    "one image without": [[0, 1, 1], [0, 0, 0]],
    "all": [[1, 1, 1], [1, 1, 1]],
}


def maps(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


@BOTH
@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("size", [(2, 4), (2, 2)], ids=str)
def test_value_and_gradient(size: tuple[int, int], tags: str, reduction: str) -> None:
    inputs, labels = [maps(1, 2, 3, *size), maps(2, 2, 3, *size)], torch.tensor(TAGS[tags])
    got = PuzzleReconstruction(reduction)(*inputs, labels)
    want = puzzle.puzzle_reconstruction(*inputs, labels, reduction)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)
    slopes, expected = (torch.autograd.grad(loss, inputs) for loss in (got, want))
    torch.testing.assert_close(slopes, expected, rtol=1e-9, atol=1e-11)


def test_masking_is_the_default() -> None:
    first, second, tags = maps(3, 2, 3, 4, 4), maps(4, 2, 3, 4, 4), torch.tensor(TAGS["random"])
    losses = {name: PuzzleReconstruction(name)(first, second, tags) for name in ("masking", "selection")}
    assert PuzzleReconstruction()(first, second, tags) == losses["masking"]
    assert losses["masking"] < losses["selection"]


@BOTH
def test_equal_maps_cost_nothing(reduction: str) -> None:
    same = maps(5, 2, 3, 4, 4)
    assert PuzzleReconstruction(reduction)(same, same.clone(), torch.ones(2, 3)) == 0


def test_unknown_reduction() -> None:
    with pytest.raises(ValueError, match="'masking' or 'selection', got 'mean'"):
        PuzzleReconstruction("mean")


MAPS = torch.zeros(2, 3, 4, 4)
TAG = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((MAPS, MAPS[..., 1:], TAG), r"size of `cams`, got 4 x 3 for 4 x 4; .* multiples of twice the stride"),
        ((MAPS, MAPS[:1], TAG), r"batch sizes differ.*'merged_cams': 1"),
        ((MAPS, MAPS.repeat(4, 1, 1, 1), TAG), r"batch sizes differ.*'merged_cams': 8"),
        ((MAPS, MAPS[:, :1], TAG), r"channels differ.*'merged_cams': 1"),
        ((MAPS[0], MAPS, TAG), r"`cams`.*\(3, 4, 4\)"),
        ((MAPS.long(), MAPS, TAG), r"`cams`.*torch.int64"),
        ((MAPS, MAPS * math.nan, TAG), r"`merged_cams` has NaN"),
        ((MAPS, MAPS, TAG[:, :2]), r"`tags`.*\(2, 3\), got \(2, 2\)"),
        ((MAPS, MAPS, TAG + 2), r"`tags` must be 0 or 1, got values in \[2.0, 2.0\]"),
    ],
)
def test_tensors_that_do_not_go_together(inputs: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PuzzleReconstruction()(*inputs)
