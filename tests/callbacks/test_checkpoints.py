"""Checkpoints load with and without the callback, and a resumed run is the uninterrupted one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from wsss_contrast.nn import ClassMemoryBank

from .hosts import (
    DIM,
    AtStart,
    Evaluated,
    FeatureNorm,
    Groups,
    K,
    OneView,
    Photos,
    Spy,
    TwoView,
    contrast,
    fit,
    hooks,
    loader,
    ppc,
    repeated,
    same,
    trainer,
    weights,
)

KEY = "PrototypeContrastCallback[prototype_contrast]"


def save(path: Path, host: Any, *callbacks: Any, epochs: int = 1, **kwargs: Any) -> Path:
    """Train and write a checkpoint after the last epoch."""
    torch.manual_seed(0)
    run = trainer(callbacks, epochs=epochs, **kwargs)
    run.fit(host, loader())
    run.save_checkpoint(path)
    return path


@pytest.fixture
def with_contrast(tmp_path: Path) -> Path:
    return save(tmp_path / "with.ckpt", TwoView(), ppc())


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    return save(tmp_path / "bare.ckpt", TwoView())


def test_the_hosts_state_dict_never_shows_the_parts() -> None:
    host = TwoView()
    keys = list(host.state_dict())
    during = AtStart(
        lambda _, m: (
            list(m.state_dict()),
            list(m.state_dict(prefix="net.")),
            [n for n, _ in m.named_parameters()],
        )
    )
    fit(host, ppc(), FeatureNorm(), during)
    assert during.value[0] == keys
    assert during.value[1] == [f"net.{key}" for key in keys]
    assert sum("regularizer" in name for name in during.value[2]) == 3


def test_weights_load_strictly_both_ways_while_attached(bare: Path) -> None:
    def load(_: Any, module: Any) -> None:
        state = module.state_dict()
        TwoView().load_state_dict(state, strict=True)
        before = weights(module.regularizer_prototype_contrast)
        module.load_state_dict(torch.load(bare)["state_dict"], strict=True)
        assert same(before, weights(module.regularizer_prototype_contrast))
        with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "stem.weight"'):
            module.load_state_dict({k: v for k, v in state.items() if k != "stem.weight"}, strict=True)
        with pytest.raises(RuntimeError, match="Unexpected key"):
            module.load_state_dict({**state, "other": torch.zeros(1)}, strict=True)

    fit(TwoView(), ppc(), AtStart(load))


def test_a_checkpoint_with_the_callback_loads_without_it(with_contrast: Path) -> None:
    checkpoint = torch.load(with_contrast, weights_only=True)
    assert not [key for key in checkpoint["state_dict"] if "regularizer" in key]
    assert list(checkpoint["callbacks"]) == [KEY]
    host = TwoView()
    assert str(host.load_state_dict(checkpoint["state_dict"], strict=True)) == "<All keys matched successfully>"
    loaded = TwoView.load_from_checkpoint(with_contrast, strict=True)
    assert same(weights(loaded), weights(host))


@pytest.mark.parametrize("written", ["with_contrast", "bare"])
@pytest.mark.parametrize("callbacks", [[], [ppc]])
@pytest.mark.filterwarnings("ignore")
def test_validate_and_predict_read_either_checkpoint(
    written: str, callbacks: Any, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(written)
    host = Evaluated()
    attached = [make() for make in callbacks]
    run = trainer(attached, limit_val_batches=1, limit_predict_batches=1)
    run.validate(host, loader(), ckpt_path=path, verbose=False)
    run.predict(host, loader(), ckpt_path=path)
    assert same(list(host.state_dict().values()), list(torch.load(path)["state_dict"].values()))
    # The next fit starts from the checkpoint's projector, where it has one.
    if attached and written == "with_contrast":
        start = AtStart(lambda *_: weights(attached[0].parts))
        fit(host, attached[0], start)
        assert same(start.value, list(torch.load(path)["callbacks"][KEY]["parts"].values()))


def test_the_error_of_a_resume_without_state_says_what_works(bare: Path) -> None:
    with pytest.raises(ValueError, match="written without PrototypeContrastCallback") as error:
        fit(TwoView(), ppc(), ckpt_path=bare, epochs=2)
    assert 'module.load_state_dict(torch.load(path)["state_dict"])' in str(error.value)
    module, path = TwoView(), bare
    module.load_state_dict(torch.load(path)["state_dict"])
    start = AtStart(lambda _, m: list(m.state_dict().values()))
    fit(module, ppc(), start)
    assert all(torch.isfinite(w).all() for w in weights(module))


def test_a_failed_resume_leaves_the_host(bare: Path) -> None:
    host = TwoView()
    before = hooks(host)
    with pytest.raises(ValueError, match="written without"):
        fit(host, ppc(), ckpt_path=bare, epochs=2)
    assert hooks(host) == before
    assert "training_step" not in host.__dict__


@pytest.mark.parametrize("host", [TwoView, Groups])
def test_dropping_the_callback_is_announced(host: type[TwoView], tmp_path: Path) -> None:
    path = save(tmp_path / "with.ckpt", host(), ppc())
    with (
        pytest.warns(
            UserWarning,
            match=r"add the following callbacks: .*PrototypeContrastCallback\[prototype_contrast\]",
        ),
        pytest.raises(ValueError, match="loaded state dict"),
    ):
        fit(host(), ckpt_path=path, epochs=2)


class Scheduled(Groups):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.groups())
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class OneNorm(OneView):
    def __init__(self) -> None:
        super().__init__(norm=True)


@pytest.mark.parametrize("host", [TwoView, Groups, Scheduled, OneNorm])
@pytest.mark.parametrize("when", ["epoch", "mid-epoch"])
@pytest.mark.filterwarnings("ignore:.*need to be provided", "ignore:.*dataloader is not resumable")
def test_a_resumed_run_is_the_uninterrupted_one(host: type[OneView], when: str, tmp_path: Path) -> None:
    def callbacks() -> list[Any]:
        return [ppc(lr_factor=2.0), FeatureNorm(lr_factor=3.0)]

    # A plain loader starts anew in a resumed epoch: a run that stops within one has one batch, repeated.
    batches = loader(repeated(4) if when == "mid-epoch" else Photos())
    whole, parts = host(), callbacks()
    middle: Any = {"every_n_epochs": 1} if when == "epoch" else {"every_n_train_steps": 3}
    keep, spy = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, **middle), Spy()
    torch.manual_seed(0)
    trainer([*parts, keep, spy], steps=4, epochs=2, enable_checkpointing=True).fit(whole, batches)
    path = tmp_path / f"step={4 if when == 'epoch' else 3}.ckpt"
    resumed, again = host(), callbacks()
    torch.manual_seed(99)
    rest = Spy()
    trainer([*again, rest], steps=4, epochs=2).fit(resumed, batches, ckpt_path=path)
    assert same(spy.losses[-len(rest.losses) :], rest.losses)
    assert len(rest.losses) == (4 if when == "epoch" else 5)
    assert same(weights(whole, *[c.parts for c in parts]), weights(resumed, *[c.parts for c in again]))


def test_a_resume_with_the_callbacks_in_another_order(tmp_path: Path) -> None:
    """Their optimizer states are told apart by name, not by place."""

    def callbacks() -> list[Any]:
        return [ppc(name="b", lr_factor=5.0), ppc(name="a"), ppc(name="c", lr_factor=2.0)]

    for host in (TwoView, Scheduled):
        whole, parts = host(), callbacks()
        path = save(tmp_path / "first.ckpt", host(), *callbacks(), steps=3)
        spy = fit(whole, *parts, steps=3, epochs=2)
        resumed, again = host(), callbacks()[::-1]
        rest = fit(resumed, *again, steps=3, epochs=2, ckpt_path=path)
        assert same(spy.losses[3:], rest.losses)
        assert same(weights(whole, *[c.parts for c in parts]), weights(resumed, *[c.parts for c in again[::-1]]))


def test_the_memory_of_the_loss_survives(tmp_path: Path) -> None:
    """It is in the callback's state, and a resumed run is the uninterrupted one. Each batch lacks a class."""
    photos = Photos()
    photos.tags = torch.eye(K, dtype=torch.long)[[0, 1, 1, 2, 2, 0]].repeat(2, 1)[:8]

    def remembering(filled: float = 0.0) -> Any:
        bank = ClassMemoryBank(K + 1, DIM, 3, 3)
        bank.push(torch.full((3, DIM), filled), torch.full((3, K + 1), filled > 0))
        return ppc(loss=contrast(bank=bank))

    def rows(callback: Any) -> list[Tensor]:
        return [callback.loss.bank.rows(index) for index in range(K + 1)]

    first, whole, resumed = remembering(), remembering(), remembering(filled=1.0)
    spy = fit(TwoView(), whole, data=photos, steps=3, epochs=2)
    torch.manual_seed(0)
    run = trainer([first], steps=3)
    run.fit(TwoView(), loader(photos))
    run.save_checkpoint(tmp_path / "first.ckpt")
    state = torch.load(tmp_path / "first.ckpt", weights_only=True)
    assert not [name for name in state["state_dict"] if "bank" in name]
    assert torch.equal(state["callbacks"][KEY]["parts"]["loss.bank.rows"], torch.cat(rows(first)))
    start = AtStart(lambda *_: rows(resumed))
    rest = fit(TwoView(), resumed, start, data=photos, steps=3, epochs=2, ckpt_path=tmp_path / "first.ckpt")
    assert same(start.value, rows(first))
    assert same(spy.losses[3:], rest.losses)
    assert same(rows(whole), rows(resumed))
    assert all(len(of_class) == 3 for of_class in rows(whole))
    # Another memory, other losses: it is read.
    bare = fit(TwoView(), ppc(), data=photos, steps=3)
    assert torch.equal(bare.losses[0], spy.losses[0])
    assert not torch.equal(bare.losses[1], spy.losses[1])


def test_the_state_restores_the_projector(with_contrast: Path) -> None:
    state = torch.load(with_contrast, weights_only=True)["callbacks"][KEY]
    assert state["version"] == 1
    callback = ppc()
    callback.load_state_dict(state)
    start = AtStart(lambda *_: weights(callback.parts))
    fit(TwoView(), callback, start)
    assert same(start.value, list(state["parts"].values()))


def test_an_unknown_version_of_the_state(with_contrast: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(with_contrast)
    checkpoint["callbacks"][KEY]["version"] = 2
    torch.save(checkpoint, tmp_path / "new.ckpt")
    with pytest.raises(
        ValueError, match=r"PrototypeContrastCallback\[prototype_contrast\] has version 2.*reads versions up to 1"
    ):
        fit(TwoView(), ppc(), ckpt_path=tmp_path / "new.ckpt", epochs=2)


def test_names_keep_two_callbacks_apart(tmp_path: Path) -> None:
    first, second = ppc(name="first"), ppc(name="second")
    path = save(tmp_path / "two.ckpt", TwoView(), first, second)
    states = torch.load(path, weights_only=True)["callbacks"]
    assert sorted(states) == ["PrototypeContrastCallback[first]", "PrototypeContrastCallback[second]"]
    for callback in (first, second):
        stored: list[Tensor] = list(states[callback.state_key]["parts"].values())
        assert same(stored, weights(callback.parts))
    assert not same(weights(first.parts), weights(second.parts))


def test_equal_names_are_refused() -> None:
    with pytest.raises(RuntimeError, match="state_key"):
        trainer([ppc(), ppc()])  # Lightning's own check of one class
    host = TwoView()
    before = hooks(host)
    with pytest.raises(ValueError, match=r"two regularizers are named 'same'; give one another `name`"):
        fit(host, ppc(name="same"), FeatureNorm(name="same"))
    assert hooks(host) == before
    assert not {"training_step", "configure_model"} & set(host.__dict__)


def test_a_name_that_the_host_uses_is_refused() -> None:
    class Taken(TwoView):
        regularizer_mine = "something of its own"

    with pytest.raises(ValueError, match="already has an attribute `regularizer_mine`"):
        fit(Taken(), ppc(name="mine"))
    assert Taken.regularizer_mine == "something of its own"


def test_checkpoints_written_in_validation_and_by_model_checkpoint(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keep = ModelCheckpoint(tmp_path, "best", monitor="val", save_weights_only=True)
        trainer([ppc(), keep], enable_checkpointing=True, limit_val_batches=1).fit(
            Evaluated(), loader(), loader(Photos())
        )
    state = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]
    assert list(state) == list(Evaluated().state_dict())


def test_a_loaded_state_that_is_not_yet_used_is_saved_again() -> None:
    callback = ppc()
    state = {"version": 1, "parts": {"projector.0.weight": torch.zeros(1)}}
    callback.load_state_dict(state)
    assert callback.state_dict() == state
