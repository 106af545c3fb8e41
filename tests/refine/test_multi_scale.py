"""Multi-scale inference against a reading of it a pixel at a time."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.literal import maps as literal
from wsss_contrast.refine import merge_scales, multi_scale_cams, multi_scale_logits, stream

RECORDED = Path(__file__).parents[3] / "shared" / "golden" / "csrm" / "inference_tta.pt"


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_photos_are_resized_in_float32(dtype: torch.dtype) -> None:
    """torch has no antialiasing in half precision on a CPU. The network gets the precision of its photos."""
    seen, images = [], photo().to(dtype)

    def spy(images: Tensor) -> Tensor:
        seen.append(images)
        return images[:, :2]

    multi_scale_cams(spy, images, TAGS, (1.0, 0.5), flip=False)
    multi_scale_logits(spy, images, (0.5,), flip=False)
    smaller = F.interpolate(images.float(), size=(4, 6), mode="bicubic", antialias=True).to(dtype)
    assert [torch.equal(got, want) for got, want in zip(seen, [images, smaller, smaller], strict=True)] == [True] * 3


def most_bytes(call: Callable[[], Any]) -> int:
    """The most memory that tensors take at a time, of those that are made in the call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize("infer", [multi_scale_cams, multi_scale_logits])
def test_no_more_memory_for_more_scales(infer: Callable[..., Any]) -> None:
    given = (photo(), TAGS) if infer is multi_scale_cams else (photo(),)
    two, eight = (most_bytes(lambda n=n: infer(host, *given, (1.5,) * n)) for n in (2, 8))
    assert eight <= two


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


# --- logits


def literal_logits(images: Tensor, scales: tuple[float, ...], flip: bool) -> Tensor:
    """The mean of what `host` gives at each scale, first at the size of the scaled photo, then at that of the photo."""
    rows, columns = images.shape[2:]
    total, count = torch.zeros(len(images), 2, rows, columns, dtype=images.dtype), 0
    for scale in scales:
        height, width = round(rows * scale), round(columns * scale)
        scaled = images
        if scale != 1:
            scaled = F.interpolate(images, size=(height, width), mode="bicubic", antialias=True)
        back = list(reversed(range(width)))
        total = total + literal_resize(literal.resize(host(scaled), height, width), rows, columns)
        count += 1
        if flip:
            of_mirrored = literal.resize(host(scaled[..., back]), height, width)[..., back]
            total = total + literal_resize(of_mirrored, rows, columns)
            count += 1
    return total / count


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0), (1.5, 2.0)])
def test_logits_equal_literal_reading(scales: tuple[float, ...], flip: bool) -> None:
    images = photo()
    logits = multi_scale_logits(host, images, scales, flip)
    torch.testing.assert_close(logits, literal_logits(images, scales, flip), rtol=1e-9, atol=1e-10)


def test_logits_are_a_mean_without_a_gradient_and_in_float32() -> None:
    weight = torch.tensor([3.0, -2.0]).view(1, 2, 1, 1).requires_grad_()
    logits = multi_scale_logits(lambda x: (weight + 0 * x[:, :2, ::2, ::2]).half(), photo().float())
    assert not logits.requires_grad
    torch.testing.assert_close(logits, torch.tensor([3.0, -2.0]).view(1, 2, 1, 1).expand(2, 2, 8, 12))


def test_wrong_scales_of_logits() -> None:
    with pytest.raises(ValueError, match=r"`scales` must be positive and not empty, got \(\)"):
        multi_scale_logits(host, photo(), ())


@pytest.mark.skipif(not RECORDED.is_file(), reason="needs the folder ../shared/golden/csrm")
def test_logits_equal_recorded_values() -> None:
    """The released code adds the logits of a photo and of its mirror image: twice the mean."""
    cases = list(torch.load(RECORDED, weights_only=True).values())
    assert {case["hflip"] for case in cases} == {False, True}
    for case in cases:
        given = {tuple(raw["input_shape"]): raw["masks_seg"] for raw in case["per_scale_raw"]}
        used = []

        def recorded(images: Tensor, given: dict[Any, Tensor] = given, used: list[Any] = used) -> Tensor:
            used.append(tuple(images.shape))
            return given[tuple(images.shape)]

        images = case["image_uint8"].permute(2, 0, 1)[None].float()
        logits = multi_scale_logits(recorded, images, case["scales"], case["hflip"])
        assert used == list(given)
        probabilities = (logits[0] * (2 if case["hflip"] else 1))[case["seg_keys"]].softmax(dim=0)
        torch.testing.assert_close(probabilities, case["seg_prob"], rtol=1e-5, atol=1e-6)


# --- photos of different sizes


def network() -> nn.Module:
    """Convolutions with batch norm, at half size."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
        layers(torch.randn(4, 3, 16, 16))  # statistics
    return layers.eval()


SIZES = [(8, 12), (10, 9), (8, 12), (12, 8), (10, 9), (8, 12)]
SIZED = [torch.randn(3, *size, generator=torch.Generator().manual_seed(seed)) for seed, size in enumerate(SIZES)]
SIZED_TAGS = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.5)])
def test_photos_of_different_sizes_equal_one_at_a_time(scales: tuple[float, ...], flip: bool) -> None:
    model = network()
    maps = multi_scale_cams(model, SIZED, SIZED_TAGS, scales, flip)
    logits = multi_scale_logits(model, SIZED, scales, flip)
    assert len(maps) == len(logits) == len(SIZED)
    for index, image in enumerate(SIZED):
        alone = multi_scale_cams(model, image[None], SIZED_TAGS[index : index + 1], scales, flip)
        torch.testing.assert_close(maps[index], alone[0], rtol=0, atol=1e-5)
        alone = multi_scale_logits(model, image[None], scales, flip)
        torch.testing.assert_close(logits[index], alone[0], rtol=0, atol=1e-5)


def test_photos_of_one_size_go_through_the_network_together() -> None:
    model, seen = network(), []

    def spy(images: Tensor) -> Tensor:
        seen.append(tuple(images.shape))
        return model(images)

    multi_scale_cams(spy, SIZED, SIZED_TAGS, (1.0,), flip=False)
    assert seen == [(3, 3, 8, 12), (2, 3, 10, 9), (1, 3, 12, 8)]


def test_a_list_equals_a_batch() -> None:
    tags = torch.ones(2, 2)
    listed = multi_scale_cams(host, list(photo()), tags)
    assert isinstance(listed, list)
    assert torch.equal(torch.stack(listed), multi_scale_cams(host, photo(), tags))
    assert multi_scale_cams(host, [], torch.ones(0, 2)) == []


@pytest.mark.parametrize("rows", [0, 5, 7])
def test_tags_that_do_not_go_with_the_list(rows: int) -> None:
    with pytest.raises(ValueError, match=rf"`tags`.*6 photos, got \({rows}, 4\)"):
        multi_scale_cams(network(), SIZED, torch.ones(rows, 4), (1.0,))


# --- a whole data set


def batch_of(*indices: int) -> dict[str, Any]:
    """A batch of copies, which live as long as somebody keeps them."""
    return {
        "image": torch.stack([SIZED[index] for index in indices]),
        "tags": SIZED_TAGS[list(indices)],
        "name": [f"photo {index}" for index in indices],
    }


GROUPS = [(0, 2), (1, 4), (3,), (5,)]


def cams_of(model: nn.Module) -> Callable[[dict[str, Any]], Tensor]:
    return lambda batch: multi_scale_cams(model, batch["image"], batch["tags"], (0.5, 1.0), flip=False)


def logits_of(model: nn.Module) -> Callable[[dict[str, Any]], Tensor]:
    return lambda batch: multi_scale_logits(model, batch["image"], (0.5, 1.0), flip=False)


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize("infer", [cams_of, logits_of])
def test_stream_gives_every_photo_once(
    infer: Callable[[nn.Module], Any], progress: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    infer = infer(network())
    streamed = list(stream(infer, [batch_of(*group) for group in GROUPS], progress=progress))
    assert [name for name, _ in streamed] == [f"photo {index}" for group in GROUPS for index in group]
    for name, found in streamed:
        alone = infer(batch_of(int(name.split()[1])))
        torch.testing.assert_close(found, alone[0], rtol=0, atol=1e-5)
    assert ("100%" in capsys.readouterr().out) == progress


def test_stream_of_logits_needs_no_tags() -> None:
    batches = [{key: value for key, value in batch_of(3).items() if key != "tags"}]
    assert [name for name, _ in stream(logits_of(network()), batches, progress=False)] == ["photo 3"]


def test_stream_moves_tensors_to_the_device() -> None:
    def infer(batch: dict[str, Any]) -> list[Tensor]:
        assert {key: value.device.type for key, value in batch.items() if key != "name"} == {
            "image": "meta",
            "tags": "meta",
        }
        return [batch["image"][0]]

    assert len(list(stream(infer, [batch_of(3)], device="meta", progress=False))) == 1


def test_stream_takes_a_batch_at_a_time_and_keeps_none() -> None:
    model, taken = network(), []
    made: list[weakref.ref[Tensor]] = []

    def alive() -> int:
        gc.collect()
        return sum(reference() is not None for reference in made)

    def batches() -> Iterator[dict[str, Any]]:
        for group in GROUPS:
            assert alive() <= 2  # images and last maps of the batch before
            taken.append(group)
            batch = batch_of(*group)
            made.append(weakref.ref(batch["image"]))
            yield batch
            del batch

    streamed = stream(cams_of(model), batches(), progress=False)
    assert taken == []  # nothing before it is asked for
    for group in GROUPS:
        for index in group:
            name, maps = next(streamed)
            assert name == f"photo {index}"
            assert taken == GROUPS[: GROUPS.index(group) + 1]
            made.append(weakref.ref(maps))
            del maps
    assert next(streamed, None) is None
    assert alive() == 0
