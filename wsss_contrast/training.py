"""What a step asks of Lightning's trainer: how far the training is, and random draws of its own."""

from __future__ import annotations

from typing import Any

import torch

from wsss_contrast.distributed import world_size

_SHARDED = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


def refuse_sharding(trainer: Any, name: str, reason: str) -> None:
    """Raise where the trainer's strategy shards parameters.

    Raises:
        ValueError: it does; names the strategy.
    """
    if any(kind.__name__ in _SHARDED for kind in type(trainer.strategy).__mro__):
        raise ValueError(f"{name}: {type(trainer.strategy).__name__} is not supported, {reason}")


def progress(trainer: Any) -> float:
    """The share of the optimiser steps that is done, in [0, 1]; 0 for a training without end.

    Args:
        trainer: Lightning's ``Trainer``, in ``fit``.
    """
    return min(float(trainer.global_step) / max(float(trainer.estimated_stepping_batches), 1.0), 1.0)


def step_generator(trainer: Any, seed: int, device: torch.device) -> torch.Generator:
    """A generator for the random draws of a training step, keyed by seed, step and rank.

    A resumed run draws what an undisturbed one draws, and no two ranks draw the same.

    Args:
        trainer: Lightning's ``Trainer``, in ``fit``.
        seed: at least 0.
        device: of the generator.
    """
    step = trainer.fit_loop.total_batch_idx * world_size() + trainer.global_rank
    return torch.Generator(device=device).manual_seed((seed * 1_000_003 + step) % 2**63)
