"""Parameter groups and poly decay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from wsss_contrast.modules import CAM, SEAM, parameter_groups, poly_decay

from .tiny import cam, loader, trainer


def host() -> nn.ModuleDict:
    return nn.ModuleDict({"body": nn.Conv2d(3, 4, 1), "norm": nn.BatchNorm2d(4), "head": nn.Conv2d(4, 2, 1)})


def test_four_groups_with_their_rates_and_decay() -> None:
    module = host()
    groups = parameter_groups(module, [module["head"]], lr=0.01, weight_decay=5e-4)
    found = [(group["lr"], group["weight_decay"], [tuple(p.shape) for p in group["params"]]) for group in groups]
    assert found == [
        (0.01, 5e-4, [(4, 3, 1, 1), (4,)]),  # weights, of batch norm too
        (0.02, 0.0, [(4,), (4,)]),
        (pytest.approx(0.1), 5e-4, [(2, 4, 1, 1)]),
        (pytest.approx(0.2), 0.0, [(2,)]),
    ]


@pytest.mark.parametrize(
    ("heads", "frozen", "shapes"),
    [
        ([], [], [[(4, 3, 1, 1), (4,)], [(4,), (4,)]]),
        (["head"], ["body", "norm"], [[(2, 4, 1, 1)], [(2,)]]),
        ([], ["body", "norm", "head"], []),
    ],
)
def test_empty_groups_are_left_out(heads: list[str], frozen: list[str], shapes: list) -> None:
    module = host()
    for name in frozen:
        module[name].requires_grad_(False)
    if not heads and not frozen:
        module["head"].requires_grad_(False)
    groups = parameter_groups(module, [module[name] for name in heads], 0.01, 5e-4)
    assert [[tuple(p.shape) for p in group["params"]] for group in groups] == shapes


def test_factor_of_the_heads() -> None:
    module = host()
    rates = [g["lr"] for g in parameter_groups(module, [module["head"]], 1.0, 0.0, head_lr_factor=3.0)]
    assert rates == [1.0, 2.0, 3.0, 6.0]


@pytest.mark.parametrize("cls", [CAM, SEAM])
def test_each_parameter_of_a_module_is_in_one_group(cls: type[CAM]) -> None:
    module = cls(3, backbone="test_resnet", weights=None, frozen_norm=False)
    groups = parameter_groups(module, module.heads, 0.01, 5e-4)
    taken = [id(p) for group in groups for p in group["params"]]
    assert len(taken) == len(set(taken))
    assert set(taken) == {id(p) for p in module.parameters() if p.requires_grad}
    of_heads = {id(p) for p in groups[-1]["params"]}
    assert of_heads == {id(p) for head in module.heads for p in head.parameters()}


@pytest.mark.parametrize(("max_steps", "power"), [(1, 0.9), (7, 0.9), (10, 2.0)])
def test_poly_decay_follows_the_formula_and_stays_at_its_last_value(max_steps: int, power: float) -> None:
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [weights[0]], "lr": 0.3}, {"params": [weights[1]], "lr": 3.0}])
    schedule = poly_decay(optimizer, max_steps, power)
    for step in range(max_steps + 3):
        factor = (1 - min(step, max_steps - 1) / max_steps) ** power
        assert schedule.get_last_lr() == pytest.approx([0.3 * factor, 3.0 * factor])
        optimizer.step()
        schedule.step()


def test_poly_decay_of_no_steps() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match="`max_steps` must be at least 1, got 0"):
        poly_decay(optimizer, 0)


def test_training_is_in_channels_last(tmp_path: Path) -> None:
    """Which halves its time on a CPU; with no line of the user's."""
    module = cam()
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, loader())
    weights = [m.weight for m in module.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
