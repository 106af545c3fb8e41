"""SEAM's min-pooling term."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsss_contrast import functional
from wsss_contrast._checks import check_maps, check_sizes, check_tags, check_valid


class MinPooling(nn.Module):
    """Holds the refined maps down where an image is darkest; see :func:`~wsss_contrast.functional.min_pooling`.

    From SEAM's released code, which adds it to the classification loss; the paper does not name it.

    Distributed contract: a mean over images; nothing is gathered.
    """

    def forward(
        self, refined: Tensor, tags: Tensor, valid: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> Tensor:
        """A scalar, at least 0.

        Args:
            refined: (N, K, h, w) foreground channels of the refined maps, not normalised.
            tags: (N, K) multi-hot.
            valid: (N, h, w) bool, pixels that take part; all by default.
            size: the height and width to which the maps are resized before; their own by default. Not with ``valid``.

        Raises:
            ValueError: shapes that do not go together, NaN, tags that are not 0 or 1.
        """
        check_maps(refined=refined)
        check_tags(tags, refined.shape[0], refined.shape[1])
        check_valid(valid, refined)
        check_sizes(valid, size=size)
        with torch.autocast(refined.device.type, enabled=False):
            return functional.min_pooling(refined, tags, valid, size)
