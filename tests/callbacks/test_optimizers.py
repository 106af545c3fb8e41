"""The projector trains, at the rate asked for, whatever the host's optimizer and schedule."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, lr_scheduler

from wsss_contrast.callbacks import OptimizerError, PrototypeContrastCallback
from wsss_contrast.callbacks.optimizers import join_optimizer
from wsss_contrast.modules import SEAM

from .hosts import AtStart, FeatureNorm, Groups, Spy, TwoView, fit, ppc, weights


def held(trainer: L.Trainer, parameters: Any) -> list[int]:
    """For each parameter, in how many groups it is."""
    ids = [id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]]
    return [ids.count(id(p)) for p in parameters]


def test_a_host_that_takes_all_its_parameters_has_the_projector_once() -> None:
    callback = ppc()
    start = AtStart(lambda t, _: (held(t, callback.parts.parameters()), len(t.optimizers[0].param_groups)))
    fit(TwoView(), callback, start)
    assert start.value == ([1], 1)


@pytest.mark.parametrize("factor", [1.0, 10.0])
def test_a_host_that_lists_groups_gets_one_more(factor: float) -> None:
    callback = ppc(lr_factor=factor)
    seen: list[Any] = []

    def look(trainer: L.Trainer, _: Any) -> None:
        groups = trainer.optimizers[0].param_groups
        seen.append((held(trainer, callback.parts.parameters()), len(groups)))
        seen.append({key: groups[2][key] for key in ("lr", "weight_decay", "momentum")})
        seen.append(weights(callback.parts))

    fit(Groups(), callback, AtStart(look))
    assert seen[0] == ([1], 3)
    assert seen[1] == {"lr": pytest.approx(0.2 * factor), "weight_decay": 1e-3, "momentum": 0.9}
    assert not torch.equal(seen[2][0], weights(callback.parts)[0])


class Named(Groups):
    def configure_optimizers(self) -> Any:
        groups = [
            {"params": [(n, p) for n, p in self.named_parameters() if n.startswith(("stem", "body"))]},
            {"params": [(n, p) for n, p in self.named_parameters() if n.startswith("classifier")], "lr": 0.2},
        ]
        return SGD(groups, lr=0.02)


def test_an_optimizer_of_named_parameters() -> None:
    callback, other = ppc(lr_factor=2.0), ppc(name="other")
    start = AtStart(lambda t, _: [dict(g, params=None) for g in t.optimizers[0].param_groups])
    fit(Named(), callback, other, start)
    added = start.value[2:]
    assert sorted(group["lr"] for group in added) == [0.2, 0.4]
    assert all(len(group["param_names"]) == 1 for group in added)


class Frozen(Groups):
    """Its optimizer holds the stem only: neither the tapped features nor the CAM layer."""

    def groups(self) -> list[dict[str, Any]]:
        self.body.requires_grad_(False)
        self.classifier.requires_grad_(False)
        return [{"params": self.stem.parameters(), "lr": 0.05}]


def test_a_host_whose_optimizer_lacks_the_tapped_module_joins_another_group() -> None:
    callback = ppc(lr_factor=4.0)
    start = AtStart(lambda t, _: [g["lr"] for g in t.optimizers[0].param_groups])
    fit(Frozen(), callback, start)
    assert start.value == [0.05, pytest.approx(0.2)]


def test_function_taps_do_not_take_another_regularizers_rate() -> None:
    """A function names no module, so its parts join any group of the host's, but not another projector's."""

    def rates(*names: str) -> dict[str, float]:
        taps = {"features": lambda out: out["body"], "cams": lambda out: out["classifier"], "in_channels": 6}
        callbacks = [ppc(name=name, lr_factor=10.0, **taps) for name in names]

        def look(trainer: L.Trainer, _: Any) -> dict[str, float]:
            of = {id(p): g["lr"] for g in trainer.optimizers[0].param_groups for p in g["params"]}
            return {c.name: of[id(next(c.parts.parameters()))] for c in callbacks}

        start = AtStart(look)
        fit(Groups(), *callbacks, start)
        found: dict[str, float] = start.value
        return found

    assert rates("a", "b") == rates("b", "a") == {"a": pytest.approx(2.0), "b": pytest.approx(2.0)}


class Elsewhere(Groups):
    """Its optimizer holds nothing of the host."""

    def configure_optimizers(self) -> Any:
        return SGD([nn.Parameter(torch.zeros(1))], lr=0.1)


def test_an_optimizer_that_holds_nothing_of_the_host() -> None:
    with pytest.raises(
        OptimizerError, match=r"no optimizer holds the tapped module.*self\.regularizer_prototype_contrast"
    ):
        fit(Elsewhere(), ppc())


class Scheduled(Groups):
    make: Callable[[SGD], Any]
    monitor: str | None = None

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.groups(), lr=0.02)
        config = {
            "scheduler": type(self).make(optimizer),
            "interval": "step",
            "monitor": self.monitor,
            "strict": True,
        }
        return {"optimizer": optimizer, "lr_scheduler": config}

    def training_step(self, batch: Any) -> Any:
        loss = super().training_step(batch)
        self.log("constant", 1.0)
        return loss


def _sequential(optimizer: SGD) -> Any:
    first = lr_scheduler.LinearLR(optimizer, 0.25, total_iters=2)
    return lr_scheduler.SequentialLR(optimizer, [first, lr_scheduler.CosineAnnealingLR(optimizer, 4)], milestones=[2])


def _chained(optimizer: SGD) -> Any:
    first = lr_scheduler.ConstantLR(optimizer, 0.5, total_iters=3)
    return lr_scheduler.ChainedScheduler([first, lr_scheduler.ExponentialLR(optimizer, 0.8)], optimizer)


SCHEDULES: dict[str, Callable[[SGD], Any]] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: (1 - step / 10) ** 0.9),
    "lambdas": lambda o: lr_scheduler.LambdaLR(o, [lambda step: 1.0, lambda step: 0.5**step]),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "step": lambda o: lr_scheduler.StepLR(o, 2, 0.1),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, 6, 0.9),
    "sequential": _sequential,
    "chained": _chained,
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0),
    "plateau_floor": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0, min_lr=[0.001, 0.06]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_follows_the_anchors_through_a_schedule(name: str) -> None:
    class Host(Scheduled):
        make = staticmethod(SCHEDULES[name])
        monitor = "constant" if name.startswith("plateau") else None

    rates: list[list[float]] = []
    lengths: list[tuple[int, int]] = []

    def look(trainer: L.Trainer, _: Any) -> None:
        rates.append([float(g["lr"]) for g in trainer.optimizers[0].param_groups])
        scheduler = trainer.lr_scheduler_configs[0].scheduler
        lengths.append((len(scheduler.get_last_lr()), len(rates[-1])))

    fit(Host(), ppc(lr_factor=3.0), AtStart(look), Spy(look), steps=4)
    assert len(rates) == 5
    for _, anchor, projector in rates:
        assert projector == pytest.approx(3 * anchor)
    assert len({anchor for _, anchor, _ in rates}) >= 2
    assert all(reported == groups == 3 for reported, groups in lengths)
    # The host's own rates are those without the callback.
    bare: list[list[float]] = []
    fit(Host(), Spy(lambda t, _: bare.append([float(g["lr"]) for g in t.optimizers[0].param_groups])), steps=4)
    assert [r[:2] for r in rates[1:]] == bare


CYCLES: dict[str, Callable[[SGD], Any]] = {
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [g["lr"] for g in o.param_groups], total_steps=10),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.1),
    "in a sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.OneCycleLR(o, 0.1, total_steps=10)], milestones=[2]
    ),
}


@pytest.mark.parametrize("name", CYCLES)
def test_a_schedule_that_fixes_its_groups_prints_a_line_that_works(name: str) -> None:
    class Host(Scheduled):
        make = staticmethod(CYCLES[name])

    with pytest.raises(OptimizerError, match=r"can't join an optimizer under (OneCycleLR|CyclicLR)") as error:
        fit(Host(), ppc())
    line = re.search(r'\{"params": .*\}', str(error.value))
    assert line is not None
    group = line[0].replace("...", "0.3")  # the ellipsis is for the reader to fill in

    class Fixed(Host):
        def groups(self) -> list[dict[str, Any]]:
            return [*super(Host, self).groups(), eval(group, {"self": self})]

    callback = ppc()
    start = AtStart(lambda t, _: (held(t, callback.parts.parameters()), weights(callback.parts)))
    fit(Fixed(), callback, start)
    counts, before = start.value
    assert counts == [1]
    assert not torch.equal(before[0], weights(callback.parts)[0])


class OwnSchedule:
    """A schedule of another library that keeps its own list of rates."""

    def __init__(self, optimizer: SGD) -> None:
        self.optimizer = optimizer
        self.rates = [group["lr"] for group in optimizer.param_groups]

    def step(self, *_: Any, **__: Any) -> None:
        self.rates = [rate * 0.5 for rate in self.rates]
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=False):
            group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        return {"rates": self.rates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rates = state["rates"]


def test_a_schedule_that_is_not_torchs_is_refused() -> None:
    """It would leave the projector's rate where it is, and nothing would say so."""

    class Host(Scheduled):
        make = OwnSchedule

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            scheduler.step()

    with pytest.raises(OptimizerError, match=r"OwnSchedule.*self\.regularizer_prototype_contrast\.parameters"):
        fit(Host(), ppc())


class Several(Groups):
    def configure_optimizers(self) -> Any:
        return [SGD(self.stem.parameters(), lr=0.1), SGD(self.classifier.parameters(), lr=0.1)]


def test_several_optimizers_are_refused() -> None:
    with pytest.raises(RuntimeError, match="multiple optimizers is only supported with manual optimization"):
        fit(Several(), ppc())


def test_two_projectors_have_their_own_rates() -> None:
    first, second = ppc(name="a", lr_factor=2.0), FeatureNorm(name="b", lr_factor=5.0)

    def look(trainer: L.Trainer, _: Any) -> list[float]:
        of = {id(p): g["lr"] for g in trainer.optimizers[0].param_groups for p in g["params"]}
        return [of[id(next(c.parts.parameters()))] for c in (first, second)]

    start = AtStart(look)
    fit(Groups(), first, second, start)
    assert start.value == [pytest.approx(0.4), pytest.approx(1.0)]


def test_nothing_is_changed_before_an_error() -> None:
    parameter, anchor = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = SGD([anchor], lr=0.1)
    schedulers = [lr_scheduler.StepLR(optimizer, 1), lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=3)]
    with pytest.raises(OptimizerError):
        join_optimizer([parameter], [anchor], [optimizer], schedulers, 1.0, "")
    assert len(optimizer.param_groups) == 1
    assert len(schedulers[0].base_lrs) == 1


def test_frozen_parts_and_known_parts_are_left_alone() -> None:
    frozen, known = nn.Parameter(torch.zeros(1), requires_grad=False), nn.Parameter(torch.zeros(1))
    optimizer = SGD([known], lr=0.1)
    join_optimizer([frozen, known], [known], [optimizer], [], 1.0, "")
    assert len(optimizer.param_groups) == 1


def test_of_several_optimizers_the_anchors_is_joined() -> None:
    parameters: list[Tensor] = [nn.Parameter(torch.zeros(1)) for _ in range(3)]
    first, second = SGD([parameters[0]], lr=0.1), SGD([parameters[1]], lr=0.2)
    untouched = lr_scheduler.OneCycleLR(first, 0.1, total_steps=3)  # another optimizer's: no obstacle
    join_optimizer([parameters[2]], [parameters[1]], [first, second], [untouched], 0.5, "")
    assert [len(o.param_groups) for o in (first, second)] == [1, 2]
    assert second.param_groups[1]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize("lr_factor", [1.0, 3.0])
def test_built_in_hosts_train_the_projector_at_the_cam_layers_rate(lr_factor: float) -> None:
    """SEAM sweeps the projector up with its backbone; the papers train it like the CAM layer, ten times faster."""
    module = SEAM(num_classes=3, backbone="test_resnet", weights=None, view_size=16, lr=0.01)
    callback = PrototypeContrastCallback(lr_factor=lr_factor, embedding_dim=8)
    rates = {}

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            for group in trainer.optimizers[0].param_groups:
                rates.update({id(p): group["lr"] for p in group["params"]})
            held = [id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]]
            assert len(held) == len(set(held))

    data = [{"image": torch.randn(3, 32, 32), "tags": torch.eye(3)[i % 3]} for i in range(2)]
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_steps=1, callbacks=[callback, Watch()], enable_model_summary=False, **options)
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=2))
    assert rates[id(module.classifier.weight)] == pytest.approx(0.1)
    assert rates[id(callback.parts.projector[0].weight)] == pytest.approx(0.1 * lr_factor)
