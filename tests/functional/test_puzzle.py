"""Tiles, their merging, the reconstruction loss and its weight, against the literal reading."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.literal import puzzle
from wsss_contrast import functional as W

SHAPES = pytest.mark.parametrize("shape", [(2, 3, 4, 6), (3, 1, 2, 2), (1, 2, 8, 2)], ids=str)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@SHAPES
def test_tiles(shape: tuple[int, ...]) -> None:
    images = normal(0, *shape)
    assert torch.equal(W.tile(images), puzzle.tile(images))


@SHAPES
def test_merged_tiles(shape: tuple[int, ...]) -> None:
    count, channels, height, width = shape
    features = normal(1, 4 * count, channels, height, width + 1)  # of any size
    assert torch.equal(W.merge_tiles(features), puzzle.merge_tiles(features))


@SHAPES
def test_merging_is_the_inverse_of_tiling(shape: tuple[int, ...]) -> None:
    images = normal(2, *shape)
    assert torch.equal(W.merge_tiles(W.tile(images)), images)


def test_no_images() -> None:
    tiles = W.tile(torch.zeros(0, 3, 4, 6))
    assert tiles.shape == (0, 3, 2, 3)
    assert W.merge_tiles(tiles).shape == (0, 3, 4, 6)


def test_tiles_keep_the_memory_format() -> None:
    images = normal(3, 2, 3, 4, 6).to(memory_format=torch.channels_last)
    assert W.tile(images).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(W.tile(images), W.tile(images.contiguous()))


@pytest.mark.parametrize(("height", "width"), [(33, 32), (32, 33), (33, 33), (1, 2)])
def test_odd_sizes_are_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"{height} x {width}.*must be even"):
        W.tile(torch.zeros(2, 3, height, width))


def test_tiles_that_are_missing() -> None:
    with pytest.raises(ValueError, match="four tiles of each image, got 6"):
        W.merge_tiles(torch.zeros(6, 3, 2, 2))


@pytest.mark.parametrize("reduction", ["masking", "selection"])
def test_reconstruction(reduction: str) -> None:
    maps, merged = normal(4, 4, 3, 2, 3).requires_grad_(), normal(5, 4, 3, 2, 3).requires_grad_()
    tags = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]])
    got = W.puzzle_reconstruction(maps, merged, tags, reduction)
    want = puzzle.puzzle_reconstruction(maps, merged, tags, reduction)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    slopes, expected = (torch.autograd.grad(loss, (maps, merged)) for loss in (got, want))
    torch.testing.assert_close(slopes, expected, rtol=1e-12, atol=1e-14)
    assert all(slope[tags == 1].abs().min() > 0 for slope in slopes)
    assert all(slope[tags == 0].abs().max() == 0 for slope in slopes)


def test_reconstruction_compares_the_raw_maps() -> None:
    """A difference of negative values counts as one of positive values does, and scaling scales the loss."""
    maps, merged, tags = normal(6, 2, 3, 4, 4), normal(7, 2, 3, 4, 4), torch.ones(2, 3)
    loss = W.puzzle_reconstruction(maps, merged, tags)
    torch.testing.assert_close(W.puzzle_reconstruction(maps - 50, merged - 50, tags), loss)
    torch.testing.assert_close(W.puzzle_reconstruction(7 * maps, 7 * merged, tags), 7 * loss)


def test_alpha_grows_in_the_first_half_to_its_last_value() -> None:
    assert [W.puzzle_alpha(step, 8) for step in range(9)] == [0, 1, 2, 3, 4, 4, 4, 4, 4]
    assert [W.puzzle_alpha(step, 8, 1.0) for step in (0, 1, 6)] == [0, 0.25, 1]
    assert [W.puzzle_alpha(step, 1) for step in (0, 1)] == [0, 4]
    assert W.puzzle_alpha(3, float("inf")) == 0


def test_alpha_of_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="`max_steps` must be at least 1, got 0"):
        W.puzzle_alpha(0, 0)
