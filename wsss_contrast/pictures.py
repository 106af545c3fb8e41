"""Masks as palette images, and sheets of pictures to look at."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from wsss_contrast.functional import NO_LABEL


def voc_palette() -> list[int]:
    """The 256 RGB colours of the PASCAL VOC devkit, flat: bits of the id spread over the channels, highest first.

    >>> voc_palette()[:9]
    [0, 0, 0, 128, 0, 0, 0, 128, 0]
    """
    palette = []
    for index in range(256):
        color = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                color[channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
        palette += color
    return palette


def mask_image(mask: NDArray[np.integer]) -> Image.Image:
    """A palette image of class ids (H, W), 0 to 255."""
    if mask.size and not 0 <= mask.min() <= mask.max() <= NO_LABEL:
        raise ValueError(f"class ids must be in 0 to 255, got {mask.min()} to {mask.max()}")
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette(voc_palette())
    return image


def png(image: Image.Image) -> bytes:
    """An image as a PNG file."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def picture_sheet(
    titles: Sequence[str],
    rows: Sequence[Sequence[NDArray[np.integer]]],
    side: int = 160,
) -> Image.Image:
    """A table of pictures: a photo (H, W, 3) and its masks (H, W) in each row, masks laid over the photo.

    Args:
        titles: one for each column; the first column is the photo.
        rows: for each photo, the photo and then a mask for each further column.
        side: longest side of a picture, in pixels.
    """
    margin, header = 4, 18
    width = len(titles) * (side + margin) + margin
    sheet = Image.new("RGB", (width, header + len(rows) * (side + margin) + margin), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((margin + column * (side + margin), 3), title, fill="black")
    for line, (photo, *masks) in enumerate(rows):
        base = Image.fromarray(photo.astype(np.uint8))
        pictures = [base, *(_overlay(base, mask) for mask in masks)]
        for column, picture in enumerate(pictures):
            picture = picture.resize(_fit(picture.size, side), Image.Resampling.LANCZOS)
            sheet.paste(picture, (margin + column * (side + margin), header + line * (side + margin)))
    return sheet


def _overlay(photo: Image.Image, mask: NDArray[np.integer]) -> Image.Image:
    """Class colours over a darkened photo; ignored pixels white."""
    colors = np.asarray(mask_image(mask).convert("RGB")).copy()
    colors[mask == NO_LABEL] = 255
    dark = np.asarray(photo.convert("L").convert("RGB")) * 0.45
    shown = np.where((mask == 0)[..., None], dark, 0.35 * dark / 0.45 + 0.65 * colors)
    return Image.fromarray(shown.astype(np.uint8))


def _fit(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = side / max(size)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)
