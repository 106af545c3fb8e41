"""Fully connected conditional random field (dense CRF, Krähenbühl and Koltun, NIPS 2011) on hard labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_IGNORE = 255


def dense_crf(
    image: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    confidence: float = 0.7,
    bilateral: tuple[float, float, float] = (50, 5, 10),
    gaussian: tuple[float, float] = (3, 3),
    iterations: int = 10,
) -> NDArray[np.uint8]:
    """Move the borders of a mask to those of the photo. The defaults are PPC's "seed + CRF".

    Only the classes that occur in the mask take part; a mask of one class stays as it is.

    Args:
        image: (H, W, 3) RGB, 0 to 255.
        labels: (H, W) class ids, 255 for pixels without one.
        confidence: the probability that a label is right, in (0, 1); the rest is shared by the other classes.
        bilateral: standard deviations in pixels and in colour, and the weight, of the appearance kernel.
        gaussian: standard deviation in pixels, and the weight, of the smoothness kernel.
        iterations: of mean field.

    Returns:
        (H, W) class ids.

    Raises:
        ImportError: the extra ``crf`` is not installed.
        ValueError: an image that is no uint8 (H, W, 3), labels of another size, a confidence outside of (0, 1).
    """
    try:
        from pydensecrf.densecrf import DenseCRF2D
        from pydensecrf.utils import unary_from_labels
    except ImportError as error:
        raise ImportError("the dense CRF needs `pip install 'wsss-contrast[crf]'`") from error
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"`image` must be uint8 of shape (H, W, 3), got {image.dtype} {image.shape}")
    if labels.shape != image.shape[:2]:
        raise ValueError(f"`labels` {labels.shape} do not go with `image` {image.shape}")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be in (0, 1), got {confidence}")
    known = labels != _IGNORE
    classes = np.unique(labels[known])
    if len(classes) < 2:
        return labels.copy()
    # `unary_from_labels` takes 0 for "no label" and counts the classes from 1.
    positions = np.where(known, np.searchsorted(classes, labels) + 1, 0)
    height, width = labels.shape
    crf = DenseCRF2D(width, height, len(classes))
    crf.setUnaryEnergy(unary_from_labels(positions, len(classes), confidence, zero_unsure=True))
    crf.addPairwiseGaussian(sxy=gaussian[0], compat=gaussian[1])
    crf.addPairwiseBilateral(sxy=bilateral[0], srgb=bilateral[1], rgbim=np.array(image, order="C"), compat=bilateral[2])
    best = np.argmax(crf.inference(iterations), axis=0).reshape(height, width)
    refined: NDArray[np.uint8] = classes[best].astype(np.uint8)
    return refined
