"""Boundaries and displacements, learnt from pairs of pixels (IRN)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsss_contrast import functional
from wsss_contrast._checks import check_maps

from ._pairs import affinity_terms, check_pair_labels, check_radius, mean


class InterPixelRelations(nn.Module):
    """The loss of IRNet: IRN (Ahn, Cho and Kwak, CVPR 2019), Sec. 4.

    A pair of unlike pixels should have a boundary on the way
    (:func:`~wsss_contrast.functional.edge_affinity`), one of like pixels none. Pixels of a class should point at the
    same spot, those of the background nowhere (:func:`~wsss_contrast.functional.displacement_errors`). The weights are
    those of the released code.

    Args:
        radius: of the pairs, in pixels of the maps.

    Distributed contract: the mean over each kind of pair is that of the joined batch; a rank returns its own share
    times the number of ranks.

    Raises:
        ValueError: a radius below 2.
    """

    def __init__(self, radius: int = 10) -> None:
        super().__init__()
        check_radius(radius)
        self.radius = radius

    def forward(self, edges: Tensor, displacements: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The terms, weighted: add them. Scalars, zeros with a graph where there is no such pair.

        ``background``, ``foreground`` (1/4) and ``negative`` (1/2, may be as low as -1e-5) are those of the affinity,
        ``displacement_background`` and ``displacement_foreground`` (1/2) those of the displacements, in pixels.

        Args:
            edges: (N, 1, h, w), logits of a class boundary; at least radius x (2 radius - 1).
            displacements: (N, 2, h, w), down and right, in pixels of the map.
            labels: (N, h, w) int64 ids, 0 for the background, 255 for none.

        Raises:
            ValueError: shapes or types that do not go together, NaN, labels below 0 or above 255, or a map too small.
        """
        check_maps(edges=edges, displacements=displacements)
        if edges.shape[2:] != displacements.shape[2:]:
            raise ValueError(
                f"`edges` and `displacements` must have the same size, got {tuple(edges.shape[2:])} and "
                f"{tuple(displacements.shape[2:])}"
            )
        check_pair_labels(labels, "edges", edges)
        with torch.autocast(edges.device.type, enabled=False):
            pairs = functional.pair_labels(labels, self.radius)
            terms = affinity_terms(functional.edge_affinity(edges, self.radius), pairs)
            of_object, of_background = functional.displacement_errors(displacements, self.radius)
            return terms | {
                "displacement_background": mean(of_background, pairs.background) / 2,
                "displacement_foreground": mean(of_object, pairs.foreground) / 2,
            }
