"""The classification loss of CAM methods."""

from __future__ import annotations

from torch import Tensor, nn

from wsss_contrast import functional

from ._checks import check_maps, check_tags, check_valid


class MultilabelSoftMargin(nn.Module):
    """Multi-label soft margin loss of pooled maps: Eq. 7 of SEAM (CVPR 2020), ``L_cls`` of PPC (CVPR 2022).

    Distributed contract: a mean over images; nothing is gathered.
    """

    def forward(self, cams: Tensor, tags: Tensor, valid: Tensor | None = None) -> Tensor:
        """A scalar, at least 0.

        Args:
            cams: (N, K, h, w) raw foreground maps, before any ReLU; they are averaged over pixels to logits.
            tags: (N, K) multi-hot.
            valid: (N, h, w) bool, pixels that the average is taken over; all by default.

        Raises:
            ValueError: shapes that do not go together, NaN, tags that are not 0 or 1.
        """
        check_maps(cams=cams)
        check_tags(tags, cams.shape[0], cams.shape[1])
        check_valid(valid, cams)
        return functional.multilabel_soft_margin(functional.global_average_pool(cams, valid), tags)
