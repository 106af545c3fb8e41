"""An example set that the package draws itself: no files, no download.

It is made so that plain class activation maps show their known failing. Each picture holds creatures. The
small head tells the class, so a classifier needs no more than the head, whereas the mask covers the whole
creature. See ``docs/example_set.md``.

**Frozen.** Results are comparable only on the same pictures: a test holds their hashes. Another set is another name.
"""

from dataclasses import dataclass

import albumentations as A
import numpy as np
from numpy.typing import NDArray

from wsss_contrast.data.base import Reading, TaggedImageDataset, sample_seed
from wsss_contrast.data.drawing import PATTERNS, TURN, UNITS, Canvas, Colour, Draws, Piece, Texture, hsv, rotate

SHAPES_CLASSES = ("beetle", "fox", "frog", "owl", "parrot", "pig")
"""The creatures of :class:`ShapesDataset`."""

_SPLITS = {"train": 0, "val": 1}
_COUNTS = (0,) * 5 + (1,) * 50 + (2,) * 35 + (3,) * 10  # creatures in a picture, in percent
_LEAN = 25  # percent of the bodies have the pattern of their class, the others any
_SIZES = {
    0: (0, 0),
    1: (900, 1200),
    2: (720, 900),
    3: (600, 720),
}  # half the length of a body, by the number of creatures
_RIM = 36  # a little more than a pixel of 128
_DARK = (38, 32, 34)
_UP, _DOWN = TURN * 3 // 4, TURN // 4

# Bodies: ellipses by their place along and across, half-axes; in percent of half the body's length.
_BODIES = (
    ((0, 0, 100, 78),),
    ((12, 0, 88, 62), (-34, 0, 68, 80)),
    ((0, 8, 100, 64), (-8, -20, 70, 62)),
)

_BLACK, _WHITE = (20, 20, 22), (248, 246, 238)
_ORANGE, _GREEN, _BROWN, _BLUE, _PINK = (236, 122, 40), (98, 186, 70), (146, 108, 70), (40, 96, 220), (246, 148, 166)
Row = tuple[str, int, int, int, int, int, Colour]


def _pair(form: str, x: int, y: int, turn: int, long: int, short: int, colour: Colour) -> tuple[Row, Row]:
    """A row and its mirror image."""
    return (form, x, y, turn, long, short, colour), (form, -x, y, TURN // 2 - turn, long, short, colour)


# Heads: the outer forms, which get a rim, then the face. x, y, long and short are in percent of the radius.
_HEADS: dict[str, tuple[tuple[Row, ...], tuple[Row, ...]]] = {
    "beetle": (
        (*_pair("bar", 35, -60, _UP + 5, 100, 12, (34, 34, 44)), ("ellipse", 0, 0, 0, 100, 92, (34, 34, 44))),
        _pair("ellipse", 46, -8, 0, 30, 30, (240, 62, 40)),
    ),
    "fox": (
        (*_pair("cone", 58, -40, _UP + 3, 120, 46, _ORANGE), ("ellipse", 0, 0, 0, 100, 92, _ORANGE)),
        (
            ("cone", 0, 4, _DOWN, 86, 76, _WHITE),
            *_pair("ellipse", 40, -18, 0, 16, 16, _BLACK),
            ("ellipse", 0, 70, 0, 21, 17, _BLACK),
        ),
    ),
    "frog": (
        (*_pair("ellipse", 58, -72, 0, 46, 46, _GREEN), ("ellipse", 0, 0, 0, 112, 86, _GREEN)),
        (
            *_pair("ellipse", 58, -76, 0, 32, 32, (250, 226, 70)),
            *_pair("ellipse", 58, -76, 0, 15, 15, _BLACK),
            ("bar", -60, 34, 0, 120, 9, (140, 36, 50)),
        ),
    ),
    "owl": (
        (*_pair("cone", 66, -56, _UP + 4, 74, 32, _BROWN), ("ellipse", 0, 0, 0, 100, 96, _BROWN)),
        (
            *_pair("ellipse", 43, -16, 0, 43, 43, _WHITE),
            *_pair("ellipse", 43, -16, 0, 20, 20, _BLACK),
            ("cone", 0, 18, _DOWN, 58, 22, (246, 176, 34)),
        ),
    ),
    "parrot": (
        (
            *_pair("cone", 26, -70, _UP + 4, 84, 24, _BLUE),
            ("cone", 0, -78, _UP, 90, 24, _BLUE),
            ("ellipse", 0, 0, 0, 96, 98, _BLUE),
        ),
        (
            *_pair("ellipse", 48, -20, 0, 34, 30, _WHITE),
            *_pair("ellipse", 48, -20, 0, 15, 15, _BLACK),
            ("cone", 0, 2, _DOWN, 94, 48, (252, 206, 40)),
        ),
    ),
    "pig": (
        (*_pair("cone", 62, -52, _UP + 6, 80, 40, _PINK), ("ellipse", 0, 0, 0, 102, 94, _PINK)),
        (
            ("ellipse", 0, 28, 0, 52, 38, (216, 96, 122)),
            *_pair("ellipse", 19, 28, 0, 10, 15, (110, 40, 60)),
            *_pair("ellipse", 44, -24, 0, 13, 13, _BLACK),
        ),
    ),
}


class ShapesDataset(TaggedImageDataset):
    """Pictures of 0 to 3 creatures of 6 kinds on cluttered ground, with exact masks.

    A picture depends on ``(seed, split, index)`` and ``size`` only, on any platform, and is drawn when it is read.
    ``train`` and ``val`` share no picture. A creature in front may hide a part of another one's body.
    No body hides a head.

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
        image, mask, _ = self.draw(index)
        tags = np.isin(np.arange(1, len(SHAPES_CLASSES) + 1), mask).astype(np.float32)
        return image, tags, mask, self.image_name(index)

    def image_name(self, index: int) -> str:
        return f"{self.split}_{index:05d}"

    def image_size(self, index: int) -> tuple[int, int]:
        return self.size, self.size

    def draw(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]:
        """Return image (H, W, 3), mask (H, W), and which pixels (H, W) are of a head, the part that tells the class."""
        return _draw_scene(Draws(sample_seed(self.seed, _SPLITS[self.split], index)), self.size)


def _draw_scene(draws: Draws, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]:
    canvas = Canvas(size)
    _background(draws, canvas)
    creatures = _creatures(draws)
    for creature in creatures:
        _draw_body(draws, canvas, creature)
    for creature in creatures:  # last, so that no head is hidden: each tag can be told
        _draw_head(draws, canvas, creature)
    grain = draws.array(0, 6, size, size, 3) + draws.array(0, 6, size, size, 3) - 6  # as of a camera
    mask, part = canvas.masks()
    return (canvas.picture() + grain).clip(0, 255).astype(np.uint8), mask, part


def _background(draws: Draws, canvas: Canvas) -> None:
    """Draw cloudy ground with litter, and textured things in the patterns and colours of bodies. None has a tag."""
    ground = hsv(draws.between(100, 1000), draws.between(30, 100), draws.between(110, 205))
    clouds = draws.array(-34, 34, 7, 7, 1) + draws.array(-12, 12, 7, 7, 3)
    canvas.fill(np.array(ground) + clouds)
    for _ in range(draws.between(12, 30)):
        litter = _place(draws, "bar" if draws.chance(60) else "ellipse", (40, 260), (16, 40))
        shade = draws.between(-45, 45)
        red, green, blue = (min(max(c + shade, 0), 255) for c in ground)
        canvas.paint(litter, (red, green, blue))
    for _ in range(draws.between(1, 3)):
        thing = _place(draws, "bar" if draws.chance(30) else "ellipse", (300, 700), (110, 320))
        if thing.form == "bar":
            thing = _place(draws, "bar", (1000, 4000), (50, 120))
        if draws.chance(50):
            canvas.paint(thing.grown(_RIM), _DARK)
        canvas.paint(thing, _texture(draws, draws.pick(PATTERNS)))


def _place(draws: Draws, form: str, long: tuple[int, int], short: tuple[int, int]) -> Piece:
    x, y, turn = draws.between(0, UNITS), draws.between(0, UNITS), draws.between(0, TURN - 1)
    return Piece(form, x, y, turn, draws.between(*long), draws.between(*short))


def _texture(draws: Draws, pattern: str) -> Texture:
    """Two tones of any hue in the pattern."""
    hue, saturation, value = draws.between(0, 1535), draws.between(50, 150), draws.between(130, 235)
    light = hsv(hue, saturation, value)
    dark = hsv(hue, saturation, value * draws.between(45, 70) // 100)
    return Texture(pattern, (light, dark), draws.between(0, TURN - 1), draws.between(230, 360))


@dataclass(frozen=True)
class _Creature:
    kind: int
    x: int
    y: int
    length: int  # half the body's
    turn: int  # where it looks
    head: tuple[int, int]
    radius: int


def _creatures(draws: Draws) -> list[_Creature]:
    """Place 0 to 3 creatures, so that the heads are in the picture and apart; the first is the farthest."""
    count = draws.pick(_COUNTS)
    while True:
        centres = _centres(draws, count)
        creatures = [_creature(draws, *centre, *_SIZES[count]) for centre in centres]
        if all(_head_is_free(one, creatures) for one in creatures):
            return creatures


def _centres(draws: Draws, count: int) -> list[tuple[int, int]]:
    low, high = UNITS * 29 // 100, UNITS * 71 // 100

    def near(place: int, by: int) -> int:
        return place + draws.between(-UNITS * by // 100, UNITS * by // 100)

    if count < 2:
        return [(near(UNITS // 2, 18), near(UNITS // 2, 18)) for _ in range(count)]
    if count == 2:
        sides = [(near(low, 5), near(UNITS // 2, 18)), (near(high, 5), near(UNITS // 2, 18))]
        return sides if draws.chance(50) else [(y, x) for x, y in sides]
    corners = [(x, y) for x in (low, high) for y in (low, high)]
    del corners[draws.between(0, 3)]
    return [(near(x, 4), near(y, 4)) for x, y in corners]


def _creature(draws: Draws, x: int, y: int, shortest: int, longest: int) -> _Creature:
    length = draws.between(shortest, longest)
    turn = (draws.between(-6, 6) + draws.pick((0, TURN // 2))) % TURN
    back, ahead = rotate(length * 34 // 100, 0, turn), rotate(length * 60 // 100, 0, turn)
    radius = length * draws.between(37, 42) // 100
    kind = draws.between(0, len(SHAPES_CLASSES) - 1)
    return _Creature(kind, x - back[0], y - back[1], length, turn, (x + ahead[0], y + ahead[1]), radius)


def _head_is_free(one: _Creature, creatures: list[_Creature]) -> bool:
    x, y = one.head
    inside = all(one.radius * 5 // 4 <= place <= UNITS - one.radius * 5 // 4 for place in (x, y))
    return inside and all(
        (x - other.head[0]) ** 2 + (y - other.head[1]) ** 2 > (3 * (one.radius + other.radius) // 2) ** 2
        for other in creatures
        if other is not one
    )


def _draw_body(draws: Draws, canvas: Canvas, creature: _Creature) -> None:
    """Draw trunk, legs and tail. All kinds have the same ones; only the pattern leans towards the kind."""
    length = creature.length
    side = -1 if TURN // 4 < creature.turn < TURN * 3 // 4 else 1  # to the left or right; legs are below, either way

    def at(along: int, across: int) -> tuple[int, int]:
        dx, dy = rotate(along * length // 100, side * across * length // 100, creature.turn)
        return creature.x + dx, creature.y + dy

    pieces = []
    for along in draws.pick(((-55, 40), (-60, -35, 25, 50))):
        x, y = at(along, 20)
        long = length * draws.between(60, 85) // 100
        pieces.append(Piece("bar", x, y, _DOWN + draws.between(-3, 3), long, length * 9 // 100))
    x, y = at(-85, 0)
    tail = _UP - side * draws.between(4, 10)
    pieces.append(Piece("bar", x, y, tail, length * draws.between(35, 65) // 100, length * 7 // 100))
    wide = draws.between(90, 110)
    for along, across, long, short in draws.pick(_BODIES):
        x, y = at(along, across)
        pieces.append(Piece("ellipse", x, y, creature.turn, long * length // 100, short * wide * length // 10000))

    texture = _texture(draws, PATTERNS[creature.kind] if draws.chance(_LEAN) else draws.pick(PATTERNS))
    label = creature.kind + 1
    for piece in pieces:
        canvas.paint(piece.grown(_RIM), _DARK, label)
    for piece in pieces:
        canvas.paint(piece, texture, label)


def _draw_head(draws: Draws, canvas: Canvas, creature: _Creature) -> None:
    tilt = draws.between(-4, 4)
    outer, face = (
        [(_on_head(creature, tilt, *row[:-1]), row[-1]) for row in rows]
        for rows in _HEADS[SHAPES_CLASSES[creature.kind]]
    )
    label = creature.kind + 1
    for piece, _ in outer:
        canvas.paint(piece.grown(_RIM), _DARK, label, part=True)
    for piece, colour in outer + face:
        canvas.paint(piece, colour, label, part=True)


def _on_head(creature: _Creature, tilt: int, form: str, x: int, y: int, turn: int, long: int, short: int) -> Piece:
    radius = creature.radius
    dx, dy = rotate(x * radius // 100, y * radius // 100, tilt)
    return Piece(
        form, creature.head[0] + dx, creature.head[1] + dy, turn + tilt, long * radius // 100, short * radius // 100
    )
