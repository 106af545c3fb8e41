"""What a step asks of Lightning's trainer: how far the training is, and random draws of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from wsss_contrast.distributed import world_size

_SHARDED = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


def refuse_sharding(trainer: Any, name: str, reason: str) -> None:
    """Raise where the trainer's strategy shards parameters.

    Raises:
        ValueError: it does; names the strategy.
    """
    if any(kind.__name__ in _SHARDED for kind in type(trainer.strategy).__mro__):
        raise ValueError(f"{name}: {type(trainer.strategy).__name__} is not supported, {reason}")


def refuse_synced_norms(trainer: Any, module: nn.Module) -> None:
    """Raise where the trainer would make synchronised batch norms of timm's, and lose the activations in them.

    Lightning converts with PyTorch's function, which takes a batch norm that has an activation for a plain one.

    Raises:
        ValueError: it would; names a norm.
    """
    if getattr(trainer.strategy, "_layer_sync", None) is None:
        return
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and hasattr(part, "act"):
            raise ValueError(
                f"`sync_batchnorm` is not supported with this backbone: the conversion drops the activation of "
                f"`{name}`, a {type(part).__name__} of timm"
            )


def progress(trainer: Any) -> float:
    """The share of the training that is done, in [0, 1], by optimiser steps; 0 for a training without end.

    Args:
        trainer: Lightning's ``Trainer``, in ``fit``.
    """
    steps = planned_steps(trainer, len(trainer.optimizers))
    return min(float(steps_done(trainer)) / max(steps, 1.0), 1.0)


def steps_done(trainer: Any) -> int:
    """The optimiser steps taken. With manual optimisation the batches: there, a batch may be several steps or none."""
    automatic = trainer.lightning_module.automatic_optimization
    done: int = trainer.global_step if automatic else _batches_done(trainer)
    return done


def _batches_done(trainer: Any) -> int:
    # Not those begun: a checkpoint of a batch that failed counts it, and the run that resumes takes it again.
    done: int = trainer.fit_loop.epoch_loop.batch_progress.total.completed
    return done


def planned_steps(trainer: Any, optimizers: int) -> float:
    """What :func:`steps_done` comes to in the whole training; inf without an end.

    Args:
        trainer: Lightning's ``Trainer``, in ``fit``.
        optimizers: how many there are. With manual optimisation ``max_steps`` counts the steps of all.
    """
    steps, limit = float(trainer.estimated_stepping_batches), trainer.max_steps
    if trainer.lightning_module.automatic_optimization or limit == -1:
        return steps
    return min(steps, float(limit) / max(optimizers, 1))


def step_seed(trainer: Any, seed: int) -> int:
    """A seed for the random draws of a training step, of a seed, the step and the rank.

    A resumed run draws what an undisturbed one draws, and no two ranks draw the same.

    Args:
        trainer: Lightning's ``Trainer``, in ``fit``.
        seed: at least 0.
    """
    step = _batches_done(trainer) * world_size() + trainer.global_rank
    return int((seed * 1_000_003 + step) % 2**63)


def step_generator(trainer: Any, seed: int, device: torch.device) -> torch.Generator:
    """A generator for the random draws of a training step, seeded by :func:`step_seed`."""
    return torch.Generator(device=device).manual_seed(step_seed(trainer, seed))


def resume_where_it_was(loops: dict[str, Any]) -> None:
    """Mend what a checkpoint says of Lightning's loops, so that a run goes on at the batch behind the last one.

    A checkpoint of an epoch's last batch or of its end leaves counters by which Lightning takes a later checkpoint, or
    a training with ``max_steps``, to be elsewhere; one of a training that was stopped within an epoch counts that epoch
    as done.

    Args:
        loops: the checkpoint's ``loops``, changed in place.
    """
    epochs = loops["fit_loop"]["epoch_progress"]
    batches = loops["fit_loop"]["epoch_loop.batch_progress"]
    begun = epochs["current"]["ready"]
    if batches["is_last_batch"]:
        for part in ("total", "current"):
            epochs[part] |= dict.fromkeys(("started", "processed", "completed"), epochs[part]["ready"])
        batches["total"] |= dict.fromkeys(("started", "processed", "completed"), batches["total"]["ready"])
        batches["current"] = dict.fromkeys(batches["current"], 0)
        batches["is_last_batch"] = False
    elif batches["current"]["ready"] > 0 and epochs["current"]["processed"] == begun:
        for part in ("total", "current"):
            epochs[part] |= dict.fromkeys(("processed", "completed"), epochs[part]["ready"] - 1)
