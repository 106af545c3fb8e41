"""Segmentation of mixed images that follows the teacher's of plain ones (CSRM)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from wsss_contrast import distributed, functional
from wsss_contrast._checks import check_choice, check_labels, check_maps, check_share, kind

from ._quantiles import joined_quantiles


class WeakToStrong(nn.Module):
    """Weak-to-strong consistency of the segmentation: L_u, Eqs. 10 to 12 of CSRM (VISAPP 2025), after U2PL.

    The teacher's labels of the plain images supervise the student on the augmented ones, at the pixels whose entropy is
    below a quantile.

    Args:
        normalizer: ``"kept"``: the mean over these pixels (Eq. 12). ``"all"``: that mean times the share of pixels over
            kept pixels, as in the released code, which divides twice.

    Distributed contract: quantile and mean are those of the joined batch; a rank returns its own share times the
    number of ranks.
    """

    def __init__(self, normalizer: Literal["kept", "all"] = "kept") -> None:
        super().__init__()
        check_choice(("kept", "all"), normalizer=normalizer)
        self.normalizer = normalizer

    def forward(self, logits: Tensor, labels: Tensor, entropy: Tensor, share: float) -> Tensor:
        """A scalar, at least 0; a zero with a graph where no pixel is kept.

        Args:
            logits: (N, C, h, w) of the student, resized to the labels.
            labels: (N, H, W) int64 ids of the teacher, 255 for none.
            entropy: (N, H, W), the teacher's (:func:`~wsss_contrast.functional.entropy`).
            share: alpha, in [0, 1]: the share of pixels that is unreliable. The pixels kept lie strictly below the
                quantile 1 - alpha of the labelled pixels' entropy.

        Raises:
            ValueError: shapes or types that do not go together, NaN, labels of no class, a share out of range.
        """
        check_maps(logits=logits)
        check_labels(labels, len(logits), logits.shape[1])
        if not isinstance(entropy, Tensor) or entropy.shape != labels.shape or not entropy.is_floating_point():
            raise ValueError(
                f"`entropy` must be floating and of shape {tuple(labels.shape)} like the labels, got {kind(entropy)}"
            )
        check_maps(entropy=entropy[:, None])
        check_share(share=share)
        with torch.autocast(logits.device.type, enabled=False):
            kept = self._kept(entropy.detach(), labels, share)
            logits = functional.resize(functional.full_precision(logits), (labels.shape[-2], labels.shape[-1]))
            nll = functional.segmentation_nll(logits, labels.masked_fill(~kept, functional.NO_LABEL))
            mean = distributed.joined_mean(nll.sum(), kept.sum())
            if self.normalizer == "kept":
                return mean
            counts = distributed.all_gather(torch.stack([kept.sum(), kept.sum() + (~kept).sum()])).sum(dim=0)
            return mean * counts[1] / counts[0].clamp_min(1)

    @staticmethod
    def _kept(entropy: Tensor, labels: Tensor, share: float) -> Tensor:
        counted = labels != functional.NO_LABEL
        (threshold,) = joined_quantiles(entropy, counted, [1 - share])
        return counted & (entropy < threshold)
