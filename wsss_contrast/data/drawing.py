"""Drawing in integers: what is drawn depends on no platform, no release of a library and no font.

Positions and lengths are in units of 1/4096 of the picture's side, x to the right and y down. Directions are in 64ths
of a turn, from x towards y: 0 is right, 16 is down, 48 is up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

UNITS = 4096
TURN = 64
_ZOOM = 3  # smooth edges: a pixel is the mean of 3 x 3; odd, so that one of the nine is its centre
_ONE = 1024
# Rounding to 1/1024 hides the last digit, in which the sines of two C libraries may differ.
_COSINES = tuple(round(_ONE * math.cos(2 * math.pi * k / TURN)) for k in range(TURN))

Array = NDArray[np.int64]
Colour = tuple[int, int, int]
Item = TypeVar("Item")


class Draws:
    """Random integers from a seed, by the raw PCG64 stream: NumPy promises that stream, not what is made of it."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def between(self, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``, both included."""
        return low + int(self._bits.random_raw()) % (high - low + 1)

    def chance(self, percent: int) -> bool:
        return self.between(0, 99) < percent

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.between(0, len(items) - 1)]

    def array(self, low: int, high: int, *shape: int) -> Array:
        """Integers from ``low`` to ``high``, both included."""
        raw = self._bits.random_raw(math.prod(shape)) % np.uint64(high - low + 1)
        return raw.astype(np.int64).reshape(shape) + low


def rotate(x: int, y: int, turn: int) -> tuple[int, int]:
    """Turn the vector (x, y)."""
    cos, sin = _COSINES[turn % TURN], _COSINES[(turn - TURN // 4) % TURN]
    return (x * cos - y * sin) // _ONE, (x * sin + y * cos) // _ONE


def hsv(hue: int, saturation: int, value: int) -> Colour:
    """An RGB colour, 0-255; the hue in 0-1535 from red over green and blue, saturation and value in 0-255."""

    def channel(offset: int) -> int:
        wheel = min(max(abs((hue + offset) % 1536 - 768) - 256, 0), 255)
        return value * (255 * 255 - saturation * (255 - wheel)) // (255 * 255)

    return channel(0), channel(1024), channel(512)


@dataclass(frozen=True)
class Piece:
    """One filled form.

    - ``ellipse``: about (x, y), with the half-axes ``long``, along ``turn``, and ``short``;
    - ``bar``: a stroke with round ends from (x, y) in the direction ``turn``, ``long`` in length, 2 ``short`` wide;
    - ``cone``: a triangle with the middle of its base, 2 ``short`` wide, at (x, y); its tip is ``long`` away.
    """

    form: str
    x: int
    y: int
    turn: int
    long: int
    short: int

    def grown(self, by: int) -> "Piece":
        """The form with a rim."""
        if self.form == "cone":  # slanted sides: the tip moves further than the sides do
            x, y = rotate(-by, 0, self.turn)
            return replace(self, x=self.x + x, y=self.y + y, long=self.long + 3 * by, short=self.short + 2 * by)
        long = self.long if self.form == "bar" else self.long + by
        return replace(self, long=long, short=self.short + by)

    def box(self) -> tuple[int, int, int, int]:
        """Bounds: lowest and highest x, lowest and highest y."""
        if self.form == "ellipse":
            dx, dy, reach = 0, 0, max(self.long, self.short)
        else:
            (dx, dy), reach = rotate(self.long, 0, self.turn), self.short
        reach += UNITS // _ONE + 1  # what rounding can move
        return (
            self.x + min(dx, 0) - reach,
            self.x + max(dx, 0) + reach,
            self.y + min(dy, 0) - reach,
            self.y + max(dy, 0) + reach,
        )

    def covers(self, x: Array, y: Array) -> NDArray[np.bool_]:
        """Which of the points it covers."""
        u, v = _along(x - self.x, y - self.y, self.turn)
        inside: NDArray[np.bool_]
        if self.form == "ellipse":
            inside = (u * self.short) ** 2 + (v * self.long) ** 2 <= (self.long * self.short) ** 2
        elif self.form == "bar":
            inside = (u - u.clip(0, self.long)) ** 2 + v**2 <= self.short**2
        elif self.form == "cone":
            inside = (u >= 0) & (np.abs(v) * self.long <= self.short * (self.long - u))
        else:
            raise ValueError(f"no such form: {self.form!r}")
        return inside


@dataclass(frozen=True)
class Texture:
    """Two tones in a pattern with a period in units."""

    pattern: str
    tones: tuple[Colour, Colour]
    turn: int
    period: int

    def colours(self, x: Array, y: Array) -> NDArray[np.uint8]:
        u, v = _along(x, y, self.turn)
        p = self.period
        if self.pattern == "stripes":
            dark = u % p < p * 2 // 5
        elif self.pattern == "spots":
            v = v + u // p % 2 * (p // 2)
            dark = (u % p - p // 2) ** 2 + (v % p - p // 2) ** 2 < (p // 3) ** 2
        elif self.pattern == "checks":
            dark = (u * 2 // p + v * 2 // p) % 2 > 0
        elif self.pattern == "waves":
            dark = (u + np.abs(v % p - p // 2)) % p < p * 2 // 5
        elif self.pattern == "grid":
            dark = (u % p < p // 4) | (v % p < p // 4)
        elif self.pattern == "dashes":
            v = v + u // p % 2 * (p // 2)
            dark = (u % p < p * 2 // 5) & (v % p < p * 2 // 3)
        else:
            raise ValueError(f"no such pattern: {self.pattern!r}")
        return np.array(self.tones, np.uint8)[dark.astype(np.intp)]


PATTERNS = ("stripes", "spots", "checks", "waves", "grid", "dashes")


class Canvas:
    """A picture, with the id of what is seen at each point and whether it is of an object's telling part.

    Args:
        size: side of the picture, in pixels.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        side = size * _ZOOM
        self._axis = (np.arange(side, dtype=np.int64) * 2 + 1) * UNITS // (2 * side)
        self._colours = np.zeros((side, side, 3), np.uint8)
        self._ids = np.zeros((side, side), np.uint8)
        self._parts = np.zeros((side, side), bool)

    def fill(self, lattice: Array) -> None:
        """Cover all with colours (n, n, 3), 0-255, at the nodes of a lattice, and their blends in between."""
        place = self._axis[_ZOOM // 2 :: _ZOOM] * (len(lattice) - 1)
        cell, rest = place // UNITS, place % UNITS
        rows = (lattice[cell] * (UNITS - rest)[:, None, None] + lattice[cell + 1] * rest[:, None, None]) // UNITS
        blend = (rows[:, cell] * (UNITS - rest)[:, None] + rows[:, cell + 1] * rest[:, None]) // UNITS
        self._colours[:] = blend.clip(0, 255).astype(np.uint8).repeat(_ZOOM, 0).repeat(_ZOOM, 1)

    def paint(self, piece: Piece, fill: Colour | Texture, label: int = 0, part: bool = False) -> None:
        """Draw a piece over what is there."""
        left, right, top, bottom = self._axis.searchsorted(piece.box())
        x, y = self._axis[left:right], self._axis[top:bottom]
        rows, columns = piece.covers(x[None], y[:, None]).nonzero()
        colours = fill.colours(x[columns], y[rows]) if isinstance(fill, Texture) else fill
        rows, columns = rows + top, columns + left
        self._colours[rows, columns] = colours
        self._ids[rows, columns] = label
        self._parts[rows, columns] = part

    def picture(self) -> NDArray[np.uint8]:
        """Colours (size, size, 3), 0-255: the mean over each pixel, rounded."""
        total = np.zeros((self.size, self.size, 3), np.uint16)
        for row in range(_ZOOM):
            for column in range(_ZOOM):
                total += self._colours[row::_ZOOM, column::_ZOOM]
        return ((total + _ZOOM**2 // 2) // _ZOOM**2).astype(np.uint8)

    def masks(self) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Ids and telling parts (size, size), each at the centre of its pixel."""
        centres = slice(_ZOOM // 2, None, _ZOOM)
        return self._ids[centres, centres].copy(), self._parts[centres, centres].copy()


def _along(x: Array, y: Array, turn: int) -> tuple[Array, Array]:
    """The points' coordinates along a direction and across it."""
    cos, sin = _COSINES[turn % TURN], _COSINES[(turn - TURN // 4) % TURN]
    return (x * cos + y * sin) // _ONE, (y * cos - x * sin) // _ONE
