"""Images in a folder that a photo is learnt with: labels, as ``wsss-contrast predict`` writes them, and saliency."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wsss_contrast.data.base import DataError, open_image, read_mask, some
from wsss_contrast.functional import NO_LABEL


class _TargetFolder(ABC):
    """Images ``NAME.png`` of a folder, read when they are asked for by a photo's name and size (H, W)."""

    what: str
    """What the images are, in errors."""

    origin: str
    """Where the folder comes from, in errors."""

    def __init__(self, folder: str | Path, names: Sequence[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: no such folder of {self.what}; {self.origin}")
        missing = [str(path) for path in map(self._path, names) if not path.is_file()]
        if missing:
            raise DataError(f"missing {self.what}: {some(missing)}")

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.png"

    def __call__(self, name: str, size: tuple[int, int]) -> NDArray[Any]:
        path = self._path(name)
        stored = self._read(path)
        return stored if stored.shape == tuple(size) else self._resized(stored, size, path)

    def _resized(self, stored: NDArray[Any], size: tuple[int, int], path: Path) -> NDArray[Any]:
        """An image of another size than the photo's: an error, where a subclass does not resize it."""
        height, width = stored.shape
        raise DataError(f"{path}: the {self.what} are {width}x{height} pixels, the photo is {size[1]}x{size[0]}")

    @abstractmethod
    def _read(self, path: Path) -> NDArray[Any]:
        """The image (H, W) in the file."""


class LabelFolder(_TargetFolder):
    """Label images ``NAME.png`` of a folder, read when they are asked for: 8-bit palette or grey, 255 for none.

    Called with a photo's name and size (H, W), it gives uint8 (H, W): 0 the background, 1 to K the classes, 255 none.

    Args:
        folder: the folder.
        ids: what background and classes are in the images, in the order 0 to K, as a data module's ``mask_ids``;
            :class:`~wsss_contrast.callbacks.MaskWriter` writes these.
        names: photos that must have a label image.
        unused: further ids that the images may have, as a data module's ``unused_ids``; their pixels have no label.

    Raises:
        DataError: no such folder, or a photo without a label image. When called: a file that cannot be read, is of
            another size than the photo, or has other ids; with its name.

    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> with TemporaryDirectory() as folder:
    ...     Image.fromarray(np.array([[0, 8, 255]], np.uint8)).save(Path(folder, "cat.png"))
    ...     LabelFolder(folder, [0, 8, 12])("cat", (1, 3)).tolist()
    [[0, 1, 255]]
    """

    what = "labels"
    origin = "`wsss-contrast predict` makes one, with `--labels` for AffinityNet and IRNet"

    def __init__(
        self, folder: str | Path, ids: Sequence[int], names: Sequence[str] = (), unused: Sequence[int] = ()
    ) -> None:
        super().__init__(folder, names)
        self.ids = list(ids)
        self._table = np.full(NO_LABEL + 1, -1, np.int16)
        self._table[list(unused)] = NO_LABEL
        self._table[self.ids] = np.arange(len(self.ids))
        self._table[NO_LABEL] = NO_LABEL

    def _read(self, path: Path) -> NDArray[np.uint8]:
        stored = read_mask(path)
        labels = self._table[stored]
        if labels.min(initial=0) < 0:
            wrong = np.unique(stored[labels < 0]).tolist()
            raise DataError(f"{path}: ids {wrong} are neither those of the data, {self.ids}, nor {NO_LABEL}")
        return labels.astype(np.uint8)


class SaliencyFolder(_TargetFolder):
    """Saliency maps ``NAME.png`` of a folder, read when they are asked for: 8-bit grey or colour, 255 for salient.

    Called with a photo's name and size (H, W), it gives float32 (H, W) from 0 to 1, the mean of the colours. A map of
    another resolution is resized bilinearly.

    Args:
        folder: the folder.
        names: photos that must have a map.

    Raises:
        DataError: no such folder, or a photo without a map. When called: a file that cannot be read, has transparent
            pixels, or is of other proportions than the photo; with its name.

    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> with TemporaryDirectory() as folder:
    ...     Image.fromarray(np.array([[0, 255]], np.uint8)).save(Path(folder, "cat.png"))
    ...     SaliencyFolder(folder)("cat", (1, 2)).tolist()
    [[0.0, 1.0]]
    """

    what = "saliency maps"
    origin = "it has NAME.png for each photo, of a model for salient objects"

    def __init__(self, folder: str | Path, names: Sequence[str] = ()) -> None:
        super().__init__(folder, names)

    def _read(self, path: Path) -> NDArray[np.float32]:
        if open_image(path).has_transparency_data:
            raise DataError(f"{path}: a saliency map must be grey or of colours, this one has transparent pixels")
        levels = np.asarray(open_image(path, rgb=True), np.float32)
        maps: NDArray[np.float32] = levels.mean(axis=2) / np.float32(255)
        return maps

    def _resized(self, stored: NDArray[Any], size: tuple[int, int], path: Path) -> NDArray[Any]:
        (height, width), (photo_height, photo_width) = stored.shape, size
        # Sides of a reduced photo are rounded: its proportions are those within a pixel.
        if abs(height * photo_width - width * photo_height) > (photo_height + photo_width) / 2:
            return super()._resized(stored, size, path)
        resized: NDArray[Any] = cv2.resize(stored, (photo_width, photo_height), interpolation=cv2.INTER_LINEAR)
        return resized
