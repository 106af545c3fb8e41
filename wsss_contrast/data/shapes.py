"""An example set that the package draws itself: no files, no download.

It is made so that plain class activation maps show their known failing. Each picture holds creatures. The
small head alone tells the class, so a classifier needs no more than the head, whereas the mask covers the
whole creature. The colour and texture of the body only lean towards the class, and the background has blobs
and stripes in the same textures that carry no tag.
"""

import math
from collections.abc import Callable
from typing import Any

import albumentations as A
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from wsss_contrast.data.base import Reading, TaggedImageDataset, sample_seed

SHAPES_CLASSES = ("beetle", "fox", "frog", "owl")
"""The creatures of :class:`ShapesDataset`."""

_SPLITS = {"train": 0, "val": 1}
_ZOOM = 2  # everything is drawn at twice its size and averaged down: smooth edges
_TEXTURES = ("stripes", "spots", "checks", "rings")
_HUES = (0.98, 0.07, 0.30, 0.62)  # the hue a body of each class leans towards: red, orange, green, blue
_OUTLINE = (35, 28, 30)

Colour = tuple[int, int, int]
Draw = Any  # PIL.ImageDraw.ImageDraw, whose stubs differ between versions


class ShapesDataset(TaggedImageDataset):
    """Pictures of 0 to 2 creatures of 4 kinds on cluttered ground, with exact masks.

    A picture depends on ``(seed, split, index)`` only and is drawn when it is read. ``train`` and ``val``
    share no picture. A creature in front may hide a part of another one.

    Args:
        split: ``"train"`` or ``"val"``.
        size: side of the picture, in pixels, at least 32.
        length: number of pictures.
        seed: seed of the drawings and of the augmentation.
        transform: an albumentations pipeline; by default :func:`eval_transform`.
        with_mask: whether a sample carries its mask.

    Raises:
        ValueError: on another split, a ``size`` below 32 or a ``length`` below 1.

    >>> sample = ShapesDataset("val", length=1, with_mask=True)[0]
    >>> sample["image"].shape, sample["mask"].shape, sample["name"]
    (torch.Size([3, 128, 128]), torch.Size([128, 128]), 'val_00000')
    """

    def __init__(
        self,
        split: str,
        size: int = 128,
        length: int = 512,
        seed: int = 0,
        transform: A.Compose | None = None,
        with_mask: bool = False,
    ) -> None:
        super().__init__(SHAPES_CLASSES, transform, with_mask, seed)
        if split not in _SPLITS:
            raise ValueError(f"split must be one of {', '.join(_SPLITS)}, got {split!r}")
        if size < 32:
            raise ValueError(f"size must be at least 32, got {size}")
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        self.split = split
        self.size = size
        self.length = length

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> Reading:
        rng = np.random.default_rng(sample_seed(self.seed, _SPLITS[self.split], index))
        image, mask = _draw_scene(rng, self.size)
        tags = np.isin(np.arange(1, len(SHAPES_CLASSES) + 1), mask).astype(np.float32)
        return image, tags, mask, f"{self.split}_{index:05d}"


def _draw_scene(rng: np.random.Generator, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    side = size * _ZOOM
    canvas = _background(rng, side)
    mask = Image.new("L", (side, side))
    count = int(rng.choice(3, p=(0.06, 0.62, 0.32)))
    if count == 2:  # one to the left and one to the right
        centres = rng.uniform((0.2, 0.3), (0.32, 0.7), (2, 2))
        centres[1, 0] = 1 - centres[1, 0]
    else:
        centres = rng.uniform(0.3, 0.7, (count, 2))
    kinds = rng.integers(len(SHAPES_CLASSES), size=count).tolist()
    lengths = side * rng.uniform(0.22, 0.34 if count == 1 else 0.25, count)
    heads = [_body(rng, canvas, mask, *it) for it in zip(kinds, side * centres, lengths, strict=True)]
    on_canvas, on_mask = ImageDraw.Draw(canvas), ImageDraw.Draw(mask)
    for kind, head in zip(kinds, heads, strict=True):  # last, so that no head is hidden: each tag can be told
        _HEADS[kind](on_canvas, on_mask, kind + 1, *head)
    small = np.asarray(canvas.reduce(_ZOOM), np.int16)
    noisy = small + rng.normal(0, 5, small.shape).astype(np.int16)  # the grain of a camera
    ids = np.asarray(mask)[::_ZOOM, ::_ZOOM]
    return noisy.clip(0, 255).astype(np.uint8), ids.copy()


def _background(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw cloudy ground with blobs and stripes on it. None of them carries a tag."""
    ground = _colour(rng, rng.uniform(0.08, 0.6), 0.25, rng.uniform(0.45, 0.8))
    ground = ground + rng.normal(0, 22, (4, 4, 1)) + rng.normal(0, 8, (4, 4, 3))
    canvas = Image.fromarray(ground.clip(0, 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    for _ in range(int(rng.integers(1, 4))):
        extent = side * rng.uniform(0.06, 0.2)
        hue = rng.uniform()
        fill = _texture(rng, str(rng.choice(_TEXTURES)), hue, 0.4, side)
        shape = Image.new("L", (side, side))
        draw = ImageDraw.Draw(shape)
        x, y = rng.uniform(0, side, 2)
        if rng.uniform() < 0.3:
            angle = rng.uniform(0, math.pi)
            dx, dy = side * math.cos(angle), side * math.sin(angle)
            draw.line((x - dx, y - dy, x + dx, y + dy), fill=255, width=max(1, int(extent * 0.35)))
        else:
            draw.polygon(_blob(rng, x, y, extent, extent * rng.uniform(0.5, 1), rng.uniform(0, math.pi)), fill=255)
        canvas.paste(fill, (0, 0), shape)
    return canvas


def _body(
    rng: np.random.Generator,
    canvas: Image.Image,
    mask: Image.Image,
    kind: int,
    centre: NDArray[np.float64],
    length: float,
) -> tuple[float, float, float]:
    """Draw legs and body on the canvas and on the mask. Return where the head goes: x, y, radius."""
    side = canvas.width
    width = length * rng.uniform(0.6, 0.8)
    # The body leans up or down a little; the head is at its left or its right end.
    lean = rng.uniform(-0.6, 0.6)
    facing = float(rng.choice((-1, 1)))
    ahead = np.array((facing * math.cos(lean), facing * math.sin(lean)))
    body = _blob(rng, centre[0], centre[1], length, width, lean)
    line = max(2, round(side / 100))

    texture = _TEXTURES[kind] if rng.uniform() < 0.8 else str(rng.choice(_TEXTURES))
    hue = _HUES[kind] + rng.normal(0, 0.05)
    fill = _texture(rng, texture, hue, 0.6, side)

    shape = Image.new("L", (side, side))
    ImageDraw.Draw(shape).polygon(body, fill=255)
    on_canvas, on_mask = ImageDraw.Draw(canvas), ImageDraw.Draw(mask)
    for along in (-0.45, 0.35):
        foot = centre + along * length * ahead + np.array((0, width * 1.25))
        hip = centre + along * length * ahead
        points = [tuple(hip), tuple(foot)]
        on_canvas.line(points, fill=_OUTLINE, width=3 * line)
        on_mask.line(points, fill=kind + 1, width=3 * line)
    canvas.paste(fill, (0, 0), shape)
    on_canvas.line([*body, body[0]], fill=_OUTLINE, width=line, joint="curve")
    on_mask.polygon(body, fill=kind + 1)
    on_mask.line([*body, body[0]], fill=kind + 1, width=line, joint="curve")

    radius = length * rng.uniform(0.4, 0.46)
    x, y = (centre + ahead * length * 0.92).clip(radius, side - radius)
    return float(x), float(y), float(radius)


def _blob(
    rng: np.random.Generator, x: float, y: float, long: float, short: float, angle: float
) -> list[tuple[float, float]]:
    """Return the points of an uneven ellipse."""
    turn = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    wave = 1 + sum(rng.uniform(0, 0.06) * np.cos(n * turn + rng.uniform(0, 6.3)) for n in (2, 3, 4))
    along, across = long * wave * np.cos(turn), short * wave * np.sin(turn)
    xs = x + along * math.cos(angle) - across * math.sin(angle)
    ys = y + along * math.sin(angle) + across * math.cos(angle)
    return list(zip(xs.tolist(), ys.tolist(), strict=True))


def _texture(rng: np.random.Generator, kind: str, hue: float, saturation: float, side: int) -> Image.Image:
    """Return a picture of two tones of a colour, arranged in a pattern."""
    bright = rng.uniform(0.5, 0.9)
    tones = np.stack(
        [
            _colour(rng, hue, saturation, bright),
            _colour(rng, hue, saturation, bright * rng.uniform(0.5, 0.75)),
        ]
    )
    angle = rng.uniform(0, math.pi)
    axis = np.linspace(0, 2 * math.pi / rng.uniform(0.05, 0.09), side // _ZOOM, dtype=np.float32)
    across = axis[None, :] * math.cos(angle) + axis[:, None] * math.sin(angle)
    along = axis[:, None] * math.cos(angle) - axis[None, :] * math.sin(angle)
    if kind == "stripes":
        dark = np.sin(across) > 0.2
    elif kind == "spots":
        dark = np.sin(across) + np.sin(along) > 0.8
    elif kind == "checks":
        dark = (np.sin(across) > 0) ^ (np.sin(along) > 0)
    else:
        middle = rng.uniform(0.2, 0.8, 2) * axis[-1]
        dark = np.sin(np.hypot(axis[None, :] - middle[0], axis[:, None] - middle[1])) > 0.2
    pattern = Image.fromarray(tones.clip(0, 255).astype(np.uint8)[dark.astype(np.intp)])
    return pattern.resize((side, side), Image.Resampling.NEAREST)


def _colour(rng: np.random.Generator, hue: float, saturation: float, value: float) -> NDArray[np.float64]:
    """Return an RGB colour in 0-255 near the given hue, saturation and value, all in 0-1."""
    saturation = float(np.clip(saturation + rng.normal(0, 0.1), 0, 1))
    wheel = np.abs((hue + np.array((0, 2 / 3, 1 / 3))) % 1 * 6 - 3) - 1
    return 255 * value * (1 - saturation + saturation * wheel.clip(0, 1))


def _disc(draw: Draw, x: float, y: float, radius: float, fill: Colour | int, outline: Colour | None = None) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline=outline, width=2)


def _beetle(draw: Draw, mask: Draw, label: int, x: float, y: float, r: float) -> None:
    for side in (-1, 1):  # feelers
        points = [(x + side * 0.3 * r, y - 0.6 * r), (x + side * 0.9 * r, y - 1.6 * r)]
        draw.line(points, fill=_OUTLINE, width=max(2, round(0.2 * r)))
        mask.line(points, fill=label, width=max(2, round(0.2 * r)))
    _disc(draw, x, y, r, (30, 30, 38), _OUTLINE)
    _disc(mask, x, y, r, label)
    for side in (-1, 1):
        _disc(draw, x + side * 0.45 * r, y - 0.1 * r, 0.28 * r, (240, 60, 40))


def _fox(draw: Draw, mask: Draw, label: int, x: float, y: float, r: float) -> None:
    for side in (-1, 1):  # ears
        ear = [
            (x + side * 0.15 * r, y - 0.6 * r),
            (x + side * 0.85 * r, y - 1.6 * r),
            (x + side * r, y - 0.1 * r),
        ]
        draw.polygon(ear, fill=(225, 110, 35), outline=_OUTLINE)
        mask.polygon(ear, fill=label)
    _disc(draw, x, y, r, (235, 125, 45), _OUTLINE)
    _disc(mask, x, y, r, label)
    draw.polygon([(x - 0.8 * r, y + 0.1 * r), (x + 0.8 * r, y + 0.1 * r), (x, y + r)], fill=(250, 245, 235))
    _disc(draw, x, y + 0.75 * r, 0.22 * r, (20, 20, 20))
    for side in (-1, 1):
        _disc(draw, x + side * 0.4 * r, y - 0.15 * r, 0.15 * r, (20, 20, 20))


def _frog(draw: Draw, mask: Draw, label: int, x: float, y: float, r: float) -> None:
    _disc(draw, x, y, r, (95, 185, 70), _OUTLINE)
    _disc(mask, x, y, r, label)
    for side in (-1, 1):  # eyes on top
        _disc(draw, x + side * 0.6 * r, y - 0.8 * r, 0.45 * r, (120, 205, 85), _OUTLINE)
        _disc(mask, x + side * 0.6 * r, y - 0.8 * r, 0.45 * r, label)
        _disc(draw, x + side * 0.6 * r, y - 0.8 * r, 0.2 * r, (15, 20, 15))
    draw.arc((x - 0.7 * r, y - 0.5 * r, x + 0.7 * r, y + 0.6 * r), 20, 160, fill=(150, 30, 50), width=3)


def _owl(draw: Draw, mask: Draw, label: int, x: float, y: float, r: float) -> None:
    _disc(draw, x, y, r, (150, 115, 80), _OUTLINE)
    _disc(mask, x, y, r, label)
    for side in (-1, 1):
        _disc(draw, x + side * 0.45 * r, y - 0.15 * r, 0.45 * r, (250, 250, 240), _OUTLINE)
        _disc(draw, x + side * 0.45 * r, y - 0.15 * r, 0.2 * r, (15, 15, 20))
    draw.polygon([(x - 0.2 * r, y + 0.2 * r), (x + 0.2 * r, y + 0.2 * r), (x, y + 0.7 * r)], fill=(245, 170, 30))


_HEADS: tuple[Callable[[Draw, Draw, int, float, float, float], None], ...] = (_beetle, _fox, _frog, _owl)
