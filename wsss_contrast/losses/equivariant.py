"""SEAM's two consistency losses between the views of a photo."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsss_contrast import functional
from wsss_contrast._checks import (
    check_fraction,
    check_maps,
    check_same_channels,
    check_tags,
    check_valid,
    check_view_sizes,
    check_warped,
)


class EquivariantRegularization(nn.Module):
    """Equivariant regularisation, ER (Eq. 3 of SEAM [1]): the maps of two views of a photo agree.

    The formula is :func:`~wsss_contrast.functional.equivariant_regularization`.

    Distributed contract: a mean over images, so ranks with equal batches give the joined batch's value as the mean
    over ranks; nothing is gathered.

    [1] Self-supervised Equivariant Attention Mechanism for Weakly Supervised Semantic Segmentation, CVPR 2020.
    """

    def forward(
        self,
        source_cams: Tensor,
        target_cams: Tensor,
        tags: Tensor,
        valid: Tensor | None = None,
        sizes: tuple[tuple[int, int], tuple[int, int]] | None = None,
    ) -> Tensor:
        """A scalar in [0, 1].

        Args:
            source_cams: (N, K, h1, w1) raw foreground maps, any range.
            target_cams: (N, K, h2, w2), of the transformed photo; the source's are resized to (h2, w2).
            tags: (N, K) multi-hot.
            valid: (N, h2, w2) bool, pixels that both views have, where the target view is more than a resize. The
                source's maps are then already warped (:func:`~wsss_contrast.functional.warp`). All by default.
            sizes: the height and width to which the source's and the target's maps are resized before, those of their
                photos in SEAM; their own by default. Not with ``valid``.

        Raises:
            ValueError: shapes that do not go together, NaN, tags that are not 0 or 1.
        """
        check_maps(source_cams=source_cams, target_cams=target_cams)
        check_same_channels(source_cams=source_cams, target_cams=target_cams)
        check_tags(tags, source_cams.shape[0], source_cams.shape[1])
        check_valid(valid, target_cams)
        check_warped(valid, source_cams, target_cams)
        check_view_sizes(valid, sizes)
        with torch.autocast(source_cams.device.type, enabled=False):
            return functional.equivariant_regularization(source_cams, target_cams, tags, valid, sizes)


class EquivariantCrossRegularization(nn.Module):
    """Equivariant cross regularisation, ECR (Eq. 9 of SEAM): a view's refined maps follow the other view's raw maps.

    The formula is :func:`~wsss_contrast.functional.equivariant_cross_regularization`. Gradient flows through the
    refined maps only.

    Args:
        ratio: share of an image's differences, the largest, that count; in (0, 1].

    Distributed contract: as :class:`EquivariantRegularization`.
    """

    def __init__(self, ratio: float = 0.2) -> None:
        super().__init__()
        check_fraction(ratio=ratio)
        self.ratio = ratio

    def forward(
        self,
        source_cams: Tensor,
        source_refined: Tensor,
        target_cams: Tensor,
        target_refined: Tensor,
        tags: Tensor,
        valid: Tensor | None = None,
        sizes: tuple[tuple[int, int], tuple[int, int]] | None = None,
    ) -> Tensor:
        """A scalar in [0, 2], the sum of both directions.

        Args:
            source_cams: (N, K, h1, w1) raw foreground maps.
            source_refined: (N, 1 + K, h1, w1) refined maps, background first.
            target_cams: (N, K, h2, w2).
            target_refined: (N, 1 + K, h2, w2).
            tags: (N, K) multi-hot.
            valid: as :class:`EquivariantRegularization`.
            sizes: likewise.

        Raises:
            ValueError: shapes that do not go together, NaN, tags that are not 0 or 1.
        """
        check_maps(
            source_cams=source_cams,
            source_refined=source_refined,
            target_cams=target_cams,
            target_refined=target_refined,
        )
        check_same_channels(source_cams=source_cams, target_cams=target_cams)
        check_same_channels(source_refined=source_refined, target_refined=target_refined)
        if source_refined.shape[1] != source_cams.shape[1] + 1:
            raise ValueError(
                "the refined maps must have one channel more than the raw maps (the background, first), "
                f"got {source_refined.shape[1]} and {source_cams.shape[1]}"
            )
        check_tags(tags, source_cams.shape[0], source_cams.shape[1])
        check_valid(valid, target_cams)
        check_warped(valid, source_cams, source_refined, target_cams, target_refined)
        check_view_sizes(valid, sizes)
        with torch.autocast(source_cams.device.type, enabled=False):
            return functional.equivariant_cross_regularization(
                source_cams, source_refined, target_cams, target_refined, tags, self.ratio, valid, sizes
            )
