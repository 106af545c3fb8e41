"""Masks in the run-length encoding of COCO."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_PIXELS = 2**27  # of a mask: a few numbers could ask for more than the memory
_MOST_DIGITS = 7  # of a compressed count: 35 bits, more than any image has pixels


class RLEError(ValueError):
    """What is wrong with an encoded mask; of which file, the caller knows."""


def decode_rle(rle: Any) -> NDArray[np.bool_]:
    """Decode a mask (H, W) of COCO's run-length encoding, compressed or not."""
    if not isinstance(rle, dict) or not {"size", "counts"} <= rle.keys():
        raise RLEError("must be a dict with `size` and `counts`, or have one as `segmentation`")
    size, counts = rle["size"], rle["counts"]
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise RLEError(f"`size` must be height and width, got {size!r}")
    height, width = size
    if height * width > _MOST_PIXELS:
        raise RLEError(f"`size` must be of {_MOST_PIXELS} pixels at most, got {size}")
    if isinstance(counts, str):
        lengths = _decompressed(counts)
    elif isinstance(counts, list) and all(type(count) is int and abs(count) < 2**31 for count in counts):
        lengths = np.array(counts, np.int64)
    else:
        raise RLEError("`counts` must be a string or a list of whole numbers")
    if (lengths < 0).any() or lengths.sum() != height * width:
        raise RLEError(f"`counts` must be of {height * width} pixels ({width}x{height}), they are damaged")
    columns = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height)
    return columns.T


def _decompressed(text: str) -> NDArray[np.int64]:
    """The lengths of a compressed string.

    A number is a row of characters, each five bits above "0", the lowest first; a sixth bit says that more follow. The
    number is negative where the last one's fifth bit is set. From the fourth on, it is the difference to the length two
    before.
    """
    codes = np.frombuffer(text.encode(errors="replace"), np.uint8).astype(np.int64) - ord("0")
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise RLEError("`counts` is no compressed string of COCO, or is cut off")
    ends = np.flatnonzero(codes & 32 == 0)
    digits = np.diff(ends, prepend=-1)
    if digits.max() > _MOST_DIGITS:
        raise RLEError(f"`counts` has a number of {digits.max()} characters, {_MOST_DIGITS} are the most")
    starts = ends - digits + 1
    place = np.arange(len(codes)) - np.repeat(starts, digits)
    numbers = np.add.reduceat((codes & 31) << 5 * place, starts)
    numbers -= np.where(codes[ends] & 16, 1 << 5 * digits, 0)
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers
