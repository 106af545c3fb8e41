"""After ``fit``, however it ends, the host is as it was."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from wsss_contrast.callbacks import TapError
from wsss_contrast.callbacks.host import _HOSTS

from .hosts import (
    AtStart,
    FeatureNorm,
    Groups,
    OneView,
    Spy,
    TwoView,
    fit,
    hooks,
    loader,
    ppc,
    same,
    surface,
    trainer,
    weights,
)


def check_left(host: OneView, before: dict[str, Any]) -> None:
    """Nothing is left on the host, and it computes what a bare host of its weights does."""
    assert surface(host) == before
    assert host not in _HOSTS
    twin = type(host)()
    twin.load_state_dict(host.state_dict(), strict=True)
    batch = next(iter(loader()))
    assert torch.equal(host.eval()(batch["image"]), twin.eval()(batch["image"]))


@pytest.mark.parametrize("host", [OneView, TwoView, Groups])
def test_after_fit(host: type[OneView]) -> None:
    module = host()
    before = surface(module)
    fit(module, ppc(), FeatureNorm(), ppc(name="functions", cams=lambda out: out["classifier"], in_channels=6))
    check_left(module, before)


class Breaks(TwoView):
    error: type[BaseException] | None = None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 1 and self.error:
            raise self.error("the host's own error")
        return self.host_loss(batch)


@pytest.mark.parametrize("error", [RuntimeError, KeyError, SystemExit, KeyboardInterrupt])
def test_after_an_exception_in_the_step(error: type[BaseException]) -> None:
    host = Breaks()
    before = surface(host)
    callback, other = ppc(), FeatureNorm()
    host.error = error
    before["attributes"] = sorted([*before["attributes"], "error"])
    with pytest.raises(SystemExit if error is KeyboardInterrupt else error):
        fit(host, callback, other)
    check_left(host, before)
    host.error = None
    assert len(fit(host.train(), callback, other).losses) == 2  # and it can start again
    check_left(host, before)


def _raise(*_: Any) -> Tensor:
    raise ZeroDivisionError("the tap's own error")


@pytest.mark.parametrize(
    ("taps", "error"),
    [
        ({"cams": _raise, "in_channels": 6}, ZeroDivisionError),
        ({"features": "nowhere"}, TapError),
        ({"cams": "nowhere"}, TapError),
        ({"features": ("body", 0)}, TapError),
        ({"labels": "nowhere"}, ValueError),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_after_an_exception_in_a_tap(taps: dict[str, Any], error: type[Exception], first: bool) -> None:
    host = TwoView()
    before = surface(host)
    callbacks = [FeatureNorm(), ppc(**taps)]
    with pytest.raises(error):
        fit(host, *(callbacks if first else callbacks[::-1]))
    check_left(host, before)


@pytest.mark.parametrize("where", ["setup", "configure_model", "on_fit_start", "on_train_start"])
@pytest.mark.parametrize("first", [True, False])
def test_after_an_exception_elsewhere(where: str, first: bool) -> None:
    class Host(TwoView):
        pass

    class Fails(Spy):
        pass

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("elsewhere")

    setattr(Host if where == "configure_model" else Fails, where, fails)
    host = Host()
    before = surface(host)
    callbacks = [Fails(), ppc()]
    with pytest.raises(RuntimeError, match="elsewhere"):
        fit(host, *(callbacks if first else callbacks[::-1]))
    check_left(host, before)


def test_instance_methods_are_put_back_after_an_exception() -> None:
    host = TwoView()

    def mine(batch: Any) -> Any:
        raise RuntimeError("mine")

    def build() -> None:
        pass

    host.training_step = mine
    host.configure_model = build
    with pytest.raises(RuntimeError, match="mine"):
        fit(host, ppc(), FeatureNorm())
    assert host.__dict__["training_step"] is mine
    assert host.__dict__["configure_model"] is build


def test_a_second_fit_continues_the_projector() -> None:
    host, callback = Groups(), ppc()
    fit(host, callback)
    kept = weights(callback.parts)
    start = AtStart(lambda *_: weights(callback.parts))
    fit(host, callback, start)
    assert same(start.value, kept)
    assert not same(kept, weights(callback.parts))


def test_one_trainer_fits_twice() -> None:
    host, callback, spy = TwoView(), ppc(), Spy()
    run = trainer([callback, spy])
    run.fit(host, loader())
    before = surface(host)
    run.fit_loop.max_epochs = 2
    run.fit(host, loader())
    assert len(spy.losses) == 4
    assert surface(host) == before


def test_the_projector_moves_to_another_host() -> None:
    callback = ppc()
    first, second = TwoView(), TwoView()
    fit(first, callback)
    kept = weights(callback.parts)
    start = AtStart(lambda *_: weights(callback.parts))
    fit(second, callback, start)
    assert same(start.value, kept)
    assert hooks(first) == hooks(TwoView())


def test_a_deep_copy_after_fit_is_a_plain_host() -> None:
    host = TwoView()
    before = surface(host)
    fit(host, ppc())
    twin = copy.deepcopy(host)
    assert surface(twin) == before
    assert len(fit(twin, ppc()).losses) == 2
    bare = fit(twin).losses
    assert len(bare) == 2


@pytest.mark.parametrize("cams", ["classifier", lambda out: out["classifier"]])
def test_a_deep_copy_made_during_fit_does_not_fire_the_taps(cams: Any) -> None:
    """A teacher that forwards within the step: the loss is that without it."""

    class Taught(TwoView):
        twin: list[Any]

        def host_loss(self, batch: Any) -> Tensor:
            if self.trainer.global_step == 0:
                self.twin.append(copy.deepcopy(self))
            for twin in self.twin:
                with torch.no_grad():
                    twin(batch["image"])
            loss: Tensor = super().host_loss(batch)
            for twin in self.twin:
                with torch.no_grad():
                    twin(batch["image"])
            return loss

    host = Taught()
    host.twin = []
    taught = fit(host, ppc(cams=cams, in_channels=6), steps=3)
    assert same(taught.losses, fit(TwoView(), ppc(cams=cams, in_channels=6), steps=3).losses)
    assert len(host.twin) == 1
    assert len(host.twin[0].seen) >= 6


def test_nothing_keeps_the_host_alive() -> None:
    host, callback = TwoView(), ppc()
    fit(host, callback)
    reference = weakref.ref(host)
    del host, callback
    gc.collect()
    assert reference() is None
