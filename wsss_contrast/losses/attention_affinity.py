"""AFA's affinity from attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsss_contrast import functional
from wsss_contrast._checks import check_maps, check_whole, shape_of

from ._pairs import check_pair_labels, mean


class AttentionAffinity(nn.Module):
    r"""Affinity loss of AFA [1], ``L_aff``: tokens of one label have a high affinity, tokens of two a low one.

    .. math::

        L_\mathrm{aff} = \big\langle 1 - \sigma(A_{ij}) \big\rangle_{y_i = y_j}
        + \big\langle \sigma(A_{ij}) \big\rangle_{y_i \ne y_j}

    over pairs of different tokens in a window, which both have a label. The affinity A is made of a transformer's
    attention (:class:`~wsss_contrast.nn.AttentionAffinityHead`).

    Args:
        radius: of the window: pairs are at most so many rows and columns apart.

    Distributed contract: as :class:`PatchTokenContrast`.

    Raises:
        ValueError: a radius below 1.

    [1] Learning Affinity from Attention: End-to-End Weakly-Supervised Semantic Segmentation with Transformers, CVPR
    2022.
    """

    def __init__(self, radius: int = 8) -> None:
        super().__init__()
        check_whole(radius=radius)
        if radius < 1:
            raise ValueError(f"`radius` must be at least 1, got {radius}")
        self.radius = radius

    def forward(self, affinity: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The terms ``positive`` and ``negative``, each in [0, 1]: add them.

        A zero with a graph where there is no such pair.

        Args:
            affinity: (N, L, L) logits of the L = h w tokens of the map.
            labels: (N, h, w) int64 ids, 0 for the background, 255 for none.

        Raises:
            ValueError: shapes or types that do not go together, NaN, labels below 0 or above 255.
        """
        if not isinstance(affinity, Tensor) or affinity.dim() != 3 or affinity.shape[1] != affinity.shape[2]:
            raise ValueError(f"`affinity` must be of shape (N, L, L), got {shape_of(affinity)}")
        check_maps(affinity=affinity[:, None])
        tokens = affinity.shape[1]
        if not isinstance(labels, Tensor) or labels.dim() != 3 or labels.shape[1] * labels.shape[2] != tokens:
            raise ValueError(f"`labels` must be (N, h, w) of the {tokens} tokens of `affinity`, got {shape_of(labels)}")
        check_pair_labels(labels, "affinity", affinity.new_empty(len(affinity), 1, *labels.shape[1:]))
        with torch.autocast(affinity.device.type, enabled=False):
            likely = functional.full_precision(affinity).sigmoid()
            pairs = functional.token_pairs(labels, self.radius)
            return {"positive": mean(1 - likely, pairs.same), "negative": mean(likely, pairs.different)}
