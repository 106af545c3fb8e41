"""Bring parameters that a host's optimizers do not know into the one that trains a given module."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR


class OptimizerError(ValueError):
    """Parameters can't join the host's optimizer; the message has the line to add to ``configure_optimizers``."""


def join_optimizer(
    parameters: Iterable[nn.Parameter],
    anchors: Sequence[nn.Parameter],
    optimizers: Sequence[Optimizer],
    schedulers: Sequence[Any],
    lr_factor: float,
    remedy: str,
) -> None:
    """Bring parameters into a group of their own, beside the first anchor that an optimizer holds.

    The group copies the anchor's options, its learning rate times ``lr_factor``; the optimizer's schedulers are
    extended. Parameters that a host swept up with its own (``self.parameters()``) leave the group they got there,
    unless it is the anchor's and ``lr_factor`` is 1. A group of these parameters alone was made for them and stays as
    it is. Call it before the first step: an optimizer's state is not moved.

    Args:
        parameters: those that must train.
        anchors: parameters of the host, in order of preference.
        optimizers: the host's.
        schedulers: its learning-rate schedulers.
        lr_factor: over the anchor's rate.
        remedy: what to add to ``configure_optimizers``, for the error.

    Raises:
        OptimizerError: no optimizer holds an anchor, or a scheduler can't be extended.
    """
    wanted = {id(p): p for p in parameters if p.requires_grad}
    places = {
        id(p): (optimizer, i)
        for optimizer in optimizers
        for i, group in enumerate(optimizer.param_groups)
        for p in group["params"]
    }
    place = next((places[id(p)] for p in anchors if id(p) in places), None)
    swept_up = []
    for optimizer in optimizers:
        for i, group in enumerate(optimizer.param_groups):
            inside = [p for p in group["params"] if id(p) in wanted]
            if not inside:
                continue
            if len(inside) == len(group["params"]) or ((optimizer, i) == place and lr_factor == 1):
                wanted = {key: p for key, p in wanted.items() if key not in map(id, inside)}
            else:
                swept_up.append(group)
    if not wanted:
        return
    if place is None:
        raise OptimizerError(f"no optimizer holds the tapped module, so the projector would never train. {remedy}")
    optimizer, index = place
    concerned = [s for s in schedulers if getattr(s, "optimizer", None) is optimizer]
    for scheduler in concerned:
        _check(scheduler, remedy)
    for group in swept_up:
        kept = [i for i, p in enumerate(group["params"]) if id(p) not in wanted]
        for key in ("params", "param_names"):
            if key in group:
                group[key] = [group[key][i] for i in kept]
    group = {key: value for key, value in optimizer.param_groups[index].items() if key not in ("params", "param_names")}
    for key in ("lr", "initial_lr"):
        if key in group:
            group[key] = group[key] * lr_factor
    named = "param_names" in optimizer.param_groups[index]
    optimizer.add_param_group(
        {**group, "params": [(f"regularizer.{i}", p) if named else p for i, p in enumerate(wanted.values())]}
    )
    done: set[int] = set()
    for scheduler in concerned:
        _extend(scheduler, index, lr_factor, done)


def _parts(scheduler: Any) -> list[Any]:
    """The schedulers inside a SequentialLR or a ChainedScheduler."""
    return list(getattr(scheduler, "_schedulers", []))


def _check(scheduler: Any, remedy: str) -> None:
    for part in _parts(scheduler):
        _check(part, remedy)
    if isinstance(scheduler, OneCycleLR | CyclicLR):
        raise OptimizerError(
            f"the projector can't join an optimizer under {type(scheduler).__name__}, "
            f"which fixes its groups when it is made. {remedy}"
        )
    if not isinstance(scheduler, LRScheduler):
        raise OptimizerError(
            f"the projector can't join an optimizer under {type(scheduler).__name__}, which is no scheduler of torch's "
            f"and may leave out a group that is added later. {remedy}"
        )


def _extend(scheduler: Any, index: int, lr_factor: float, done: set[int]) -> None:
    """Give a scheduler's lists, one entry a group, the entry of the new group, made from the anchor's.

    Schedulers share lists: ``done`` has the ids of those that have the entry.
    """
    for part in _parts(scheduler):
        _extend(part, index, lr_factor, done)
    for name, scaled in (("base_lrs", True), ("_last_lr", True), ("min_lrs", True), ("lr_lambdas", False)):
        values = getattr(scheduler, name, None)
        if isinstance(values, list) and len(values) > index and id(values) not in done:
            done.add(id(values))
            value = values[index]
            values.append(value * lr_factor if scaled else value)
