"""A teacher whose weights are a running average of its student's."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_HOOKS = [name for name, value in nn.Module().__dict__.items() if "hook" in name and isinstance(value, dict)]


class EMATeacher(nn.Module):
    """A copy of a network without gradients, whose weights follow the network's as an exponential moving average.

    Call :meth:`update` after each optimiser step. The teacher starts as a copy and stays one for ``copy_steps`` steps;
    from then on a weight becomes ``d * teacher + (1 - d) * network``, with ``d`` of :meth:`decay_at` (Mean Teacher;
    with ``copy_steps=92, ramp_start=46`` the released CSRM on VOC, whose epochs have 46 steps).

    Only weights are averaged. Persistent buffers are copied: batch norm's running statistics already are averages, and
    belong to the weights of today rather than to those of a hundred steps ago (the released code forgets them, and so
    keeps those of the first step). Buffers that are not persistent are each network's own constants and caches.

    The copy has none of the hooks that others put on the network, which would act for the teacher as they do for the
    network: only those that the network itself holds (as timm's feature extractors do) and torch's reparametrisations.
    Left out, with an ``nn.Identity`` in their place, are submodules with a true attribute ``keep_out_of_teacher``
    (memory banks, other teachers) and those named ``regularizer_*`` (what a regularizer trains beside its host).

    It is made in evaluation mode; ``train()`` turns its dropout on. As a submodule of a module it follows that one's
    ``train()`` and ``eval()``. Its ``state_dict`` has the averaged weights. Averages need float32 weights: in half
    precision a hundredth of a change is mostly lost in rounding.

    Args:
        network: what is copied; any module but a LightningModule under a trainer.
        decay: largest ``d``, in [0, 1].
        copy_steps: the first optimiser steps, after which the teacher is a copy still.
        ramp_start: step from which the ramp ``1 - 1 / (1 + step - ramp_start)`` counts; 0 to ``copy_steps``.

    Raises:
        ValueError: a number out of its range.

    Distributed contract: nothing is communicated. Weights that are the same on all ranks give teachers that are.

    >>> student = torch.nn.Linear(1, 1, bias=False)
    >>> teacher = EMATeacher(student)
    >>> for step in (1, 2, 3):
    ...     _ = student.weight.data.fill_(step)  # in place of an optimiser's step
    ...     teacher.update(student, step)
    >>> [round(teacher.decay_at(step), 2) for step in (1, 2, 3, 1000)]
    [0.5, 0.67, 0.75, 0.99]
    >>> with teacher.swapped(student):
    ...     maps = student(torch.zeros(1, 1))  # evaluated with the teacher's weights
    """

    keep_out_of_teacher = True

    def __init__(self, network: nn.Module, decay: float = 0.99, copy_steps: int = 0, ramp_start: int = 0) -> None:
        super().__init__()
        if not 0 <= decay <= 1:
            raise ValueError(f"`decay` must be in [0, 1], got {decay}")
        if copy_steps < 0:
            raise ValueError(f"`copy_steps` must not be negative, got {copy_steps}")
        if not 0 <= ramp_start <= copy_steps:
            raise ValueError(f"`ramp_start` must be from 0 to `copy_steps`, {copy_steps}, got {ramp_start}")
        self.decay = decay
        self.copy_steps = copy_steps
        self.ramp_start = ramp_start
        self.network = _bare_copy(network).requires_grad_(False)
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network gives, without a graph."""
        with torch.no_grad():
            return self.network(*args, **kwargs)

    def decay_at(self, step: int) -> float:
        """``d`` of the update after optimiser step ``step``, counted from 1. 0 is a copy."""
        if step < 1:
            raise ValueError(f"`step` counts optimiser steps from 1, got {step}")
        return 0.0 if step <= self.copy_steps else min(1 - 1 / (1 + step - self.ramp_start), self.decay)

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Follow the network, in place: nothing of the weights' size is allocated.

        Args:
            network: the one that was copied, after an optimiser step.
            step: number of that optimiser step, from 1.

        Raises:
            ValueError: its parameters or buffers no longer have the teacher's names, shapes, types or devices.
        """
        decay = self.decay_at(step)
        averaged: list[tuple[Tensor, Tensor]] = []
        copied: list[tuple[Tensor, Tensor]] = []
        for ours, theirs in self._pairs(network):
            average = decay > 0 and isinstance(ours, nn.Parameter) and (ours.is_floating_point() or ours.is_complex())
            (averaged if average else copied).append((ours, theirs))
        for our_list, their_list in _of_one_kind(averaged):
            torch._foreach_lerp_(our_list, their_list, 1 - decay)
        for our_list, their_list in _of_one_kind(copied):
            torch._foreach_copy_(our_list, their_list)

    @contextmanager
    def swapped(self, network: nn.Module) -> Iterator[None]:
        """Within, the network has the teacher's weights and buffers, and the teacher the network's. Nothing is copied.

        Neither train, nor update the teacher, nor move one of the two to another device in there.

        Raises:
            ValueError: as :meth:`update`.
        """
        _swap(self._pairs(network))
        try:
            yield
        finally:
            _swap(self._pairs(network))

    def _pairs(self, network: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """The teacher's tensors, each with the network's of its name."""
        ours, theirs = _tensors(self.network), _tensors(network)
        if ours.keys() != theirs.keys():
            new, gone = sorted(theirs.keys() - ours.keys()), sorted(ours.keys() - theirs.keys())
            raise ValueError(
                "the network is not, or no longer, the one that the teacher copied: "
                f"it has {_some(new)} that the teacher has not, and lacks {_some(gone)} that the teacher has"
            )
        for name, tensor in ours.items():
            if _kind(tensor) != _kind(theirs[name]):
                raise ValueError(f"`{name}` is {_kind(theirs[name])} in the network, {_kind(tensor)} in the teacher")
        return [(tensor, theirs[name]) for name, tensor in ours.items()]


def _bare_copy(network: nn.Module) -> nn.Module:
    """A deep copy without what the teacher leaves out."""
    # `deepcopy` takes for copied what it finds here.
    memo: dict[int, Any] = {}
    modules = [module for _, module in _modules(network)]
    for module in modules:
        memo |= {id(module.__dict__[name]): OrderedDict() for name in _HOOKS}
        memo |= {id(child): nn.Identity() for name, child in module._modules.items() if _left_out(name, child)}
    twin = copy.deepcopy(network, memo)

    def of_the_network(hook: Any) -> bool:
        function = hook.func if isinstance(hook, functools.partial) else hook
        owner = getattr(function, "__self__", function)
        return id(owner) in memo or type(owner).__module__.startswith("torch.nn.utils.")

    for module in modules:
        hooks = [*module._forward_hooks.items(), *module._forward_pre_hooks.items()]
        own = {key for key, hook in hooks if of_the_network(hook)}
        for kind in (module.__dict__[name] for name in _HOOKS):
            memo[id(kind)].update({key: copy.deepcopy(hook, memo) for key, hook in kind.items() if key in own})
    return twin


def _left_out(name: str, module: nn.Module | None) -> bool:
    return module is not None and (
        name.startswith("regularizer_") or bool(getattr(module, "keep_out_of_teacher", False))
    )


def _modules(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """A module and those in it, each with what its parameters' names begin with, without those left out."""
    yield prefix, module
    for name, child in module._modules.items():
        if child is not None and not _left_out(name, child):
            yield from _modules(child, f"{prefix}{name}.")


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, by name, each once."""
    found = {}
    seen: set[int] = set()
    for prefix, module in _modules(network):
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and name not in module._non_persistent_buffers_set and id(tensor) not in seen:
                seen.add(id(tensor))
                found[prefix + name] = tensor
    return found


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {tensor.dtype} on {tensor.device}"


def _some(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"`{name}`" for name in names[:most]) + more if names else "nothing"


def _of_one_kind(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterable[tuple[list[Tensor], list[Tensor]]]:
    """Lists of one type and device each: what torch's fused kernels take."""
    groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for ours, theirs in pairs:
        our_list, their_list = groups.setdefault((ours.dtype, ours.device), ([], []))
        our_list.append(ours)
        their_list.append(theirs)
    return groups.values()


def _swap(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    for ours, theirs in pairs:
        ours.data, theirs.data = theirs.data, ours.data
    torch.clear_autocast_cache()  # it knows parameters, not their values
