"""SEAM's formulas against their literal reading; the losses' tests compare ER, ECR and min-pooling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.literal import seam, tensors
from wsss_contrast import functional as W
from wsss_contrast.functional import seam as W_seam


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coarse(seed: int, *shape: int) -> Tensor:
    return torch.randint(-1, 3, shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("numbers", [normal, coarse])
@pytest.mark.parametrize("shape", [(2, 3, 3, 4), (1, 1, 1, 1), (2, 5, 1, 3)])
def test_suppress_non_maximum(numbers: object, shape: tuple[int, ...]) -> None:
    foreground = numbers(0, *shape)
    assert torch.equal(W.suppress_non_maximum(foreground), seam.suppress_non_maximum(foreground))


def test_suppress_non_maximum_keeps_ties_and_passes_their_gradient() -> None:
    foreground = torch.tensor([0.5, 0.5, 0.2]).reshape(1, 3, 1, 1).requires_grad_()
    kept = W.suppress_non_maximum(foreground)
    assert kept.flatten().tolist() == [0.5, 0.5, 0]
    kept.sum().backward()
    assert foreground.grad.flatten().tolist() == [1, 1, 0]


@pytest.mark.parametrize("numbers", [normal, coarse])
@pytest.mark.parametrize("shape", [(2, 3, 3, 4), (1, 1, 1, 1), (2, 2, 3, 1)])
def test_correlation_input(numbers: object, shape: tuple[int, ...]) -> None:
    cams = numbers(1, *shape).requires_grad_()
    spread = W.correlation_input(cams)
    torch.testing.assert_close(spread, seam.correlation_input(cams))
    assert not spread.requires_grad
    assert (spread >= 0).all()
    assert (spread <= 1).all()
    assert ((spread[:, 1:] > 0).sum(dim=1) <= shape[1]).all()


def test_correlation_input_of_dead_maps_is_background() -> None:
    spread = W.correlation_input(-torch.ones(2, 3, 4, 4))
    assert (spread[:, 0] == 1).all()
    assert (spread[:, 1:] == 0).all()


@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (5, 1)])
def test_pixel_correlation(shape: tuple[int, int]) -> None:
    maps, features = normal(2, 2, 3, *shape).requires_grad_(), normal(3, 2, 4, *shape).requires_grad_()
    got, want = W.pixel_correlation(maps, features), seam.pixel_correlation(maps, features)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    weight = normal(4, *got.shape)
    slopes = torch.autograd.grad((got * weight).sum(), (maps, features))
    expected = torch.autograd.grad((want * weight).sum(), (maps, features))
    torch.testing.assert_close(slopes, expected, rtol=1e-8, atol=1e-9)


def test_pixel_correlation_of_alike_and_of_zero_features() -> None:
    maps = normal(5, 2, 3, 4, 4)
    alike = W.pixel_correlation(maps, torch.ones(2, 5, 4, 4).double())
    torch.testing.assert_close(alike, maps.mean(dim=(-2, -1), keepdim=True).expand_as(maps), rtol=1e-4, atol=1e-6)
    zero = torch.zeros(2, 5, 4, 4, requires_grad=True)
    refined = W.pixel_correlation(maps.float(), zero)
    refined.sum().backward()
    assert (refined == 0).all()
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(half: torch.dtype) -> None:
    maps, features = normal(6, 2, 3, 4, 4).to(half), normal(7, 2, 5, 4, 4).to(half)
    assert torch.equal(W.pixel_correlation(maps, features), W.pixel_correlation(maps.float(), features.float()))
    assert torch.equal(W.correlation_input(maps), W.correlation_input(maps.float()))
    tags = torch.ones(2, 3)
    assert torch.equal(W.min_pooling(maps, tags), W.min_pooling(maps.float(), tags))


def test_pixel_correlation_under_autocast() -> None:
    maps, features = normal(8, 2, 3, 8, 8).float(), normal(9, 2, 16, 8, 8).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        refined = W.pixel_correlation(maps, features)
        assert torch.equal(refined, W.pixel_correlation(maps, features))
        leaf = features.clone().requires_grad_()
        within = torch.autograd.grad(W.pixel_correlation(maps, leaf).square().sum(), leaf)
    assert refined.dtype == torch.float32
    assert torch.equal(refined, W.pixel_correlation(maps, features))
    assert torch.equal(within[0], torch.autograd.grad(W.pixel_correlation(maps, leaf).square().sum(), leaf)[0])


@pytest.mark.parametrize("pixels", [(40, 50), (1, 1999)])
@pytest.mark.parametrize("wanted", [(0, 1), (0,), (1,)])
def test_pixel_correlation_block_by_block(pixels: tuple[int, int], wanted: tuple[int, ...]) -> None:
    """Of so many pixels that they are several blocks; no matrix of pixels by pixels is kept."""
    inputs = normal(20, 1, 3, *pixels), normal(21, 1, 4, *pixels)
    count = pixels[0] * pixels[1]
    assert len(list(W_seam._blocks(inputs[1].flatten(2)))) > 1
    kept: list[int] = []

    def note(x: torch.Tensor) -> torch.Tensor:
        kept.append(x.numel())
        return x

    found = []
    for form in (W.pixel_correlation, tensors.pixel_correlation):
        leaves = [x.clone().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            refined = form(*leaves)
        most = max(kept)
        slopes = torch.autograd.grad((refined * normal(22, *refined.shape)).sum(), [leaves[i] for i in wanted])
        found.append((most, refined.detach(), slopes))
    (ours, refined, slopes), (theirs, expected, their_slopes) = found
    assert ours < 10 * count < count**2 <= theirs
    torch.testing.assert_close(refined, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(slopes, their_slopes, rtol=1e-8, atol=1e-9)


def at_sizes(sizes: tuple[tuple[int, int], tuple[int, int]], *maps: torch.Tensor) -> list[torch.Tensor]:
    """Maps of source and target in turn."""
    return [W.resize(x, sizes[i % 2]) for i, x in enumerate(maps)]


TAGS = {
    "some": [[1, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0]],
    "none": [[0] * 6] * 2,
    "all": [[1] * 6, [0, 0, 0, 1, 0, 0]],
    "none of one": [[0] * 6, [0, 1, 0, 1, 0, 1]],
}


@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
def test_untagged_channels_are_left_out(tags: list[list[int]], ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """And maps are resized by the loss: the same as with all channels of large maps, by value and by gradient."""
    sizes, of = ((12, 14), (7, 6)), torch.tensor(tags)
    maps = normal(30, 2, 6, 6, 7), normal(31, 2, 6, 4, 3), normal(32, 2, 7, 6, 7), normal(33, 2, 7, 4, 3)
    valid = normal(34, 2, 4, 3) > -0.5
    losses = {
        "er": lambda a, b, c, d, **s: W.equivariant_regularization(a, b, of, **s),
        "ecr": lambda a, b, c, d, **s: W.equivariant_cross_regularization(a, c, b, d, of, ratio, **s),
    }
    for form in losses.values():
        results = []
        for all_channels in (False, True):
            if all_channels:
                monkeypatch.setattr(W_seam, "tagged_channels", lambda tags, *maps: (tags, *maps))
            for moved in (False, True):
                leaves = [x.clone().requires_grad_() for x in maps]
                if moved:
                    a, b, c, d = leaves
                    loss = form(W.resize(a, (4, 3)), b, W.resize(c, (4, 3)), d, valid=valid)
                else:
                    loss = form(*at_sizes(sizes, *leaves)) if all_channels else form(*leaves, sizes=sizes)
                slopes = torch.autograd.grad(loss, leaves, materialize_grads=True, allow_unused=True)
                results.append((loss.detach(), *slopes))
            monkeypatch.undo()
        assert "none" not in TAGS or tags == TAGS["none"] or results[0][0] > 0
        torch.testing.assert_close(results[0], results[2], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(results[1], results[3], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
def test_pooling_terms_of_maps_at_another_size(tags: list[list[int]]) -> None:
    of, maps = torch.tensor(tags), normal(35, 2, 6, 5, 4).requires_grad_()
    for size in ((11, 9), (5, 4), (2, 3), (1, 1)):
        for small, large in (
            (W.min_pooling(maps, of, size=size), W.min_pooling(W.resize(maps, size), of)),
            (W.global_average_pool(maps, size=size), W.global_average_pool(W.resize(maps, size))),
        ):
            torch.testing.assert_close(small, large, rtol=1e-9, atol=1e-12)
            slopes = [torch.autograd.grad(x.square().sum(), maps)[0] for x in (small, large)]
            torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-12)


def test_gradcheck() -> None:
    maps, features = normal(10, 2, 3, 2, 3).requires_grad_(), normal(11, 2, 4, 2, 3).requires_grad_()
    other, tags = normal(12, 2, 3, 3, 2).requires_grad_(), torch.tensor([[1, 0, 1], [1, 1, 0]])
    refined1, refined2 = normal(13, 2, 4, 2, 3).requires_grad_(), normal(14, 2, 4, 3, 2).requires_grad_()
    fixed = maps.detach(), other.detach()
    check = torch.autograd.gradcheck
    assert check(W.suppress_non_maximum, maps)
    assert check(W.pixel_correlation, (maps, features))
    assert check(lambda a, b: W.equivariant_regularization(a, b, tags), (maps, other))
    assert check(lambda x: W.min_pooling(x, tags), maps)
    assert check(lambda a, b: W.equivariant_cross_regularization(fixed[0], a, fixed[1], b, tags), (refined1, refined2))


@pytest.mark.parametrize(("size", "quarter"), [((1, 1), 1), ((1, 3), 1), ((2, 4), 2), ((3, 5), 3)])
def test_min_pooling_takes_a_quarter_of_the_pixels(size: tuple[int, int], quarter: int) -> None:
    pixels = size[0] * size[1]
    maps = torch.arange(1.0, pixels + 1).reshape(1, 1, *size)
    assert W.min_pooling(maps, torch.ones(1, 1)).item() == sum(range(1, quarter + 1)) / quarter


def test_cross_regularization_counts_the_given_share() -> None:
    """Refined maps that miss by 1 in one pixel of 16: the share decides how far that is diluted."""
    cams = torch.zeros(1, 1, 4, 4)
    refined = torch.zeros(1, 2, 4, 4)
    losses = [
        W.equivariant_cross_regularization(cams, refined, cams, refined, torch.ones(1, 1), ratio).item()
        for ratio in (0.5, 1.0)
    ]
    assert losses == [2.0, 1.0], "the background of the raw maps is 1, of the refined maps 0: half of the channels"
