"""SEPL as a refiner: labels merged with the masks of a segment-anything model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wsss_contrast.functional import best_class, merge_segments
from wsss_contrast.functional.sepl import POLICIES

from .pseudo_labels import Refiner

Segments = Callable[[str, tuple[int, int]], Tensor]
"""A photo's masks (N, H, W), bool, from its name and the size (H, W) that they must have."""


class SEPL:
    """SEPL (Chen et al., arXiv 2305.05803): the classes get the masks of a segment-anything model that they go with.

    A refiner that wants the photos' names, see :class:`~wsss_contrast.refine.Refiner`; see
    :func:`~wsss_contrast.functional.merge_segments` for the rule. The labels that are merged are those of the best
    scores, and the scores that come out are 1 for the new label and 0 for the others.

    Args:
        segments: gives a photo's masks, as :class:`~wsss_contrast.data.SegmentFolder` does.
        policy: ``"max_iou_imp2"``, ``"max_iou_imp"`` or ``"max_iou"``.
        before: a refiner that comes first, as a dense CRF.

    Raises:
        ValueError: an unknown policy. When called: not a name for each photo.

    >>> whole = lambda name, size: torch.ones(1, *size, dtype=torch.bool)
    >>> scores = torch.tensor([0.5, 0.9]).view(1, 2, 1, 1).repeat(1, 1, 1, 4)
    >>> scores[..., 3] = torch.tensor([0.5, 0.1])[:, None]
    >>> photos, present = torch.zeros(1, 3, 1, 4, dtype=torch.uint8), torch.ones(1, 2, dtype=torch.bool)
    >>> SEPL(whole)(photos, scores, present, ["cat"]).argmax(dim=1)
    tensor([[[1, 1, 1, 1]]])
    """

    wants_names = True

    def __init__(self, segments: Segments, policy: str = "max_iou_imp2", before: Refiner | None = None) -> None:
        if policy not in POLICIES:
            raise ValueError(f"unknown policy {policy!r} of SEPL; there are {', '.join(POLICIES)}")
        self.segments = segments
        self.policy = policy
        self.before = before

    def __repr__(self) -> str:
        return f"SEPL({self.segments!r}, policy={self.policy!r}, before={self.before!r})"

    @property
    def concurrency(self) -> int:
        """That of the refiner before."""
        return getattr(self.before, "concurrency", 1)

    def __call__(self, photos: Tensor, scores: Tensor, present: Tensor, names: Sequence[str] = ()) -> Tensor:
        if len(names) != len(scores):
            raise ValueError(f"SEPL needs the name of each photo, got {len(names)} names for {len(scores)} photos")
        if self.before is not None:
            more = {"names": names} if getattr(self.before, "wants_names", False) else {}
            scores = self.before(photos, scores, present, **more)
        labels = best_class(scores, present)
        merged = torch.zeros_like(scores)
        for name, of_photo, out in zip(names, labels, merged, strict=True):
            segments = self.segments(name, (of_photo.shape[0], of_photo.shape[1])).to(of_photo.device)
            out.scatter_(0, merge_segments(of_photo, segments, self.policy)[None], 1)
        return merged

    def close(self) -> None:
        """Close the refiner before, if it can be."""
        close = getattr(self.before, "close", None)
        if close is not None:
            close()
