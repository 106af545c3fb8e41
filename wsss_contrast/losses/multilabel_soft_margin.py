"""The classification loss of CAM methods."""

from __future__ import annotations

from torch import Tensor, nn

from wsss_contrast import functional
from wsss_contrast._checks import check_maps, check_sizes, check_smoothing, check_tags, check_valid


class MultilabelSoftMargin(nn.Module):
    """Multi-label soft margin loss of pooled maps: Eq. 7 of SEAM (CVPR 2020), ``L_cls`` of PPC (CVPR 2022),
    L_c of CSRM (VISAPP 2025, Eq. 5, whose text takes a second sigmoid).

    Args:
        label_smoothing: s, which moves the tags to (1 - s) y + s / 2; in [0, 1).

    Distributed contract: a mean over images; nothing is gathered.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        check_smoothing(label_smoothing)
        self.label_smoothing = label_smoothing

    def forward(
        self, cams: Tensor, tags: Tensor, valid: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> Tensor:
        """A scalar, at least 0.

        Args:
            cams: (N, K, h, w) raw foreground maps, before any ReLU; they are averaged over pixels to logits.
            tags: (N, K) multi-hot.
            valid: (N, h, w) bool, pixels that the average is taken over; all by default.
            size: the height and width to which the maps are resized before; their own by default. Not with ``valid``.

        Raises:
            ValueError: shapes that do not go together, NaN, tags that are not 0 or 1.
        """
        check_maps(cams=cams)
        check_tags(tags, cams.shape[0], cams.shape[1])
        check_valid(valid, cams)
        check_sizes(valid, size=size)
        logits = functional.global_average_pool(cams, valid, size)
        return functional.multilabel_soft_margin(logits, tags, self.label_smoothing)
