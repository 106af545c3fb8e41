"""Masks without classes on disk, as a segment-anything model makes them: folders of PNG, or COCO's run lengths."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wsss_contrast.data.base import DataError, open_image, reduced_size
from wsss_contrast.data.folder import IMAGE_SUFFIXES
from wsss_contrast.data.rle import RLEError, decode_rle


class SegmentFolder:
    """The masks of photos in a folder, read when they are asked for. They may overlap and need not cover the photo.

    For each photo the folder holds one of

    - ``NAME/``: a PNG for each mask, under any name: 255 where the mask is and 0 elsewhere, 8 bits grey or palette; or
      1 bit. Without any, the photo has no masks.
    - ``NAME.json``: a list of masks in the run-length encoding of COCO, or a dict with such a list as ``annotations``.
      A mask is ``{"size": [H, W], "counts": ...}``, or a dict that has that as ``segmentation``. ``counts`` is a
      compressed string or a list of lengths: of runs of 0 and 1 in turn, 0 first, column after column.

    The script ``amg.py`` of Segment Anything writes the first, and the second with ``--convert-to-rle``. Other files of
    a folder do not matter, but pictures that are no PNG are an error.

    Called with a photo's name and size (H, W), it gives bool (N, H, W). Masks have that size; or are larger, and come
    to it as a data module's ``longest_side`` reduces photos: then each pixel takes its nearest.

    Args:
        folder: the folder.

    Raises:
        DataError: no such folder. When called: a photo without masks on disk, or a file that is not in order, with its
            name.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     rle = '[{"size": [2, 3], "counts": [1, 2, 3]}]'
    ...     _ = Path(folder, "cat.json").write_text(rle)
    ...     SegmentFolder(folder)("cat", (2, 3)).int()
    tensor([[[0, 1, 0],
             [1, 0, 0]]], dtype=torch.int32)
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()  # a run that goes on from another folder knows it again
        if not self.folder.is_dir():
            raise DataError(f"{folder}: no such folder of masks")

    def __repr__(self) -> str:
        return f"SegmentFolder({str(self.folder)!r})"

    def __call__(self, name: str, size: tuple[int, int]) -> torch.Tensor:
        size = (size[0], size[1])
        images, lengths = self.folder / name, self.folder / f"{name}.json"
        if images.is_dir() == lengths.is_file():
            which = "both" if images.is_dir() else "neither"
            raise DataError(f"{self.folder}: the photo {name} must have a folder {name}/ or {name}.json; has {which}")
        masks = read_images(images, size) if images.is_dir() else read_rle(lengths, size)
        return torch.from_numpy(np.stack([np.zeros(size, bool), *masks])[1:])


def read_images(folder: Path, size: tuple[int, int]) -> Iterator[NDArray[np.bool_]]:
    """The masks of a folder of PNG, in the order of their names, each brought to ``size``."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        if path.suffix.lower() != ".png":
            raise DataError(f"{path}: a mask must be a PNG")
        image = open_image(path)
        if image.mode not in ("1", "L", "P"):
            raise DataError(f"{path}: a mask must have 1 bit, or 8 of grey or palette; this one has mode {image.mode}")
        pixels = np.asarray(image)
        if image.mode != "1":
            wrong = pixels[(pixels != 0) & (pixels != 255)]
            if wrong.size:
                raise DataError(f"{path}: a mask must be 0 or 255, this one has {wrong[0]}")
        yield _reduced(pixels != 0, size, str(path))


def read_rle(path: Path, size: tuple[int, int]) -> Iterator[NDArray[np.bool_]]:
    """The masks of a json file in COCO's run-length encoding, each brought to ``size``."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as json ({error})") from error
    masks = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(masks, list):
        raise DataError(f"{path}: must be a list of masks, or a dict with such a list as `annotations`")
    for number, mask in enumerate(masks):
        where = f"{path}, mask {number}"
        try:
            yield _reduced(decode_rle(mask.get("segmentation", mask) if isinstance(mask, dict) else mask), size, where)
        except RLEError as error:
            raise DataError(f"{where}: {error}") from error


def _reduced(mask: NDArray[np.bool_], size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """The mask at this size, by nearest pixels; raises where it is of another photo."""
    height, width = mask.shape
    if (height, width) == size:
        return mask
    if reduced_size((height, width), max(size)) != size:
        raise DataError(
            f"{where}: the mask is {width}x{height} pixels, its photo {size[1]}x{size[0]}; it must be of that size, or "
            "larger in the same proportions"
        )
    rows, columns = (((np.arange(to) + 0.5) * (of / to)).astype(int) for to, of in zip(size, mask.shape, strict=True))
    return mask[np.ix_(rows, columns)]
