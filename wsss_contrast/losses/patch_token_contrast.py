"""ToCo's contrast of patch tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsss_contrast import functional
from wsss_contrast._checks import check_maps

from ._pairs import check_pair_labels, mean


class PatchTokenContrast(nn.Module):
    r"""Patch token contrast, ``L_ptc`` of ToCo [1]: tokens of one label are alike, tokens of two are not.

    A vision transformer's last tokens become alike all over the photo. Labels from the activation maps of a middle
    layer, which are not, keep them apart:

    .. math::

        L_\mathrm{ptc} = \big\langle 1 - |\cos(f_i, f_j)| \big\rangle_{y_i = y_j}
        + \big\langle |\cos(f_i, f_j)| \big\rangle_{y_i \ne y_j}

    over pairs of different tokens that both have a label.

    Distributed contract: both means are those of the joined batch; a rank returns its own share times the number of
    ranks.

    [1] Token Contrast for Weakly-Supervised Semantic Segmentation, CVPR 2023.
    """

    def forward(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The terms ``positive`` and ``negative``, each in [0, 1]: add them.

        A zero with a graph where there is no such pair.

        Args:
            features: (N, D, h, w), the tokens as a map.
            labels: (N, h, w) int64 ids, 0 for the background, 255 for none.

        Raises:
            ValueError: shapes or types that do not go together, NaN, labels below 0 or above 255.
        """
        check_maps(features=features)
        check_pair_labels(labels, "features", features)
        with torch.autocast(features.device.type, enabled=False):
            similarity, pairs = functional.token_similarity(features), functional.token_pairs(labels)
            return {"positive": mean(1 - similarity, pairs.same), "negative": mean(similarity, pairs.different)}
