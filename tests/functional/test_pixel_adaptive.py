"""Pixel-adaptive refinement against its literal reading, and what it holds in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.literal import pixel_adaptive as literal
from wsss_contrast.functional import neighbour_offsets, pixel_affinity, propagate

PAPER = (1, 2, 4, 8, 12, 24)


def noise(seed: int = 0, images: int = 2, height: int = 5, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (images, 3, height, width), generator=generator, dtype=torch.uint8)


def scores(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flat(value: int = 90) -> Tensor:
    return torch.full((1, 3, 5, 6), value, dtype=torch.uint8)


def with_a_dot() -> Tensor:
    """At the dot all differences are the same, their deviation is 0."""
    photo = flat()
    photo[0, :, 2, 3] = torch.tensor([200, 10, 90], dtype=torch.uint8)
    return photo


def two_colors() -> Tensor:
    photo = flat(40)
    photo[..., 3:] = 200
    return photo


PHOTOS = {
    "noise": noise(),
    "flat": flat(),
    "dot": with_a_dot(),
    "two colours": two_colors(),
    "one pixel": noise(images=1, height=1, width=1),
    "one row": noise(images=1, height=1, width=7),
}


@pytest.mark.parametrize("dilations", [(1,), (2,), (1, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("name", PHOTOS)
def test_affinity_equals_literal_reading(name: str, dilations: tuple[int, ...]) -> None:
    photos = PHOTOS[name]
    expected = literal.kernel(photos, dilations)
    affinity = pixel_affinity(photos.double(), dilations)
    assert affinity.isfinite().all()
    torch.testing.assert_close(affinity, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(pixel_affinity(photos, dilations), expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.01), (0.3, 2.0, 0.7), (1.5, 0.1, 0.0)], ids=str)
def test_settings_of_the_kernel(weights: tuple[float, float, float]) -> None:
    affinity = pixel_affinity(noise().double(), (1, 2), *weights)
    torch.testing.assert_close(affinity, literal.kernel(noise(), (1, 2), *weights), rtol=1e-9, atol=1e-12)


def test_order_of_the_neighbours() -> None:
    assert neighbour_offsets((2, 1)) == literal.neighbours((2, 1))
    photo = flat(40)
    photo[0, :, 2, 3] = 200  # below and to the right of (1, 2)
    affinity = pixel_affinity(photo, (1,))
    assert affinity[0, :, 1, 2].argmin() == neighbour_offsets((1,)).index((1, 1))


def test_beyond_the_border_lie_copies_of_it() -> None:
    """Three of the corner's eight neighbours are copies of itself."""
    photo = noise(images=1)
    padded = F.pad(photo.double(), [3] * 4, mode="replicate")
    expected = pixel_affinity(padded, (1, 3))[..., 3:-3, 3:-3]
    torch.testing.assert_close(pixel_affinity(photo.double(), (1, 3)), expected)
    corner = torch.zeros(1, 1, 5, 6)
    corner[..., 0, 0] = 1
    once = propagate(corner, torch.full((1, 8, 5, 6), 1 / 8), (1,), steps=1)
    assert (once[0, 0, :3, :3] * 8).tolist() == [[3, 2, 0], [2, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("name", PHOTOS)
def test_the_weights_of_a_pixel_add_up_to_1(name: str) -> None:
    affinity = pixel_affinity(PHOTOS[name])
    assert affinity.shape == (len(PHOTOS[name]), 48, *PHOTOS[name].shape[2:])
    assert affinity.min() >= 0
    torch.testing.assert_close(affinity.sum(dim=1), torch.ones_like(affinity[:, 0]))


def test_bytes_and_floats_give_the_same() -> None:
    of_bytes = pixel_affinity(noise(), (1, 2))
    assert of_bytes.dtype == torch.float32
    assert torch.equal(of_bytes, pixel_affinity(noise().float(), (1, 2)))
    assert torch.equal(of_bytes, pixel_affinity(noise().half(), (1, 2)))  # 0 to 255 are exact in it
    assert torch.equal(of_bytes, pixel_affinity(noise().bfloat16(), (1, 2)))
    torch.testing.assert_close(of_bytes, pixel_affinity(noise().float() / 255, (1, 2)), rtol=1e-3, atol=1e-5)


def test_affinity_is_constant_and_leaves_the_photo_as_it_is() -> None:
    photos = noise().float().requires_grad_()
    assert not pixel_affinity(photos, (1,)).requires_grad
    assert torch.equal(photos.detach(), noise().float())


@pytest.mark.parametrize("dilations", [(1,), (1, 2)], ids=str)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_propagation_equals_literal_reading(steps: int, dilations: tuple[int, ...]) -> None:
    affinity = literal.kernel(noise(height=3, width=4), dilations)
    maps = scores(1, 2, 3, 3, 4).requires_grad_()
    got, want = (of(maps, affinity, dilations, steps) for of in (propagate, literal.propagate))
    torch.testing.assert_close(got, want)
    weight = scores(2, 2, 3, 3, 4)
    slope, expected = (torch.autograd.grad((x * weight).sum(), maps)[0] for x in (got, want))
    torch.testing.assert_close(slope, expected)


def test_gradcheck() -> None:
    affinity = pixel_affinity(noise(height=3, width=4).double(), (1, 2))
    maps = scores(3, 2, 2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: propagate(x, affinity, (1, 2), 2), maps)


@pytest.mark.parametrize("dilations", [(1,), (1, 2, 4)], ids=str)
def test_affinity_of_other_neighbours(dilations: tuple[int, ...]) -> None:
    """Of fewer, the first neighbours alone would be added up, and maps fade."""
    of = r"`affinity` has 16 neighbours, but the dilations .* are " + str(8 * len(dilations))
    with pytest.raises(ValueError, match=of):
        propagate(scores(4, 2, 3, 5, 6), pixel_affinity(noise(), (1, 2)), dilations)


def test_maps_keep_their_range() -> None:
    affinity = pixel_affinity(noise(height=20, width=24))
    maps = scores(4, 2, 3, 20, 24).float() * 7 - 3
    mixed = propagate(maps, affinity)
    assert (mixed.amax(dim=(-2, -1)) <= maps.amax(dim=(-2, -1)) + 1e-5).all()
    assert (mixed.amin(dim=(-2, -1)) >= maps.amin(dim=(-2, -1)) - 1e-5).all()
    assert mixed.std() < maps.std()
    torch.testing.assert_close(propagate(torch.full_like(maps, 0.4), affinity), torch.full_like(maps, 0.4))


def whole_tensor(maps: Tensor, affinity: Tensor, dilations: tuple[int, ...], steps: int) -> Tensor:
    """All neighbours of all classes in one tensor (N, C, neighbours, H, W)."""
    height, width = maps.shape[2:]
    reach = max(dilations)
    for _ in range(steps):
        padded = F.pad(maps, [reach] * 4, mode="replicate")
        shifted = [
            padded[..., reach + y : reach + y + height, reach + x : reach + x + width]
            for y, x in literal.neighbours(dilations)
        ]
        maps = (torch.stack(shifted, dim=2) * affinity[:, None]).sum(dim=2)
    return maps


@pytest.mark.parametrize(("dtype", "steps", "error"), [(torch.float32, 1, 1e-6), (torch.float64, 15, 1e-12)])
def test_one_neighbour_at_a_time_equals_the_whole_tensor(dtype: torch.dtype, steps: int, error: float) -> None:
    affinity = pixel_affinity(noise(height=20, width=24).to(dtype))
    maps = scores(5, 2, 4, 20, 24).to(dtype)
    got, want = propagate(maps, affinity, steps=steps), whole_tensor(maps, affinity, PAPER, steps)
    torch.testing.assert_close(got, want, rtol=0, atol=error)


def test_the_papers_settings_are_the_default() -> None:
    affinity = pixel_affinity(noise())
    assert torch.equal(affinity, pixel_affinity(noise(), PAPER, 0.3, 0.3, 0.01))
    maps = scores(9, 2, 3, 5, 6)
    assert torch.equal(propagate(maps, affinity), propagate(maps, affinity, PAPER, 15))


class Storages(TorchDispatchMode):
    """Writes down how many numbers each memory block holds that an operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.numbers[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return out


def test_no_tensor_of_classes_times_neighbours_is_made() -> None:
    dilations, classes, side = (1, 2), 7, 16
    photos, maps = noise(images=1, height=side, width=side), scores(6, 1, classes, side, side).requires_grad_()
    with Storages() as made:
        affinity = pixel_affinity(photos, dilations)
        assert [n for n in made.numbers.values() if n >= affinity.numel()] == [affinity.numel()]  # once
        propagate(maps, affinity, dilations, 2).sum().backward()
    assert max(made.numbers.values()) <= max(affinity.numel(), classes * (side + 4) ** 2)
    with Storages() as made:  # it would be seen
        whole_tensor(maps, affinity, dilations, 2)
    assert max(made.numbers.values()) == classes * affinity.numel()


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_to_float32(half: torch.dtype) -> None:
    affinity = pixel_affinity(noise(), (1, 2))
    maps = scores(7, 2, 3, 5, 6).to(half)
    mixed = propagate(maps, affinity, (1, 2), 4)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, propagate(maps.float(), affinity, (1, 2), 4))


def test_a_batch_equals_one_at_a_time() -> None:
    photos, maps = noise(images=3), scores(8, 3, 2, 5, 6)
    affinity = pixel_affinity(photos, (1, 2))
    together = propagate(maps, affinity, (1, 2), 3)
    for n in range(3):
        alone = pixel_affinity(photos[n : n + 1], (1, 2))
        torch.testing.assert_close(affinity[n : n + 1], alone)
        torch.testing.assert_close(together[n : n + 1], propagate(maps[n : n + 1], alone, (1, 2), 3))
