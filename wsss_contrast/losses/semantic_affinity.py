"""Affinity of features, learnt from labels that are sure (PSA)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsss_contrast import functional
from wsss_contrast._checks import check_maps

from ._pairs import affinity_terms, check_pair_labels, check_radius


class SemanticAffinity(nn.Module):
    """The loss of AffinityNet: PSA (Ahn and Kwak, CVPR 2018), Sec. 3.2.

    Pairs of like pixels should have a high affinity (:func:`~wsss_contrast.functional.feature_affinity`), others a low
    one. The weights 1/4, 1/4 and 1/2 are those of the released code, a quarter of the paper's 1, 1 and 2.

    Args:
        radius: of the pairs, in pixels of the features.

    Distributed contract: the mean over each kind of pair is that of the joined batch; a rank returns its own share
    times the number of ranks.

    Raises:
        ValueError: a radius below 2.
    """

    def __init__(self, radius: int = 5) -> None:
        super().__init__()
        check_radius(radius)
        self.radius = radius

    def forward(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The terms ``background``, ``foreground`` and ``negative``, weighted: add them.

        Scalars, zeros with a graph where there is no such pair. (``negative`` may be as low as -1e-5.)

        Args:
            features: (N, D, h, w), at least radius x (2 radius - 1).
            labels: (N, h, w) int64 ids, 0 for the background, 255 for none
                (:func:`~wsss_contrast.functional.affinity_seeds`).

        Raises:
            ValueError: shapes or types that do not go together, NaN, labels below 0 or above 255, or a map too small.
        """
        check_maps(features=features)
        check_pair_labels(labels, "features", features)
        with torch.autocast(features.device.type, enabled=False):
            affinity = functional.feature_affinity(features, self.radius)
            return affinity_terms(affinity, functional.pair_labels(labels, self.radius))
