"""The quality of seeds: mIoU of thresholded activation maps over a sweep of background thresholds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from wsss_contrast._checks import check_numbers, check_whole, shape_of

THRESHOLDS = tuple(i / 100 for i in range(60))
"""The field's sweep: 0.00 to 0.59."""


class SeedCurve:
    """Scores at each of the T background thresholds.

    Attributes:
        thresholds: (T,).
        iou: (T, C) IoU of each class in [0, 1], background first; NaN for a class that occurs neither in truth nor
            prediction.
        miou: (T,) mean IoU.
    """

    # No tuple or dataclass: torchmetrics would take the one-element tensors of a single threshold for scalars.
    def __init__(self, thresholds: Tensor, iou: Tensor, miou: Tensor) -> None:
        self.thresholds = thresholds
        self.iou = iou
        self.miou = miou

    @property
    def best(self) -> int:
        """Index of the threshold with the highest mIoU, the lowest of equals.

        On the split that is scored it is the *oracle*; chosen on the training split and applied to another it is the
        protocol.
        """
        return int(self.miou.argmax())

    def at(self, threshold: float) -> float:
        """mIoU at one of the thresholds."""
        matches = (self.thresholds - threshold).abs() < 1e-6
        if not bool(matches.any()):
            raise ValueError(f"{threshold} is none of the {len(self.thresholds)} thresholds of the sweep")
        return float(self.miou[matches][0])


class SeedMIoU(Metric):
    """mIoU of seeds over background thresholds, from confusion counts over the whole split, in one pass.

    At threshold t a pixel gets the class with the largest map if that is larger than t, else background. Ties between
    classes go to the lowest id. Pixels with truth 255 are left out. Each image adds to one histogram, from which all
    thresholds follow.

    Args:
        num_classes: K, foreground classes.
        thresholds: rising background thresholds.
        count_absent: count a class that occurs neither in truth nor prediction as IoU 0, as some released evaluators
            do; by default it is left out of the mean.

    Distributed contract: counts are summed over ranks; the result is that of one process on all images.

    >>> metric = SeedMIoU(num_classes=1, thresholds=(0.2, 0.6))
    >>> metric.update(torch.tensor([[[[0.1, 0.5, 0.9]]]]), torch.tensor([[[0, 1, 1]]]))
    >>> metric.compute().miou.tolist()
    [1.0, 0.5]
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    histogram: Tensor

    def __init__(self, num_classes: int, thresholds: Sequence[float] = THRESHOLDS, count_absent: bool = False) -> None:
        super().__init__()
        check_whole(num_classes=num_classes)
        if num_classes < 1:
            raise ValueError(f"`num_classes` must be at least 1, got {num_classes}")
        if not isinstance(thresholds, Sequence) or isinstance(thresholds, str):
            raise ValueError(f"`thresholds` must be a sequence of numbers, got {thresholds!r}")
        check_numbers(**{f"thresholds[{place}]": value for place, value in enumerate(thresholds)})
        if not thresholds or list(thresholds) != sorted(set(thresholds)):
            raise ValueError(f"`thresholds` must be rising and not empty, got {tuple(thresholds)}")
        self.num_classes = num_classes
        self.count_absent = count_absent
        self.thresholds = tuple(thresholds)  # no buffer: a module in half precision would round it
        # [truth, best class, how many thresholds the best class's score exceeds]
        shape = (num_classes + 1, num_classes, len(thresholds) + 1)
        self.add_state("histogram", torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, cams: Tensor, masks: Tensor) -> None:
        """Count a batch.

        Args:
            cams: (N, K, H, W) normalised foreground maps; untagged classes at most 0.
            masks: (N, H, W) integer truth: 0 background, 1 to K, 255 ignored.
        """
        if not isinstance(cams, Tensor) or cams.dim() != 4 or cams.shape[1] != self.num_classes or cams.is_complex():
            raise ValueError(f"`cams` must be (N, {self.num_classes}, H, W), got {shape_of(cams)}")
        if not isinstance(masks, Tensor) or masks.shape != (cams.shape[0], *cams.shape[2:]):
            raise ValueError(f"`masks` {shape_of(masks)} do not go with `cams` {tuple(cams.shape)}")
        if masks.is_floating_point() or masks.is_complex():
            raise ValueError(f"`masks` must be whole numbers, got {masks.dtype}")
        if bool(cams.isnan().any()):
            raise ValueError("`cams` have NaN values")
        masks = masks.long()
        known = masks != 255
        if bool(((masks < 0) | (masks > self.num_classes))[known].any()):
            found = masks[known].unique().tolist()
            raise ValueError(f"`masks` have ids {found}, expected 0 to {self.num_classes} and 255")
        score, best = cams.float().max(dim=1)  # the first of equals
        exceeded = torch.searchsorted(score.new_tensor(self.thresholds), score, right=False)
        _, classes, bins = self.histogram.shape
        flat = (masks * classes + best) * bins + exceeded
        self.histogram += torch.bincount(flat[known], minlength=self.histogram.numel()).view_as(self.histogram)

    def compute(self) -> SeedCurve:
        """Scores at each threshold."""
        counts = self.histogram.double()
        # above[g, k, t]: pixels of truth g whose best class is k and wins at threshold t
        above = counts.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        truth = counts.sum(dim=(1, 2))[:, None]
        hits = torch.cat([(counts[0].sum() - above[0].sum(0))[None], above[1:].diagonal().movedim(-1, 0)])
        predicted = torch.cat([(counts.sum() - above.sum(dim=(0, 1)))[None], above.sum(0)])
        iou = (hits / (truth + predicted - hits)).T  # 0 / 0 is NaN: a class that occurs nowhere
        miou = iou.nan_to_num(0.0).mean(1) if self.count_absent else iou.nanmean(1)
        return SeedCurve(torch.tensor(self.thresholds, device=iou.device), iou, miou)
