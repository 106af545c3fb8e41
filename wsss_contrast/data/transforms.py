"""Augmentation pipelines (albumentations 2.0)."""

import albumentations as A
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from timm.data.constants import IMAGENET_DEFAULT_MEAN as IMAGENET_MEAN
from timm.data.constants import IMAGENET_DEFAULT_STD as IMAGENET_STD
from torch import Tensor

from wsss_contrast.functional import NO_LABEL, full_precision


def train_transform(crop_size: int, resize_long: tuple[int, int] = (448, 768)) -> A.Compose:
    """Return the training augmentation of the SEAM and PPC recipe.

    In this order:

    1. Resize, so that the longest side is an integer drawn uniformly from ``resize_long`` (both ends
       included). Bicubic; area averaging where the image shrinks, so that large photos do not alias.
    2. Flip left-right with probability 0.5.
    3. Jitter brightness, contrast and saturation by 0.3 and hue by 0.1.
    4. Normalise with ImageNet mean and standard deviation.
    5. Crop a square of ``crop_size``. A smaller image lies at a random offset in a canvas of zeros. The zeros
       come after normalisation, so they are the mean colour. A mask is padded with 255.

    Args:
        crop_size: side of the square, in pixels.
        resize_long: smallest and largest length of the longest side, in pixels.

    Raises:
        ValueError: if ``crop_size`` is below 1, or if ``resize_long`` is no range of positive integers.

    >>> out = train_transform(64, (48, 96))(image=np.zeros((50, 70, 3), np.uint8))
    >>> out["image"].shape
    (64, 64, 3)
    """
    low, high = resize_long
    if crop_size < 1:
        raise ValueError(f"crop_size must be at least 1, got {crop_size}")
    if not 1 <= low <= high:
        raise ValueError(f"resize_long must be (low, high) with 1 <= low <= high, got {tuple(resize_long)}")
    return A.Compose(
        [
            A.LongestMaxSize(list(range(low, high + 1)), interpolation=cv2.INTER_CUBIC, area_for_downscale="image"),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1, p=1),
            A.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            A.RandomCrop(crop_size, crop_size, pad_if_needed=True, pad_position="random", fill=0, fill_mask=NO_LABEL),
        ]
    )


def weak_transform(crop_size: int, resize_long: tuple[int, int] = (448, 768)) -> A.Compose:
    """Return the weak augmentation of images that a teacher labels: resize, flip and crop of :func:`train_transform`.

    CSRM's paper resizes and flips; its released code crops only. Arguments and errors are those of
    :func:`train_transform`.
    """
    steps = train_transform(crop_size, resize_long).transforms
    return A.Compose([step for step in steps if not isinstance(step, A.ColorJitter)])


def eval_transform() -> A.Compose:
    """Return the transform for evaluation: ImageNet normalisation at native size, nothing else."""
    return A.Compose([A.Normalize(IMAGENET_MEAN, IMAGENET_STD)])


def as_photos(images: Tensor) -> Tensor:
    """Turn normalised images (N, 3, H, W) back into photos, uint8 (N, 3, H, W)."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have shape (N, 3, H, W), got {tuple(images.shape)}")
    images = full_precision(images.detach())
    # Number by number: to copy a tensor would wait for the device.
    mean, std = (torch.stack([images.new_full((1, 1), x) for x in of]) for of in (IMAGENET_MEAN, IMAGENET_STD))
    photos: Tensor = ((images * std + mean) * 255).round().clamp(0, 255).byte()
    return photos


def denormalize(image: Tensor) -> NDArray[np.uint8]:
    """Turn a normalised image (3, H, W) back into a picture, uint8 (H, W, 3).

    >>> import torch
    >>> denormalize(torch.zeros(3, 1, 1)).tolist()  # zero is the mean colour
    [[[124, 116, 104]]]
    """
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image must have shape (3, H, W), got {tuple(image.shape)}")
    array: NDArray[np.uint8] = as_photos(image[None])[0].permute(1, 2, 0).cpu().numpy()
    return array
