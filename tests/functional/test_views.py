"""The view transform: one operation for a photo, its features and its maps, and what takes no part in a loss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wsss_contrast import functional
from wsss_contrast.data import ViewTransform
from wsss_contrast.functional import resize, valid_pixels, view_matrix, warp

SIZES = st.tuples(st.integers(2, 17), st.integers(2, 17))


def matrix_of(
    size: tuple[int, int], flip: bool = False, degrees: float = 0.0, shift: tuple[float, float] = (0.0, 0.0)
) -> Tensor:
    double = {"dtype": torch.float64}
    return view_matrix(size, torch.tensor([flip]), torch.tensor([degrees], **double), torch.tensor([shift], **double))


def ramp(size: tuple[int, int], slopes: tuple[float, float, float]) -> Tensor:
    """A plane over normalised coordinates, sampled on a grid of that size. Bilinear sampling is exact on it."""
    y = torch.linspace(-1, 1, size[0], dtype=torch.float64)[:, None]
    x = torch.linspace(-1, 1, size[1], dtype=torch.float64)[None]
    return (slopes[0] + slopes[1] * x + slopes[2] * y)[None, None]


@settings(deadline=None, max_examples=60)
@given(
    photo=SIZES,
    maps=SIZES,
    target=SIZES,
    flip=st.booleans(),
    degrees=st.floats(-180, 180),
    shift=st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
    slopes=st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1)),
)
def test_transforming_then_sampling_equals_sampling_then_transforming(
    photo: tuple[int, int],
    maps: tuple[int, int],
    target: tuple[int, int],
    flip: bool,
    degrees: float,
    shift: tuple[float, float],
    slopes: tuple[float, float, float],
) -> None:
    matrix = matrix_of(photo, flip, degrees, shift)
    of_photo, valid = warp(ramp(photo, slopes), matrix, target)  # moved at the photo's resolution
    of_maps, valid_of_maps = warp(ramp(maps, slopes), matrix, target)  # sampled to a map first, then moved
    assert torch.equal(valid, valid_of_maps)
    assert torch.equal(valid, valid_pixels(matrix, target))
    torch.testing.assert_close(of_photo, of_maps, rtol=0, atol=1e-9)
    # And what is seen there is the plane itself, at the place where the matrix looks.
    grid = torch.nn.functional.affine_grid(matrix, [1, 1, *target], align_corners=True)
    looked_at = slopes[0] + slopes[1] * grid[..., 0] + slopes[2] * grid[..., 1]
    torch.testing.assert_close(of_maps[:, 0], looked_at.clamp(-3, 3) * valid, rtol=0, atol=3e-5)


@settings(deadline=None, max_examples=30)
@given(
    photo=SIZES, flip=st.booleans(), degrees=st.floats(-180, 180), shift=st.tuples(st.floats(-5, 5), st.floats(-5, 5))
)
def test_the_content_is_mirrored_then_rotated_then_shifted(
    photo: tuple[int, int], flip: bool, degrees: float, shift: tuple[float, float]
) -> None:
    """In pixels from the centre: a point p of the photo is seen at R S p + t."""
    matrix = matrix_of(photo, flip, degrees, shift)[0]
    half = torch.tensor([(photo[1] - 1) / 2, (photo[0] - 1) / 2], dtype=torch.float64)
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    rotation = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    for point in torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-2.0, 3.0]], dtype=torch.float64):
        seen_at = rotation @ (point * torch.tensor([-1.0 if flip else 1.0, 1.0])) + torch.tensor(
            shift, dtype=torch.float64
        )
        looks_at = matrix[:, :2] @ (seen_at / half) + matrix[:, 2]
        torch.testing.assert_close(looks_at * half, point, rtol=0, atol=1e-8)


def test_known_moves() -> None:
    maps = torch.rand(1, 2, 5, 7, dtype=torch.float64)
    same = (5, 7)
    torch.testing.assert_close(warp(maps, matrix_of(same, flip=True), same)[0], maps.flip(-1))
    shifted, valid = warp(maps, matrix_of(same, shift=(2, 1)), same)  # two to the right, one down
    torch.testing.assert_close(shifted[..., 1:, 2:], maps[..., :-1, :-2])
    assert not shifted[..., 0, :].any()
    assert not shifted[..., :2].any()
    assert valid.sum() == 4 * 5
    square = maps[..., :5]
    torch.testing.assert_close(
        warp(square, matrix_of((5, 5), degrees=90), (5, 5))[0], torch.rot90(square, -1, (2, 3))
    )  # clockwise


@pytest.mark.parametrize("size", [(3, 4), (9, 13), (1, 1), (1, 5)])
def test_the_identity_is_a_resize(size: tuple[int, int]) -> None:
    maps = torch.rand(1, 3, 6, 8, dtype=torch.float64)
    moved, valid = warp(maps, matrix_of((6, 8)), size)
    assert valid.all()
    torch.testing.assert_close(moved, resize(maps, size))


def test_gradient_stays_inside_and_an_empty_batch_passes() -> None:
    maps = torch.rand(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    matrix = matrix_of((4, 4), degrees=20, shift=(0.5, 0))
    assert torch.autograd.gradcheck(lambda x: warp(x, matrix, (3, 3))[0], maps)
    empty, valid = warp(torch.zeros(0, 2, 4, 4, requires_grad=True), matrix[:0].float(), (3, 3))
    assert empty.shape == (0, 2, 3, 3)
    assert valid.shape == (0, 3, 3)
    empty.sum().backward()


def test_a_source_pixel_that_no_valid_pixel_reads_gets_no_gradient() -> None:
    maps = torch.rand(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    moved, valid = warp(maps, matrix_of((6, 6), shift=(2, 0)), (6, 6))  # two columns leave the view
    moved.sum().backward()
    assert not valid[..., :2].any()
    assert not maps.grad[..., 4:].any()
    assert maps.grad[..., :4].all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_geometry_alone(dtype: torch.dtype) -> None:
    photo = torch.rand(2, 3, 64, 96)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype, enabled=enabled):
            view = ViewTransform(48, flip=True, degrees=20, translate=8)(photo, torch.Generator().manual_seed(0))
            results.append([*view, *warp(photo, view.matrix, (12, 12)), valid_pixels(view.matrix, (12, 12))])
    for without, with_autocast in zip(*results, strict=True):
        assert torch.equal(without, with_autocast)


def test_photos_in_half_precision_stay_so() -> None:
    photo = torch.rand(2, 3, 64, 96).bfloat16()
    view = ViewTransform(48, flip=True, degrees=20)(photo, torch.Generator().manual_seed(0))
    assert view.images.dtype == torch.bfloat16
    assert view.matrix.dtype == torch.float32


@pytest.mark.parametrize("share", [0.29, 0.2, 1.0, 1 / 3])
def test_all_valid_is_as_none_for_any_share(share: float) -> None:
    maps = [torch.rand(2, c, 5, 5) for c in (3, 4, 3, 4)]
    everywhere = torch.ones(2, 5, 5, dtype=torch.bool)
    masked = functional.equivariant_cross_regularization(*maps, TAGS, share, everywhere)
    torch.testing.assert_close(masked, functional.equivariant_cross_regularization(*maps, TAGS, share))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": 0}, "0"), ({"degrees": -1.0}, "-1.0"), ({"degrees": float("nan")}, "nan"), ({"translate": -2.0}, "-2.0"),
     ({"translate": float("inf")}, "inf")],
)  # fmt: skip
def test_transforms_that_cannot_be(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViewTransform(**options)


def test_half_precision_maps_are_moved_in_single() -> None:
    maps = torch.rand(1, 2, 6, 6).bfloat16()
    matrix = matrix_of((6, 6), degrees=10)
    assert warp(maps, matrix, (4, 4))[0].dtype == torch.float32


def test_a_matrix_of_another_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"matrix.*\(2, 2, 3\).*\(1, 2, 3\)"):
        warp(torch.rand(2, 1, 4, 4), matrix_of((4, 4)), (4, 4))


# Pixels that are not valid take no part: on a mask that is a rectangle, every formula gives what it gives on the
# maps cut to that rectangle, and its gradient is zero elsewhere.

TAGS = torch.tensor([[1, 0, 1], [0, 1, 0]])


FORMULAS: dict[str, tuple[tuple[int, ...], Callable[[list[Tensor], Tensor | None], Tensor]]] = {
    "classification": (
        (3,),
        lambda m, valid: functional.multilabel_soft_margin(functional.global_average_pool(m[0], valid), TAGS),
    ),
    "min_pooling": ((3,), lambda m, valid: functional.min_pooling(m[0], TAGS, valid)),
    "er": ((3, 3), lambda m, valid: functional.equivariant_regularization(m[0], m[1], TAGS, valid)),
    "ecr": (
        (3, 4, 3, 4),
        lambda m, valid: functional.equivariant_cross_regularization(*m, TAGS, valid=valid),
    ),
}


def inside(maps: Tensor) -> Tensor:
    return maps[..., 1:6, 2:6]


def rectangle() -> Tensor:
    valid = torch.zeros(2, 7, 6, dtype=torch.bool)
    valid[:, 1:6, 2:6] = True
    return valid


@pytest.mark.parametrize("name", FORMULAS)
def test_pixels_outside_take_no_part_in_a_loss(name: str) -> None:
    channels, formula = FORMULAS[name]
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, c, 7, 6, dtype=torch.float64, generator=generator).requires_grad_() for c in channels]
    masked = formula(maps, rectangle())
    cut = [inside(m).detach().clone().requires_grad_() for m in maps]
    expected = formula(cut, None)
    torch.testing.assert_close(masked, expected, rtol=1e-12, atol=0)
    masked.backward()
    expected.backward()
    for m, c in zip(maps, cut, strict=True):
        if c.grad is None:
            assert m.grad is None
            continue
        assert m.grad is not None
        torch.testing.assert_close(inside(m.grad), c.grad)
        assert not m.grad[~rectangle()[:, None].expand_as(m.grad)].any()


@pytest.mark.parametrize("signed", [False, True])
def test_normalization_sees_valid_pixels_only(signed: bool) -> None:
    maps = torch.randn(2, 3, 7, 6, dtype=torch.float64) + 1
    normalized = functional.normalize_cams(maps, signed, rectangle())
    torch.testing.assert_close(inside(normalized), functional.normalize_cams(inside(maps), signed))


def test_correlation_spreads_valid_pixels_only() -> None:
    cams = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    features = torch.randn(2, 5, 7, 6, dtype=torch.float64)
    valid = rectangle()
    refined = functional.pixel_correlation(functional.correlation_input(cams, valid), features, valid)
    expected = functional.pixel_correlation(functional.correlation_input(inside(cams)), inside(features))
    torch.testing.assert_close(inside(refined), expected)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_batch_without_a_valid_pixel_is_a_zero_with_a_graph(name: str) -> None:
    channels, formula = FORMULAS[name]
    maps = [torch.randn(2, c, 7, 6, requires_grad=True) for c in channels]
    loss = formula(maps, torch.zeros(2, 7, 6, dtype=torch.bool))
    if name == "classification":  # the logits are 0
        loss = loss - functional.multilabel_soft_margin(torch.zeros(2, 3), TAGS)
    assert loss.item() == pytest.approx(0, abs=1e-7)
    loss.backward()
    assert all(m.grad is None or torch.isfinite(m.grad).all() for m in maps)
