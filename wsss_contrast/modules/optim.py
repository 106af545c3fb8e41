"""The optimiser of the field: learning-rate groups by kind of parameter and poly decay (PSA, SEAM, PPC)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def parameter_groups(
    module: nn.Module, heads: Iterable[nn.Module], lr: float, weight_decay: float, head_lr_factor: float = 10.0
) -> list[dict[str, Any]]:
    """Four groups: weights, biases (twice the rate), head weights (ten times), head biases (twenty times).

    Biases have no weight decay.

    Args:
        module: all parameters that require a gradient are taken.
        heads: submodules of it that are trained from scratch.
        lr: rate of the backbone's weights.
        weight_decay: of the weights.
        head_lr_factor: rate of the heads over that of the backbone.

    Returns:
        Groups for a torch optimiser; empty ones are left out.
    """
    in_heads = {id(p) for head in heads for p in head.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            key = (id(parameter) in in_heads, name.endswith("bias"))
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": groups[head, bias],
            "lr": lr * (head_lr_factor if head else 1.0) * (2.0 if bias else 1.0),
            "weight_decay": 0.0 if bias else weight_decay,
        }
        for head, bias in sorted(groups)
    ]


def poly_decay(optimizer: Optimizer, max_steps: int, power: float = 0.9) -> LambdaLR:
    """``lr = lr0 (1 - step / max_steps) ^ power`` from step 0; past ``max_steps`` the last value stays.

    Step the schedule after each optimiser step.
    """
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be at least 1, got {max_steps}")
    return LambdaLR(optimizer, lambda step: (1 - min(step, max_steps - 1) / max_steps) ** power)
