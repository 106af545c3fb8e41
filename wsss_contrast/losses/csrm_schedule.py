"""How CSRM's terms come in and what they ask for in the course of a training."""

from __future__ import annotations

from typing import Literal

from wsss_contrast._checks import check_choice, check_numbers, check_share


class CSRMSchedule:
    """The schedules of CSRM (VISAPP 2025, Secs. 3.2 to 3.5) over the share of the training that is done, in [0, 1].

    Args:
        warmup: share of the training in which the terms beside classification and segmentation are multiplied by 0.
        unreliable: alpha_0, the share of unreliable pixels at the start; it falls to 0 linearly.
        scheduled: what rises linearly from 0.1 to 1 after the warm-up: ``"confidence"``, that a pixel must exceed to
            supervise the activation maps (the paper), or ``"weight"`` of that term, with a confidence of 0.5 (its
            released code).

    >>> schedule = CSRMSchedule(warmup=0.1)
    >>> [round(schedule.confidence(progress), 2) for progress in (0.1, 0.55, 1.0)]
    [0.1, 0.55, 1.0]
    """

    def __init__(
        self,
        warmup: float = 1 / 15,
        unreliable: float = 0.2,
        scheduled: Literal["confidence", "weight"] = "confidence",
    ) -> None:
        check_numbers(warmup=warmup)
        if not 0 <= warmup < 1:
            raise ValueError(f"`warmup` must be in [0, 1), got {warmup}")
        check_share(unreliable=unreliable)
        check_choice(("confidence", "weight"), scheduled=scheduled)
        self.warmup = warmup
        self.unreliable = unreliable
        self.scheduled = scheduled

    def unreliable_share(self, progress: float) -> float:
        """alpha_t, the share of unreliable pixels."""
        check_share(progress=progress)
        return self.unreliable * (1 - progress)

    def confidence(self, progress: float) -> float:
        """sigma, which a pixel's probability must exceed to supervise the activation maps."""
        check_share(progress=progress)
        return self._ramp(progress) if self.scheduled == "confidence" else 0.5

    def weights(self, progress: float) -> dict[str, float]:
        """The weight of each term."""
        check_share(progress=progress)
        on = float(progress >= self.warmup - 1e-9)
        return {
            "classification": 1.0,
            "segmentation": 1.0,
            "seg_to_cam": on * (self._ramp(progress) if self.scheduled == "weight" else 1.0),
            "weak_to_strong": on,
            "contrast": on,
        }

    def _ramp(self, progress: float) -> float:
        return min(0.1 + 0.9 * max(progress - self.warmup, 0.0) / (1 - self.warmup), 1.0)
