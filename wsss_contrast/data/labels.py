"""Label images in a folder, as ``wsss-contrast predict`` writes them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsss_contrast.data.base import DataError, read_mask, some
from wsss_contrast.functional import NO_LABEL


class LabelFolder:
    """Label images ``NAME.png`` of a folder, read when they are asked for: 8-bit palette or grey, 255 for none.

    Called with a photo's name and size (H, W), it gives uint8 (H, W): 0 the background, 1 to K the classes, 255 none.

    Args:
        folder: the folder.
        ids: what background and classes are in the images, in the order 0 to K, as a data module's ``mask_ids``;
            :class:`~wsss_contrast.callbacks.MaskWriter` writes these.
        names: photos that must have a label image.

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

    def __init__(self, folder: str | Path, ids: Sequence[int], names: Sequence[str] = ()) -> None:
        self.folder = Path(folder)
        self.ids = list(ids)
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: no such folder of labels; `wsss-contrast predict --labels` makes one")
        missing = [str(path) for path in map(self._path, names) if not path.is_file()]
        if missing:
            raise DataError(f"missing labels: {some(missing)}")
        self._table = np.full(NO_LABEL + 1, -1, np.int16)
        self._table[self.ids] = np.arange(len(self.ids))
        self._table[NO_LABEL] = NO_LABEL

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.png"

    def __call__(self, name: str, size: tuple[int, int]) -> NDArray[np.uint8]:
        path = self._path(name)
        stored = read_mask(path)
        if stored.shape != tuple(size):
            height, width = stored.shape
            raise DataError(f"{path}: the labels are {width}x{height} pixels, the photo is {size[1]}x{size[0]}")
        labels = self._table[stored]
        if labels.min(initial=0) < 0:
            wrong = np.unique(stored[labels < 0]).tolist()
            raise DataError(f"{path}: ids {wrong} are neither those of the data, {self.ids}, nor {NO_LABEL}")
        return labels.astype(np.uint8)
