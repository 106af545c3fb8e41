"""The recipe of the training augmentation, value by value."""

import numpy as np
import pytest
import torch

from wsss_contrast.data import as_photos, denormalize, eval_transform, train_transform
from wsss_contrast.data.transforms import IMAGENET_MEAN, IMAGENET_STD


def steps(crop_size=48, resize_long=(40, 60)):
    return {type(step).__name__: step for step in train_transform(crop_size, resize_long).transforms}


def test_eval_only_normalises():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    mask = np.arange(35, dtype=np.uint8).reshape(5, 7)
    out = eval_transform()(image=image, mask=mask)
    expected = (image / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    np.testing.assert_allclose(out["image"], expected, atol=1e-5)
    assert out["image"].dtype == np.float32
    np.testing.assert_array_equal(out["mask"], mask)


def test_denormalize_inverts():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    tensor = torch.from_numpy(eval_transform()(image=image)["image"].transpose(2, 0, 1))
    out = denormalize(tensor)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, image)
    assert denormalize(torch.full((3, 1, 1), 99.0)).tolist() == [[[255, 255, 255]]]
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 4\)"):
        denormalize(torch.zeros(1, 3, 4, 4))


def test_order_and_strengths():
    order = list(steps())
    assert order == ["LongestMaxSize", "HorizontalFlip", "ColorJitter", "Normalize", "RandomCrop"]
    jitter = steps()["ColorJitter"]
    assert jitter.p == 1
    for name in ("brightness", "contrast", "saturation"):
        assert getattr(jitter, name) == pytest.approx((0.7, 1.3))
    assert jitter.hue == pytest.approx((-0.1, 0.1))
    assert steps()["HorizontalFlip"].p == 0.5


def test_longest_side_is_uniform_over_the_integers():
    resize = steps(resize_long=(40, 43))["LongestMaxSize"]
    image = np.zeros((10, 20, 3), np.uint8)
    sides = [resize(image=image)["image"].shape[1] for _ in range(800)]
    values, counts = np.unique(sides, return_counts=True)
    assert values.tolist() == [40, 41, 42, 43]
    assert counts.min() > 150  # 200 expected, standard deviation 12


def run(seed, image, mask, crop_size=48, resize_long=(24, 36)):
    transform = train_transform(crop_size, resize_long)
    transform.set_random_seed(seed)
    return transform(image=image, mask=mask)


def test_small_images_lie_in_a_canvas_of_zeros_at_random_offsets():
    image, mask = np.full((20, 30, 3), 255, np.uint8), np.ones((20, 30), np.uint8)
    offsets = set()
    for seed in range(30):
        out = run(seed, image, mask)
        assert out["image"].shape == (48, 48, 3)
        assert out["mask"].shape == (48, 48)
        outside = out["mask"] == 255
        assert (out["image"][outside] == 0).all()
        assert (out["image"][~outside] != 0).any(-1).all()
        assert set(np.unique(out["mask"])) == {1, 255}
        rows, columns = np.nonzero(~outside)
        offsets.add((rows.min(), columns.min()))
    assert len(offsets) > 20


def test_large_images_are_cropped_without_padding():
    image, mask = np.full((100, 100, 3), 255, np.uint8), np.ones((100, 100), np.uint8)
    out = run(0, image, mask, crop_size=16, resize_long=(50, 50))
    assert out["image"].shape == (16, 16, 3)
    assert (out["mask"] == 1).all()


def test_image_and_mask_move_together():
    """The right half is white and labelled 3. After every step, white is where 3 is."""
    image, mask = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), np.uint8)
    image[:, 20:], mask[:, 20:] = 255, 3
    flipped = 0
    for seed in range(20):
        out = run(seed, image, mask, resize_long=(40, 80))
        assert set(np.unique(out["mask"])) <= {0, 3, 255}  # never a mix of two ids
        inside = out["mask"] != 255
        white = out["image"].mean(-1) > 0
        assert (white == (out["mask"] == 3))[inside].mean() > 0.97
        left = np.nonzero((out["mask"] == 3).any(0))[0].min() < np.nonzero((out["mask"] == 0).any(0))[0].min()
        flipped += left
    assert 3 < flipped < 17


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_photos_come_back_exactly(dtype):
    """Also of half precision: its own arithmetic would be off by a level."""
    photo = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    image = torch.from_numpy(eval_transform()(image=photo)["image"]).permute(2, 0, 1)[None].to(dtype)
    assert torch.equal(as_photos(image)[0].permute(1, 2, 0), torch.from_numpy(photo))


@pytest.mark.parametrize(
    ("crop_size", "resize_long", "message"),
    [(0, (4, 8), "crop_size.*got 0"), (8, (9, 8), r"got \(9, 8\)"), (8, (0, 8), r"got \(0, 8\)")],
)
def test_wrong_arguments(crop_size, resize_long, message):
    with pytest.raises(ValueError, match=message):
        train_transform(crop_size, resize_long)
