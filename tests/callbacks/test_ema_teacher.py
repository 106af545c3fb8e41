"""A teacher beside any host: it follows the optimiser, leaves the host alone, survives checkpoints and evaluates."""

from __future__ import annotations

import gc
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from tests.literal import ema_teacher as literal
from wsss_contrast.callbacks import EMATeacherCallback, TapError

from .hosts import AtStart, FeatureNorm, OneView, Photos, Spy, fit, hooks, loader, ppc, same, surface, trainer, weights

KEY = "EMATeacherCallback[teacher]"


class Host(OneView):
    """With all its layers in one submodule. ``evaluated`` has the weights that each evaluation ran with."""

    def __init__(self) -> None:
        self.evaluated: list[list[Tensor]] = []
        super().__init__(norm=True)

    def build(self, norm: bool = False, dropout: float = 0.0) -> None:
        super().build(norm, dropout)
        self.net = nn.Sequential(OrderedDict((n, getattr(self, n)) for n in ("stem", "norm", "body", "classifier")))
        for name in ("stem", "norm", "body", "classifier"):
            delattr(self, name)

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach())
        cams: Tensor = self.net(images)
        return cams

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluated.append(weights(self.net))
        self.log("val", self.host_loss(batch))

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.evaluated.append(weights(self.net))
        return self(batch["image"])


class Taught(Host):
    """Uses its teacher in the step."""

    def training_step(self, batch: Any) -> Any:
        target = self.teacher(batch["image"])
        assert not target.requires_grad
        return self.host_loss(batch) + (self(batch["image"]) - target).square().mean()


def teach(**kwargs: Any) -> EMATeacherCallback:
    return EMATeacherCallback(**{"network": "net", **kwargs})


def regularizers() -> list[Any]:
    return [NormOfNet(), ppc(features="net.body", cams="net.classifier")]


class NormOfNet(FeatureNorm):
    def __init__(self) -> None:
        super().__init__()
        self.taps = {"features": "net.body", "cams": "net.classifier"}


def flat(module: nn.Module) -> list[float]:
    return [float(x) for p in module.parameters() for x in p.detach().double().flatten()]


def teacher_of(callback: EMATeacherCallback) -> list[Tensor]:
    assert callback.teacher is not None
    return weights(callback.teacher.network)


# During fit.


@pytest.mark.parametrize("host", [Host, Taught])
@pytest.mark.parametrize("how", [{}, {"copy_steps": 2, "ramp_start": 1}])
def test_follows_each_optimiser_step(host: type[Host], how: dict[str, Any]) -> None:
    module, callback = host(), teach(**how)
    start, spy = flat(module.net), Spy(lambda *_: (flat(module.net), flat(callback.teacher)))
    trainer([spy, callback], steps=4).fit(module, loader())  # it looks before the callback's turn
    students = [student for student, _ in spy.looks]
    for step, (_, before) in enumerate(spy.looks):
        assert before == pytest.approx(literal.teacher(start, students[:step], **how), rel=1e-5)
    assert flat(callback.teacher) == pytest.approx(literal.teacher(start, students, **how), rel=1e-5)
    assert torch.equal(callback.teacher.network.norm.running_mean, module.net.norm.running_mean)
    assert not module.seen[0].requires_grad


def test_accumulated_gradients_are_one_step() -> None:
    module, callback = Host(), teach()
    start, spy = flat(module.net), Spy(lambda run, _: (run.global_step, flat(module.net), flat(callback.teacher)))
    trainer([callback, spy], steps=8, accumulate_grad_batches=3).fit(module, loader(Photos(16)))
    assert [step for step, *_ in spy.looks] == [0, 0, 1, 1, 1, 2, 2, 3]
    students = [spy.looks[i][1] for i in (2, 5, 7)]
    for step, _, teacher in spy.looks:
        assert teacher == pytest.approx(literal.teacher(start, students[:step]), rel=1e-5)


@pytest.mark.parametrize("first", [True, False])
def test_changes_nothing_for_the_host_and_its_regularizers(first: bool) -> None:
    """In any order, with taps on the layers that the teacher copies."""
    bare, plain = Host(), regularizers()
    expected = fit(bare, *plain).losses
    module, others, callback = Host(), regularizers(), teach(evaluate=True)
    look = AtStart(lambda *_: (hooks(callback.teacher), hooks(module)))
    before = surface(module)
    taught = fit(module, *([callback, *others] if first else [*others, callback]), look)
    assert same(taught.losses, expected)
    assert same(weights(module, *[c.parts for c in others]), weights(bare, *[c.parts for c in plain]))
    assert surface(module) == before
    assert not any(look.value[0].values())
    assert any(look.value[1].values())  # the taps


def test_is_no_part_of_the_host() -> None:
    module, callback = Host(), teach()
    keys, count = list(module.state_dict()), len(list(module.parameters()))
    during = AtStart(lambda _, m: (list(m.state_dict()), len(list(m.parameters())), m.teacher is callback.teacher))
    fit(module, callback, during)
    assert during.value == (keys, count, True)
    assert callback.teacher is not None
    assert not any(p.requires_grad for p in callback.teacher.parameters())
    assert not hasattr(module, "teacher")


def test_two_teachers() -> None:
    module = Host()
    first, second = teach(copy_steps=9), teach(network="net.body", name="of_the_body")
    fit(module, first, second)
    assert same(teacher_of(first), weights(module.net))
    assert len(teacher_of(second)) == 2
    assert not same(teacher_of(second), weights(module.net.body))


# Leaving.


class Breaks(Host):
    where = ""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.where == "train" and batch_idx == 1:
            raise RuntimeError("the host's own error")
        return self.host_loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.where == "validate":
            self.evaluated.append(weights(self.net))
            raise RuntimeError("the host's own error")


@pytest.mark.parametrize("where", ["train", "validate"])
@pytest.mark.parametrize("first", [True, False])
def test_after_an_exception(where: str, first: bool) -> None:
    module, callback = Breaks(), teach(evaluate=True)
    spy = Spy(lambda *_: (weights(module.net), teacher_of(callback)))
    module.where = where
    before = surface(module)
    callbacks = [callback, *regularizers()]
    run = trainer([*(callbacks if first else callbacks[::-1]), spy], limit_val_batches=1)
    with pytest.raises(RuntimeError, match="the host's own error"):
        run.fit(module, loader(), loader())
    assert surface(module) == before
    if where == "validate":
        student, teacher = spy.looks[-1]
        assert first is False or same(module.evaluated[0], teacher)
        assert same(weights(module.net), student)
        assert not same(student, module.evaluated[0])
    module.where = ""
    assert len(fit(module, callback).losses) == 2  # and it can start again
    assert surface(module) == before


def test_the_teacher_does_not_keep_the_host_alive() -> None:
    host, callback = Host(), teach()
    fit(host, callback, *regularizers())
    reference, teacher = weakref.ref(host), callback.teacher
    del host, callback
    gc.collect()
    assert reference() is None
    assert teacher is not None


def test_a_new_run_starts_a_new_teacher_and_a_longer_one_keeps_it() -> None:
    module, callback = Host(), teach(decay=1.0)
    look = AtStart(lambda *_: teacher_of(callback))
    run = trainer([callback, look])
    run.fit(module, loader())
    kept = teacher_of(callback)
    run.fit_loop.max_epochs = 2
    run.fit(module, loader())
    assert same(look.value, kept)
    student = weights(module.net)
    assert not same(student, teacher_of(callback))
    fit(module, callback, look)
    assert same(look.value, student)


# Checkpoints.


@pytest.mark.parametrize("when", ["epoch", "mid-epoch", "accumulated"])
@pytest.mark.filterwarnings("ignore:.*need to be provided", "ignore:.*dataloader is not resumable")
def test_a_resumed_run_is_the_uninterrupted_one(when: str, tmp_path: Path) -> None:
    data = Photos(2)
    data.images, data.tags = data.images.repeat(4, 1, 1, 1), data.tags.repeat(4, 1)
    batches = loader(data if when == "mid-epoch" else Photos())
    middle: Any = {"every_n_train_steps": 3} if when == "mid-epoch" else {"every_n_epochs": 1}
    step, losses, accumulated = {"epoch": (4, 4, 1), "mid-epoch": (3, 5, 1), "accumulated": (2, 4, 2)}[when]
    options: dict[str, Any] = {"copy_steps": 2, "ramp_start": 1}
    batches_a_step: Any = {"accumulate_grad_batches": accumulated}
    whole, first, spy = Taught(), teach(**options), Spy()
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, **middle)
    trainer([first, keep, spy], 4, 2, enable_checkpointing=True, **batches_a_step).fit(whole, batches)
    resumed, second, rest = Taught(), teach(**options), Spy()
    for parameter in resumed.parameters():
        parameter.data.fill_(9)  # the teacher must not start from these
    trainer([second, rest], 4, 2, **batches_a_step).fit(resumed, batches, ckpt_path=tmp_path / f"step={step}.ckpt")
    assert same(spy.losses[-len(rest.losses) :], rest.losses)
    assert len(rest.losses) == losses
    assert same(weights(whole), weights(resumed))
    assert same(teacher_of(first), teacher_of(second))


def save(path: Path, host: Any, *callbacks: Any) -> Path:
    torch.manual_seed(0)
    run = trainer(callbacks)
    run.fit(host, loader())
    run.save_checkpoint(path)
    return path


def test_a_checkpoint_loads_without_the_callback(tmp_path: Path) -> None:
    host, callback = Host(), teach()
    path = save(tmp_path / "with.ckpt", host, callback)
    checkpoint = torch.load(path, weights_only=True)
    assert list(checkpoint["state_dict"]) == list(Host().state_dict())
    assert list(checkpoint["callbacks"]) == [KEY]
    assert same(list(checkpoint["callbacks"][KEY]["teacher"].values()), list(callback.teacher.state_dict().values()))
    loaded = Host.load_from_checkpoint(path, strict=True)
    assert same(weights(loaded), weights(host))


def test_a_resume_without_a_teacher_starts_one_from_the_restored_weights(tmp_path: Path) -> None:
    bare = Host()
    path = save(tmp_path / "bare.ckpt", bare)
    callback = teach()
    fit(Host(), callback)  # has one of another run
    start = AtStart(lambda *_: teacher_of(callback))
    fit(Host(), callback, start, ckpt_path=path, epochs=2)
    assert same(start.value, weights(bare.net))


def test_an_unknown_version_of_the_state(tmp_path: Path) -> None:
    path = save(tmp_path / "with.ckpt", Host(), teach())
    checkpoint = torch.load(path)
    checkpoint["callbacks"][KEY]["version"] = 2
    torch.save(checkpoint, tmp_path / "new.ckpt")
    said = r"EMATeacherCallback\[teacher\] has version 2, this release reads versions up to 1"
    with pytest.raises(ValueError, match=said):
        fit(Host(), teach(), ckpt_path=tmp_path / "new.ckpt", epochs=2)


def test_a_loaded_state_that_is_not_yet_used_is_saved_again() -> None:
    callback = teach()
    assert callback.state_dict() == {}
    state = {"version": 1, "teacher": {"network.stem.weight": torch.zeros(1)}}
    callback.load_state_dict(state)
    assert callback.state_dict() == state


# Evaluation.


@pytest.mark.parametrize("evaluate", [True, False])
def test_validation_within_fit(evaluate: bool, tmp_path: Path) -> None:
    module, callback = Host(), teach(evaluate=evaluate, copy_steps=1)
    spy = Spy(lambda *_: (weights(module.net), teacher_of(callback)))
    keep = ModelCheckpoint(tmp_path, "{step}", monitor="val", save_top_k=-1)
    run = trainer([callback, spy, keep], 3, 2, enable_checkpointing=True, limit_val_batches=1, num_sanity_val_steps=1)
    run.fit(module, loader(), loader())
    assert len(module.evaluated) == 3  # with the sanity check
    for epoch in (1, 2):
        student, teacher = spy.looks[3 * epoch - 1]
        assert not same(student, teacher)
        assert same(module.evaluated[epoch], teacher if evaluate else student)
        saved = torch.load(tmp_path / f"step={3 * epoch}.ckpt")
        names = [name for part in (module.net.named_parameters(), module.net.named_buffers()) for name, _ in part]
        assert same([saved["state_dict"][f"net.{name}"] for name in names], student)
        assert same([saved["callbacks"][KEY]["teacher"][f"network.{name}"] for name in names], teacher)
    bare = Host()
    trainer([], 3, 2).fit(bare, loader())
    assert same(weights(bare), weights(module))


@pytest.mark.parametrize("fn", ["validate", "test", "predict"])
def test_evaluation_of_a_checkpoint(fn: str, tmp_path: Path) -> None:
    trained, first = Host(), teach()
    path = save(tmp_path / "with.ckpt", trained, first)
    host, callback = Host(), teach(evaluate=True)
    before = surface(host)
    run = trainer([callback], limit_val_batches=1, limit_test_batches=1, limit_predict_batches=1)
    getattr(run, fn)(host, loader(), ckpt_path=path)
    assert same(host.evaluated[0], teacher_of(first))
    assert not same(host.evaluated[0], weights(trained.net))
    assert same(weights(host), weights(trained))
    assert surface(host) == before
    callback.teacher.update(host.net, 1)  # has no tensors that only inference may use


def test_evaluation_after_fit() -> None:
    host, callback = Host(), teach(evaluate=True)
    fit(host, callback)
    student, teacher = weights(host.net), teacher_of(callback)
    trainer([callback], limit_val_batches=1).validate(host, loader(), verbose=False)
    assert same(host.evaluated[0], teacher)
    assert same(weights(host.net), student)
    assert same(teacher_of(callback), teacher)


def test_evaluation_without_a_teacher(tmp_path: Path) -> None:
    path = save(tmp_path / "bare.ckpt", Host())
    run = trainer([teach(evaluate=True)], limit_val_batches=1)
    with pytest.raises(ValueError, match="there is no teacher to evaluate with; fit first, or give the `ckpt_path`"):
        run.validate(Host(), loader())
    host, callback = Host(), teach(evaluate=True)
    fit(host, callback)  # has a teacher, but of other weights
    with pytest.raises(ValueError, match="there is no teacher to evaluate with"):
        trainer([callback], limit_val_batches=1).validate(host, loader(), ckpt_path=path)
    trainer([teach()], limit_val_batches=1).validate(Host(), loader(), verbose=False)  # it evaluates the student


def test_a_checkpoint_saved_within_validation(tmp_path: Path) -> None:
    """As on a cluster's signal."""

    class Saves(Host):
        def on_validation_epoch_end(self) -> None:
            self.trainer.save_checkpoint(tmp_path / "within.ckpt")

    module, callback = Saves(), teach(evaluate=True)
    trainer([callback], limit_val_batches=1).fit(module, loader(), loader())
    assert not same(weights(module.net), teacher_of(callback))
    saved = torch.load(tmp_path / "within.ckpt")
    assert same(list(saved["state_dict"].values()), list(module.state_dict().values()))
    assert same(list(saved["callbacks"][KEY]["teacher"].values()), list(callback.teacher.state_dict().values()))


# Errors.


def test_the_host_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="`network` must name a submodule of the host"):
        EMATeacherCallback("")


def test_a_network_that_does_not_exist() -> None:
    host = Host()
    before = surface(host)
    with pytest.raises(TapError, match=r"there is no submodule `encoder`; there are: net, net.stem, net.norm"):
        fit(host, teach(network="encoder"))
    assert surface(host) == before


def test_numbers_out_of_range() -> None:
    with pytest.raises(ValueError, match="`decay` must be in"):
        fit(Host(), teach(decay=2.0))
    with pytest.raises(ValueError, match="`name` must be a Python identifier, got 'my teacher'"):
        teach(name="my teacher")


def test_an_attribute_that_the_host_has() -> None:
    class Taken(Host):
        teacher = "its own"

    host = Taken()
    with pytest.raises(ValueError, match="already has an attribute `teacher`; give the callback another `name`"):
        fit(host, teach())
    assert host.teacher == "its own"
    with pytest.raises(RuntimeError, match="state_key"):
        trainer([teach(), teach()])


@pytest.mark.parametrize("name", ["FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"])
def test_strategies_that_shard(name: str) -> None:
    strategy: Any = type(name, (SingleDeviceStrategy,), {})
    with pytest.raises(ValueError, match=rf"EMATeacherCallback\[teacher\]: {name} is not supported"):
        fit(Host(), teach(), strategy=strategy(device=torch.device("cpu")), devices="auto")
