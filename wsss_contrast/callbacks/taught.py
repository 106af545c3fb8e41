"""The base of regularizers that compare a host with its teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from wsss_contrast.losses import CSRMSchedule
from wsss_contrast.training import progress

from .ema_teacher import EMATeacherCallback
from .host import Host
from .regularizer import RegularizerCallback
from .taps import Tap


class TaughtRegularizer(RegularizerCallback):
    """A regularizer that taps its host twice: in its own training step, and in one pass with the teacher's weights.

    The pass with the teacher's weights is one for all such callbacks of a host: in evaluation mode, without a graph,
    on the images of the batch (:meth:`teach`). The trainer needs an
    :class:`~wsss_contrast.callbacks.EMATeacherCallback`.

    Args:
        taps: as of :class:`~wsss_contrast.callbacks.RegularizerCallback`. ``segmentation`` has the background first.
        schedule: of the term's weight and shares; by default the paper's.
        teacher: ``name`` of the teacher's callback.
        labeled: key of the number of labelled images in the batch, which are the first. Without it in the batch, all
            are unlabelled.
        kwargs: as of :class:`~wsss_contrast.callbacks.RegularizerCallback`.
    """

    views = 1

    def __init__(
        self,
        taps: Mapping[str, Tap | None],
        schedule: CSRMSchedule | None = None,
        teacher: str = "teacher",
        labeled: str = "labeled",
        **kwargs: Any,
    ) -> None:
        super().__init__(taps, **kwargs)
        self.schedule = schedule or CSRMSchedule()
        self.teacher = teacher
        self.labeled = labeled
        self._taught: dict[str, Tensor] | None = None
        self._batch: Any = None

    def compare(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        tags: Tensor,
        images: Tensor,
        labeled: int,
        progress: float,
        generator: torch.Generator,
    ) -> Tensor:
        """The term, without its weight. What a subclass gives.

        Args:
            student: what the taps gave, by label, (N, C, h, w) each.
            teacher: the same with the teacher's weights.
            tags: (N, K) multi-hot.
            images: (N, 3, H, W) of the batch.
            labeled: how many images, the first, are labelled.
            progress: share of the training that is done.
            generator: for random draws.
        """
        raise NotImplementedError

    @property
    def term(self) -> str:
        """The term's name in the schedule and in the log."""
        raise NotImplementedError

    def build(self, in_channels: int) -> nn.Module:
        return nn.Module()

    def teach(self, module: L.LightningModule, batch: Any) -> None:
        """Run the host on the images that the teacher is to label; override for another view of them."""
        module(batch[self.images])

    @contextmanager
    def teaching(self, module: L.LightningModule) -> Iterator[None]:
        """The host with the teacher's weights, in evaluation mode and without a graph."""
        modes = [(part, part.training) for part in module.modules()]
        with torch.no_grad(), self.teacher_of(module).swapped(module):
            module.eval()
            try:
                yield
            finally:
                for part, mode in modes:
                    part.training = mode

    def teacher_of(self, module: L.LightningModule) -> EMATeacherCallback:
        """The callback that keeps the host's teacher."""
        callbacks: list[Any] = module.trainer.callbacks  # type: ignore[attr-defined]
        found = {callback.name: callback for callback in callbacks if isinstance(callback, EMATeacherCallback)}
        if self.teacher not in found:
            raise ValueError(
                f"{self.state_key}: the trainer needs an EMATeacherCallback of the name {self.teacher!r}; "
                f"there is {sorted(found) or 'none'}"
            )
        return found[self.teacher]

    def before_step(self, module: L.LightningModule, batch: Any) -> None:
        if self._batch is batch:  # another's pass served this one
            return
        members = [m for m in Host.of(module).sorted_members() if isinstance(m, TaughtRegularizer)]
        with self.teaching(module), ExitStack() as recording:
            for member in members:
                recording.enter_context(member.recorder.recording())
            self.teach(module, batch)
        for member in members:
            member._taught, member._batch = member._view(0, member._image_size(batch)), batch
            member.recorder.calls.clear()

    def regularize(
        self, views: Sequence[Mapping[str, Tensor]], tags: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        (student,) = views
        taught, batch = self._taught, self._batch
        self._taught = self._batch = None
        assert taught is not None
        images = batch[self.images]
        labeled = int(batch[self.labeled]) if isinstance(batch, Mapping) and self.labeled in batch else 0
        if len(tags) == 0:  # a rank that skips the step
            taught, images, labeled = dict(student), images[:0], 0
        done = progress(self._trainer)
        term = self.compare(student, taught, tags, images, labeled, done, generator)
        return {self.term: term * self.schedule.weights(done)[self.term]}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._trainer = trainer

    def _cam_layer_width(self, module: nn.Module) -> int:
        return 0  # no part is made of the CAM layer's input

    def _empty(self, tags: Tensor) -> dict[str, Tensor]:
        widths = {"cams": tags.shape[1] + (self._at.background is not None), "segmentation": tags.shape[1] + 1}
        return {
            label: tags.new_zeros((0, widths.get(label, max(self._width, 1)), 1, 1), dtype=torch.float32)
            for label in self._at.taps
        }
