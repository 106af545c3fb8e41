"""The permutohedral lattice and the dense CRF over it. Against pydensecrf2: tests/refine/test_dense_crf.py."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from wsss_contrast.functional import PermutohedralLattice, dense_crf, hard_unaries, soft_unaries
from wsss_contrast.functional.permutohedral import _corners


def draw(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return scale * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(features: Tensor) -> Tensor:
    """The kernel (N, P, P) that the lattice approximates."""
    return (-torch.cdist(features, features).square() / 2).exp()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_corners(size: int) -> None:
    """The point is the mean of its corners by their weights, which are lattice points next to each other."""
    features = draw(1, 200, size, scale=20.0) - 10
    corners = _corners(features)
    assert corners.weights.min() >= -1e-4
    torch.testing.assert_close(corners.weights.sum(dim=1), torch.ones(200))
    # From corner to corner one step in each direction but one: after all of them, the first corner again.
    steps = torch.tensor(corners.steps)
    assert steps.sum() == 0
    assert torch.isin(corners.keys.diff(dim=1), -steps).all()
    around = torch.cat([corners.keys, corners.keys[:, :1]], dim=1).diff(dim=1)
    assert torch.equal(around.sort(dim=1).values, (-steps).sort().values.expand(200, -1))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_it_is_a_gaussian_filter(size: int) -> None:
    """Of a wave over a cloud of points: close to the mean by the kernel, and not by one that is 1.3 times off."""
    features = draw(1, 300, size, scale=4 / math.sqrt(size))
    wave, kernel = (2 * features[..., :1]).sin(), dense(features)
    mean = kernel @ wave / kernel.sum(dim=2, keepdim=True)

    def error(scale: float) -> float:
        lattice = PermutohedralLattice(features * scale)
        return float((lattice(wave) / lattice(torch.ones(1, 300, 1)) - mean).abs().mean() / mean.std())

    assert error(1) < 0.2
    assert error(1.3) > 0.28
    assert error(1 / 1.3) > 0.28


def test_normalisation_is_symmetric() -> None:
    features, values = draw(2, 50, 3, scale=3.0), draw(2, 50, 4, seed=1)
    plain, normalised = PermutohedralLattice(features), PermutohedralLattice(features, normalize=True)
    norm = plain(torch.ones(2, 50, 1)).rsqrt()
    torch.testing.assert_close(normalised(values), norm * plain(norm * values))


def test_sets_do_not_meet() -> None:
    features, values = draw(3, 40, 2, scale=2.0), draw(3, 40, 2, seed=1)
    together = PermutohedralLattice(features)(values)
    for i in range(3):
        torch.testing.assert_close(PermutohedralLattice(features[i : i + 1])(values[i : i + 1])[0], together[i])


@pytest.mark.parametrize("end", [4.0, 4.5, 5.0, 5.5, 6.0])
def test_the_last_places_of_a_set_are_no_neighbours_of_the_next_ones_first(end: float) -> None:
    features, values = torch.linspace(0, end, 200).view(1, -1, 1).repeat(3, 1, 1), draw(3, 200, 1)
    together = PermutohedralLattice(features)(values)
    for i in range(3):
        torch.testing.assert_close(PermutohedralLattice(features[:1])(values[i : i + 1])[0], together[i])


def test_gradient_is_the_transpose() -> None:
    features = draw(1, 30, 3, scale=2.0)
    lattice = PermutohedralLattice(features)
    matrix = lattice(torch.eye(30)[None])[0]
    assert not torch.allclose(matrix, matrix.T, atol=1e-4)  # the order of the directions matters
    values = torch.zeros(1, 30, 30, requires_grad=True)
    torch.autograd.backward((lattice(values)[0] * torch.eye(30)).sum())
    assert values.grad is not None
    torch.testing.assert_close(values.grad[0], matrix.T)
    assert torch.autograd.gradcheck(lattice, draw(1, 30, 2, dtype=torch.float64).requires_grad_())


def test_no_points_and_no_values() -> None:
    assert PermutohedralLattice(torch.zeros(0, 4, 2))(torch.zeros(0, 4, 3)).shape == (0, 4, 3)
    assert PermutohedralLattice(torch.zeros(2, 4, 2))(torch.zeros(2, 4, 0)).shape == (2, 4, 0)


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        (torch.zeros(3, 2), r"\(N, P, d\), got \(3, 2\)"),
        (torch.zeros(1, 3, 0), r"\(N, P, d\), got \(1, 3, 0\)"),
        (torch.tensor([[[0.0], [math.nan]]]), "within 1e\\+06; they reach nan"),
        (torch.tensor([[[0.0], [-1e20]]]), r"within 1e\+06; they reach 1e\+20"),
        (torch.tensor([[[0.0] * 5, [1e6] * 5]]), r"of 5 dimensions reach 1e\+06 standard deviations: too many places"),
    ],
)
def test_features_that_are_none(features: Tensor, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        PermutohedralLattice(features)


@pytest.mark.parametrize("values", [torch.zeros(1, 4, 2), torch.zeros(1, 3), torch.zeros(1, 3, 2).long()])
def test_values_of_other_points(values: Tensor) -> None:
    shape = str(tuple(values.shape)).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"of \(1, 3\) points, got {values.dtype} {shape}"):
        PermutohedralLattice(torch.zeros(1, 3, 2))(values)


# --- the dense CRF


def photos(*seeds: int) -> Tensor:
    return torch.stack([draw(3, 12, 15, seed=seed, scale=255).byte() for seed in seeds])


def test_mean_field_by_its_equation() -> None:
    """With all pairs of pixels and exact Gaussians, wide enough for the lattice to be close."""
    photo, unaries = photos(0), draw(1, 3, 12, 15, seed=1, scale=2.0)
    found = dense_crf(photo, unaries, (6, 90, 3), (4, 2), iterations=4)
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(15.0), indexing="ij")
    places = torch.stack([columns, rows], dim=-1).view(1, -1, 2)
    colours = photo.float().flatten(2).transpose(1, 2)
    messages = torch.zeros(1, 180, 180)
    for features, weight in ((places / 4, 2), (torch.cat([places / 6, colours / 90], dim=2), 3)):
        kernel = dense(features)
        norm = kernel.sum(dim=2).rsqrt()
        messages += weight * norm[:, :, None] * kernel * norm[:, None]
    logits = -unaries.flatten(2).transpose(1, 2)
    shares = logits.softmax(dim=2)
    for _ in range(4):
        shares = (logits + messages @ shares).softmax(dim=2)
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), shares, atol=0.04, rtol=0)
    assert (shares - logits.softmax(dim=2)).abs().max() > 0.1


def test_photos_of_a_batch_do_not_meet() -> None:
    unaries = draw(2, 4, 12, 15, seed=3)
    together = dense_crf(photos(0, 1), unaries, (5, 30, 4))
    for i in range(2):
        torch.testing.assert_close(dense_crf(photos(i), unaries[i : i + 1], (5, 30, 4))[0], together[i])


def test_a_class_of_infinite_energy_takes_no_part() -> None:
    unaries = draw(1, 3, 12, 15, seed=3)
    without = dense_crf(photos(0), unaries[:, :2], (5, 30, 4))
    unaries[:, 2] = math.inf
    found = dense_crf(photos(0), unaries, (5, 30, 4))
    assert (found[:, 2] == 0).all()
    torch.testing.assert_close(found[:, :2], without)


def test_it_is_differentiable_through_the_unaries() -> None:
    photo, unaries = photos(0)[..., :5, :6], draw(1, 3, 5, 6, seed=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: dense_crf(photo, u, (3, 80, 0.4), (2, 0.3), 3), unaries)


def test_half_precision() -> None:
    unaries = draw(1, 3, 12, 15, seed=1)
    found = dense_crf(photos(0), unaries.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, dense_crf(photos(0), unaries.bfloat16().float()))


def test_no_images() -> None:
    assert dense_crf(photos(0)[:0], torch.zeros(0, 3, 12, 15)).shape == (0, 3, 12, 15)


def test_photos_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"`photos` must be of shape \(1, 3, 12, 14\), got \(1, 3, 12, 15\)"):
        dense_crf(photos(0), torch.zeros(1, 3, 12, 14))
    with pytest.raises(ValueError, match=r"`unaries` must be \(N, C, H, W\), got \(3, 12, 15\)"):
        dense_crf(photos(0), torch.zeros(3, 12, 15))
    with pytest.raises(ValueError, match=r"above 0, got \(50, 5\) and 0"):
        dense_crf(photos(0), torch.zeros(1, 3, 12, 15), gaussian=(0, 3))
    with pytest.raises(ValueError, match=r"`confidence` must be in \(0, 1\), got 1"):
        hard_unaries(torch.zeros(1, 2, 2).long(), 3, 1)


def test_unaries_of_batches() -> None:
    hard = hard_unaries(torch.tensor([[[0, 2]], [[1, 1]]]), 3, 0.7)
    expected = [[[0.7, 0.15, 0.15], [0.15, 0.15, 0.7]], [[0.15, 0.7, 0.15]] * 2]
    torch.testing.assert_close((-hard).exp()[:, :, 0].transpose(1, 2), torch.tensor(expected))
    soft = soft_unaries(torch.tensor([0.5, 0.0], dtype=torch.bfloat16).view(1, 2, 1, 1))
    torch.testing.assert_close(soft.flatten(), -torch.tensor([0.5, 1e-5]).log())
