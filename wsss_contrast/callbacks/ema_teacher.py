"""A teacher kept beside any host."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from wsss_contrast.checkpoints import Migration, up_to_date
from wsss_contrast.nn import EMATeacher
from wsss_contrast.training import refuse_sharding

from .taps import named_submodule


class EMATeacherCallback(L.Callback):
    """Keeps an :class:`~wsss_contrast.nn.EMATeacher` of a host's network.

    During ``fit`` the teacher is ``self.teacher`` in the host's own methods, ``callback.teacher`` for other callbacks,
    and is updated after each optimiser step (not after each batch: gradients may be accumulated). It is no submodule
    of the host: its ``state_dict``, its ``parameters()`` and DDP never see it. After ``fit``, or an exception, the host
    is as it was; the callback keeps the teacher.

    Checkpoints have it under the callback's own key, beside the host's weights, which are the student's. A run that is
    resumed goes on with the teacher; one that starts at step 0, or from a checkpoint without a teacher, starts a
    teacher from the host's weights.

    ``evaluate=True`` validates, tests and predicts with the teacher's weights in the host. With ``ckpt_path`` they are
    the checkpoint's. Put the callback before a ``MaskWriter``, which records the weights that it finds.

    Args:
        network: name of the host's submodule to copy. The host itself can't be: it would bring its trainer.
        decay: largest decay of the average.
        copy_steps: optimiser steps (``trainer.global_step``) after which the teacher is a copy still.
        ramp_start: step from which the decay's ramp counts.
        evaluate: validate, test and predict with the teacher.
        name: of the host's attribute during ``fit``, and in the checkpoint's key; unique among a trainer's teachers.

    Raises:
        TapError: there is no such submodule; says what there is.
        ValueError: a strategy that shards the weights; an attribute of that name; no teacher to evaluate with.
    """

    migrations: Sequence[Migration] = ()
    """What brings a state of an older format up to date. The first takes version 1 to version 2."""

    def __init__(
        self,
        network: str,
        decay: float = 0.99,
        copy_steps: int = 0,
        ramp_start: int = 0,
        evaluate: bool = False,
        name: str = "teacher",
    ) -> None:
        super().__init__()
        if not network:
            raise ValueError(
                "`network` must name a submodule of the host. The host itself would be copied with its trainer, "
                "metrics and data; put the layers that a teacher needs into one submodule"
            )
        if not name.isidentifier():
            raise ValueError(f"`name` must be a Python identifier, got {name!r}")
        self.network = network
        self.decay = decay
        self.copy_steps = copy_steps
        self.ramp_start = ramp_start
        self.evaluate = evaluate
        self.name = name
        self.teacher: EMATeacher | None = None
        self._loaded: dict[str, Any] | None = None
        self._fitting = False
        self._step = 0
        self._swap: AbstractContextManager[None] | None = None

    @property
    def state_key(self) -> str:
        return f"{type(self).__qualname__}[{self.name}]"

    def state_dict(self) -> dict[str, Any]:
        state = self._loaded
        if state is None and self.teacher is not None:
            state = self.teacher.state_dict()
        return {} if state is None else {"version": len(self.migrations) + 1, "teacher": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = up_to_date(state_dict, self.migrations, self.state_key).get("teacher")
        if self._fitting:
            self._load()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._swap is not None:  # saved within an evaluation, as on a cluster's signal
            ours, theirs = checkpoint["callbacks"][self.state_key]["teacher"], checkpoint["state_dict"]
            for key in ours:
                name = self.network + key.removeprefix("network")
                ours[key], theirs[name] = theirs[name], ours[key]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        refuse_sharding(trainer, self.state_key, "a teacher needs whole weights")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Here the host is built, restored and on its device, whatever the order of callbacks.
        if trainer.global_step == 0:
            self.teacher = None
        self._make(trainer, pl_module)
        if hasattr(pl_module, self.name):
            raise ValueError(f"the host already has an attribute `{self.name}`; give the callback another `name`")
        pl_module.__dict__[self.name] = self.teacher  # not as a submodule
        self._fitting = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            assert self.teacher is not None
            self.teacher.update(self._network(pl_module), self._step)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.evaluate:
            return
        if not self._fitting:
            self._make(trainer, pl_module)
        assert self.teacher is not None
        swap = self.swapped(pl_module)
        swap.__enter__()
        self._swap = swap

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap_out()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def swapped(self, pl_module: L.LightningModule) -> AbstractContextManager[None]:
        """Within, during ``fit``, the host has the teacher's weights."""
        assert self.teacher is not None
        return self.teacher.swapped(self._network(pl_module))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._leave(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._leave(pl_module)

    def _make(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Have a teacher of the host's network, on its device."""
        if self._loaded is None and trainer.ckpt_path is not None:
            self.teacher = None  # of other weights than the checkpoint's
            rank_zero_info(f"{trainer.ckpt_path} has no {self.state_key}")
        if self._loaded is None and self.teacher is None and trainer.state.fn != "fit":
            raise ValueError(
                f"{self.state_key}: there is no teacher to evaluate with; fit first, or give the `ckpt_path` of a run "
                "with this callback"
            )
        with torch.inference_mode(False):  # an evaluation has begun, and a fit may follow
            if self._loaded is not None or self.teacher is None:
                self.teacher = EMATeacher(self._network(pl_module), self.decay, self.copy_steps, self.ramp_start)
                self._load()
            self.teacher.to(pl_module.device)

    def _load(self) -> None:
        if self._loaded is not None:
            assert self.teacher is not None
            self.teacher.load_state_dict(self._loaded)
            self._loaded = None

    def _network(self, pl_module: L.LightningModule) -> nn.Module:
        try:
            return pl_module.get_submodule(self.network)  # a compiled one serves, too
        except AttributeError:
            return named_submodule(pl_module, self.network)  # says what names there are

    def _swap_out(self) -> None:
        if self._swap is not None:
            swap, self._swap = self._swap, None
            swap.__exit__(None, None, None)

    def _leave(self, pl_module: L.LightningModule) -> None:
        self._swap_out()
        self._fitting = False
        if self.teacher is not None:
            if pl_module.__dict__.get(self.name) is self.teacher:
                del pl_module.__dict__[self.name]
            self.teacher.cpu()  # as Lightning does with the host
