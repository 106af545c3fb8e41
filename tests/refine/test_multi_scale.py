"""Multi-scale inference against a reading of it a pixel at a time."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.literal import maps as literal
from wsss_contrast.refine import merge_scales, multi_scale_cams


def literal_resize(maps: Tensor, height: int, width: int) -> Tensor:
    """Bilinear interpolation in which pixels are areas (corners not aligned)."""
    images, channels, rows, columns = maps.shape
    out = torch.zeros(images, channels, height, width, dtype=maps.dtype)
    for row in range(height):
        for column in range(width):
            y = max((row + 0.5) * rows / height - 0.5, 0.0)
            x = max((column + 0.5) * columns / width - 0.5, 0.0)
            top, left = math.floor(y), math.floor(x)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            above = (1 - (x - left)) * maps[:, :, top, left] + (x - left) * maps[:, :, top, right]
            below = (1 - (x - left)) * maps[:, :, bottom, left] + (x - left) * maps[:, :, bottom, right]
            out[:, :, row, column] = (1 - (y - top)) * above + (y - top) * below
    return out


def literal_merge(maps: list[Tensor], tags: Tensor, height: int, width: int) -> Tensor:
    """Sum at the photo's size, tagged classes only, min-max of each map."""
    total = torch.zeros(*tags.shape, height, width, dtype=maps[0].dtype)
    for of_scale in maps:
        total = total + literal_resize(of_scale, height, width)
    for image in range(tags.shape[0]):
        for k in range(tags.shape[1]):
            if not tags[image, k]:
                total[image, k] = 0
    return literal.normalize(total, signed=True)


def host(images: Tensor) -> Tensor:
    """Maps at half size of what is bright and of what is dark. Mirrored photos give mirrored maps."""
    grey = F.avg_pool2d(images.mean(dim=1, keepdim=True), 2)
    return torch.cat([grey, -grey], dim=1)


def photo(height: int = 8, width: int = 12, images: int = 2) -> Tensor:
    return torch.randn(images, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


TAGS = torch.tensor([[1, 1], [0, 1]])


def test_merge_equals_literal_reading() -> None:
    maps = [torch.randn(2, 2, h, w, dtype=torch.float64) for h, w in [(3, 4), (6, 9), (11, 5)]]
    expected = literal_merge(maps, TAGS, 7, 9)
    torch.testing.assert_close(merge_scales(maps, TAGS, (7, 9)), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0), (1.5, 2.0)])
def test_inference_equals_literal_reading(scales: tuple[float, ...], flip: bool) -> None:
    images = photo()
    maps = []
    for scale in scales:
        height, width = round(8 * scale), round(12 * scale)
        scaled = images
        if scale != 1:
            scaled = F.interpolate(images, size=(height, width), mode="bicubic", antialias=True)
        maps.append(literal.resize(host(scaled), height, width))
        if flip:
            mirrored = scaled[..., list(reversed(range(width)))]
            of_mirrored = literal.resize(host(mirrored), height, width)
            maps.append(of_mirrored[..., list(reversed(range(width)))])
    expected = literal_merge(maps, TAGS, 8, 12)
    torch.testing.assert_close(multi_scale_cams(host, images, TAGS, scales, flip), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.5, 2.0)])
def test_mirrored_photo_gives_mirrored_maps(scales: tuple[float, ...]) -> None:
    """Also for a host that is not equivariant, since both views are averaged."""

    def uneven(images: Tensor) -> Tensor:
        ramp = torch.linspace(0, 1, images.shape[-1], dtype=images.dtype)
        return images[:, :2] * ramp

    images = photo(images=1)
    tags = TAGS[:1]
    straight = multi_scale_cams(uneven, images, tags, scales)
    mirrored = multi_scale_cams(uneven, images.flip(-1), tags, scales)
    torch.testing.assert_close(mirrored, straight.flip(-1), rtol=1e-9, atol=1e-10)


def test_flip_changes_nothing_for_an_equivariant_host() -> None:
    with_flip = multi_scale_cams(host, photo(), TAGS, (1.0,), flip=True)
    torch.testing.assert_close(
        with_flip, multi_scale_cams(host, photo(), TAGS, (1.0,), flip=False), rtol=1e-4, atol=1e-4
    )


def test_scale_one_gives_the_host_the_photo_itself() -> None:
    seen = []

    def identity(images: Tensor) -> Tensor:
        seen.append(images)
        return images[:, :2]

    images = photo()
    merged = multi_scale_cams(identity, images, TAGS, (1.0,), flip=False)
    assert seen[0] is images
    expected = literal.normalize(images[:, :2] * TAGS[:, :, None, None], signed=True)
    torch.testing.assert_close(merged, expected, rtol=1e-10, atol=1e-12)


def test_untagged_class_is_minus_one_and_never_wins() -> None:
    merged = multi_scale_cams(host, photo(), TAGS, (0.5, 1.0))
    assert torch.all(merged[1, 0] == -1)
    assert torch.all(merged[1].argmax(dim=0) == 1)
    assert torch.all(merged[TAGS.bool()] < 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_summed_in_float32(dtype: torch.dtype) -> None:
    merged = merge_scales([torch.rand(1, 2, 3, 3).to(dtype)] * 2, torch.ones(1, 2), (5, 5))
    assert merged.dtype == torch.float32


def test_needs_no_gradient() -> None:
    parameter = torch.ones((), dtype=torch.float64, requires_grad=True)
    merged = multi_scale_cams(lambda x: host(x) * parameter, photo(), TAGS, (1.0,))
    assert not merged.requires_grad


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ((), r"`scales` must be positive and not empty, got \(\)"),
        ((1.0, 0.0), r"got \(1\.0, 0\.0\)"),
        ((-1.0,), r"got \(-1\.0,\)"),
    ],
)
def test_wrong_scales(scales: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        multi_scale_cams(host, photo(), TAGS, scales)


def test_no_maps_to_merge() -> None:
    with pytest.raises(ValueError, match="maps"):
        merge_scales([], TAGS, (4, 4))


def test_tags_that_do_not_go_with_the_maps() -> None:
    """(1, K) tags with a batch of two would broadcast: one photo's tags for all."""
    with pytest.raises(ValueError, match="tags"):
        multi_scale_cams(host, photo(), TAGS[:1], (1.0,))
