"""A host under regularizers: its methods wrapped on the instance, and put back when the last one leaves."""

from __future__ import annotations

import functools
import inspect
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor

from wsss_contrast.distributed import world_size

if TYPE_CHECKING:
    from .regularizer import RegularizerCallback

_HOSTS: dict[L.LightningModule, Host] = {}
"""Those with a regularizer attached; an entry goes when the last one leaves."""


class Host:
    """One LightningModule and the regularizers attached to it.

    ``configure_model`` is wrapped so that regularizers attach after the host has built itself (in ``__init__``,
    ``setup`` or ``configure_model``); ``training_step`` is wrapped so that their terms join its loss. All
    regularizers share one wrap and run in the order of their names, so the order of callbacks makes no difference.
    """

    def __init__(self, module: L.LightningModule) -> None:
        self.module = module
        self.members: dict[str, RegularizerCallback] = {}
        self._saved: dict[str, Any] = {}
        self._batch: Any = None  # of the step that runs, under manual optimisation
        self._backward = 0  # how many `manual_backward` it has called

    @staticmethod
    def join(module: L.LightningModule, callback: RegularizerCallback) -> None:
        """Attach a regularizer to a module as soon as that is built."""
        _HOSTS.setdefault(module, Host(module))._add(callback)

    @staticmethod
    def leave(module: L.LightningModule, callback: RegularizerCallback) -> None:
        """Detach it, if it is attached; the last to leave puts the module's methods back."""
        if module in _HOSTS:
            _HOSTS[module]._remove(callback)

    @staticmethod
    def of(module: L.LightningModule) -> Host:
        """The host that a module with regularizers is."""
        return _HOSTS[module]

    def sorted_members(self) -> list[RegularizerCallback]:
        """The regularizers in the order of their names."""
        return [self.members[name] for name in sorted(self.members)]

    def _add(self, callback: RegularizerCallback) -> None:
        if callback.name in self.members:
            raise ValueError(f"two regularizers are named {callback.name!r}; give one another `name`")
        if not self.members:
            self._wrap_configure_model()
        self.members[callback.name] = callback

    def _remove(self, callback: RegularizerCallback) -> None:
        if self.members.get(callback.name) is not callback:
            return
        del self.members[callback.name]
        callback.detach(self.module)
        if not self.members:
            for name, method in self._saved.items():
                if method is None:
                    del self.module.__dict__[name]
                else:
                    self.module.__dict__[name] = method
            self._saved.clear()
            del _HOSTS[self.module]

    def _replace(self, name: str, method: Any) -> None:
        self._saved[name] = self.module.__dict__.get(name)
        self.module.__dict__[name] = method

    def _wrap_configure_model(self) -> None:
        original = self.module.configure_model

        # Without functools.wraps: Lightning would follow `__wrapped__` and find the method not overridden.
        def configure_model() -> None:
            original()
            if "training_step" not in self._saved:
                self._wrap_training_step()
            for callback in self.sorted_members():
                callback.attach(self.module)

        self._replace("configure_model", configure_model)

    def _wrap_training_step(self) -> None:
        original = self.module.training_step
        parameters = list(inspect.signature(original).parameters)
        if not parameters or parameters[0] == "dataloader_iter":
            raise ValueError("a regularizer needs a `training_step` whose first argument is the batch")

        @functools.wraps(original)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            batch = args[0] if args else kwargs[parameters[0]]
            step = self._step if self.module.automatic_optimization else self._manual_step
            return step(lambda: original(*args, **kwargs), batch)

        self._replace("training_step", training_step)
        if not self.module.automatic_optimization:
            self._wrap_manual_backward()

    def _wrap_manual_backward(self) -> None:
        for member in self.sorted_members():
            member.check_backward(self.module)  # a host may turn to manual optimisation in its `setup`
        original = self.module.manual_backward

        @functools.wraps(original)
        def manual_backward(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            members = [m for m in self.sorted_members() if m.joins(self.module) == self._backward]
            self._backward += 1
            if members and self._batch is not None:
                loss = loss + self._terms(members)
            original(loss, *args, **kwargs)

        self._replace("manual_backward", manual_backward)

    def _step(self, original: Any, batch: Any) -> Any:
        members = self.sorted_members()
        for member in members:
            member.before_step(self.module, batch)
        output = _nested([m.recorder.recording for m in members], original)
        if output is None and world_size() == 1:
            return None
        terms = [m.step(self.module, batch, skipped=output is None) for m in members]
        added = torch.stack(terms).sum()
        if output is None:
            # The other ranks wait for this one in the reduction of gradients: take part with a zero.
            return added + sum((p * 0).sum() for p in self.module.parameters() if p.requires_grad)
        if isinstance(output, dict):
            return {**output, "loss": output["loss"] + added} if isinstance(output.get("loss"), Tensor) else output
        return output + added

    def _terms(self, members: list[RegularizerCallback]) -> Tensor:
        """What these members add to a loss. The views that one makes are none of the step's, for any of them."""
        with ExitStack() as paused:
            for member in self.members.values():
                paused.enter_context(member.recorder.paused())
            terms = [member.step(self.module, self._batch, skipped=False) for member in members]
        for member in members:
            parameters = [p for p in member.parts.parameters() if p.dtype.is_floating_point] if member.parts else []
            if parameters and not any(p.requires_grad for p in parameters):
                raise ValueError(
                    f"{member.state_key}: its parts are frozen in this backward pass: the optimizer that they joined "
                    "is another. Tap a layer whose optimizer steps after it"
                )
        return torch.stack(terms).sum()

    def _manual_step(self, original: Any, batch: Any) -> Any:
        members = self.sorted_members()
        for member in members:
            member.before_step(self.module, batch)
        self._batch, self._backward = batch, 0
        try:
            output = _nested([m.recorder.recording for m in members], original)
        finally:
            self._batch = None
        for member in members:
            member.recorder.calls.clear()  # what ran after its loss
            joins = member.joins(self.module)
            if joins is None or joins >= self._backward:
                raise ValueError(
                    f"{member.state_key}: the step of {type(self.module).__name__} called `manual_backward` "
                    f"{self._backward} times, its terms wait for number {joins} (0 is the first)"
                )
        return output


def _nested(contexts: list[Any], run: Any) -> Any:
    if not contexts:
        return run()
    with contexts[0]():
        return _nested(contexts[1:], run)
