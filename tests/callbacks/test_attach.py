"""Where and how the callback attaches: late-built hosts, signatures and returns of ``training_step``."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from .hosts import (
    AtStart,
    Evaluated,
    OneView,
    Photos,
    Spy,
    TwoView,
    contrast,
    fit,
    hooks,
    loader,
    ppc,
    same,
    trainer,
    weights,
)


class InSetup(TwoView):
    def build(self, *args: Any) -> None:
        pass

    def setup(self, stage: str) -> None:
        TwoView.build(self)


class InConfigureModel(TwoView):
    def build(self, *args: Any) -> None:
        pass

    def configure_model(self) -> None:
        if not hasattr(self, "stem"):
            TwoView.build(self)


class InBoth(InSetup):
    """A ``configure_model`` that changes what ``setup`` has built."""

    def configure_model(self) -> None:
        self.classifier.weight.data.mul_(1.0)


@pytest.mark.parametrize("host", [InSetup, InConfigureModel, InBoth])
def test_late_built_hosts_train_as_early_built_ones(host: type[TwoView]) -> None:
    early, late = fit(TwoView(), ppc()), fit(host(), ppc())
    assert same(early.losses, late.losses)
    assert len(early.losses) == 2


class WithIndex(TwoView):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        assert batch_idx in (0, 1)
        return self.host_loss(batch)


class OtherNames(TwoView):
    def training_step(self, photos: Any, number: int) -> Any:
        assert number in (0, 1)
        return self.host_loss(photos)


class Keywords(TwoView):
    def training_step(self, batch: Any, batch_idx: int = 0, *, scale: float = 1.0, **rest: Any) -> Any:
        return self.host_loss(batch) * scale


class Starred(TwoView):
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        return self.host_loss(args[0])


class Returned(TwoView):
    """A dict with more than the loss."""

    def training_step(self, batch: Any) -> Any:
        loss = self.host_loss(batch)
        return {"loss": loss, "own": loss.detach(), "note": "kept"}


SIGNATURES = [TwoView, WithIndex, OtherNames, Keywords, Starred, Returned]


@pytest.mark.parametrize("host", SIGNATURES)
def test_signatures_and_returns_make_no_difference(host: type[TwoView]) -> None:
    module = host()
    signature = inspect.signature(module.training_step)
    during = AtStart(lambda _, m: inspect.signature(m.training_step))
    spy = fit(module, ppc(), during)
    assert during.value == signature
    assert same(spy.losses, fit(TwoView(), ppc()).losses)


def test_keyword_calls_reach_the_original() -> None:
    seen: list[Tensor] = []

    def call(_: Any, module: Any) -> None:
        batch = next(iter(loader()))
        module.log_dict = lambda *args, **kwargs: None
        seen.append(module.training_step(batch=batch, batch_idx=0, scale=2.0).detach())
        seen.append(module.training_step(batch, 0, scale=1.0).detach())
        seen.append(module.host_loss(batch).detach())
        del module.log_dict

    fit(Keywords(), ppc(), AtStart(call))
    torch.testing.assert_close(seen[0] - seen[1], seen[2])


def test_other_keys_of_a_dict_are_kept() -> None:
    outputs: list[dict[str, Any]] = []

    class Keep(Spy):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs_: Any, batch: Any, batch_idx: int) -> None:
            outputs.append(outputs_)

    fit(Returned(), ppc(), Keep())
    bare = fit(TwoView())
    for output in outputs:
        assert set(output) == {"loss", "own", "note"}
        assert output["note"] == "kept"
        assert output["loss"] > output["own"]
    assert torch.equal(outputs[0]["own"], bare.losses[0])


class Skips(TwoView):
    """Returns None at the first step: before it has run, or after."""

    ran = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 0 and not self.ran:
            return None
        loss = self.host_loss(batch)
        return loss if batch_idx else None


class SkipsLate(Skips):
    ran = True


@pytest.mark.parametrize("host", [Skips, SkipsLate])
def test_none_skips_the_step_in_one_process(host: type[Skips]) -> None:
    callback, module = ppc(), host()
    states: list[list[Tensor]] = []
    start = AtStart(lambda _, m: states.append(weights(m)))
    spy = fit(module, callback, start, Spy(lambda _, m: states.append(weights(m))), steps=2)
    assert len(spy.losses) == 1
    assert same(states[0], states[1])
    assert not same(states[1], states[2])


def test_an_existing_instance_method_is_wrapped_and_put_back() -> None:
    host = TwoView()
    original = host.training_step
    calls: list[int] = []

    def mine(batch: Any) -> Any:
        calls.append(len(batch["tags"]))
        return original(batch)

    host.training_step = mine
    spy = fit(host, ppc())
    assert calls == [2, 2]
    assert host.__dict__["training_step"] is mine
    assert same(spy.losses, fit(TwoView(), ppc()).losses)


def test_nothing_is_added_outside_fit() -> None:
    host, callback = Evaluated(), ppc()
    before, keys = hooks(host), list(host.state_dict())
    during: list[Any] = []
    predict = Evaluated.predict_step

    def look() -> None:
        during.append(
            (hooks(host), list(host.state_dict()), [n for n, _ in host.named_modules() if "regularizer" in n])
        )

    class Looks(Spy):
        def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
            look()

        def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
            look()

    run = trainer([callback, Looks()], limit_val_batches=1, limit_predict_batches=1)
    run.validate(host, loader(), verbose=False)
    got = run.predict(host, loader())
    assert during == [(before, keys, [])] * 2
    assert callback.parts is None
    batch = next(iter(loader()))
    assert got is not None
    assert torch.equal(got[0], predict(host, batch))


@pytest.mark.parametrize("host", [OneView, TwoView])
def test_validation_within_fit_is_the_bare_hosts(host: Any) -> None:
    """Validation runs no second view, adds no loss and records nothing."""
    scores = {}
    for name, callbacks in {"bare": [], "contrast": [ppc(loss=contrast(cross_prototype_weight=0.0))]}.items():

        class Scored(host):
            def validation_step(self, batch: Any, batch_idx: int) -> None:
                self.seen.clear()
                self.log("val", self(batch["image"]).mean())
                assert len(self.seen) == 1

        torch.manual_seed(0)
        module = Scored()
        run = trainer(callbacks, num_sanity_val_steps=1, limit_val_batches=1)
        spy = Spy()

        def sanity(trainer: Any, *_: Any, name: str = name, callbacks: Any = tuple(callbacks)) -> None:
            scores.setdefault(name, float(trainer.callback_metrics["val"]))
            assert all(callback.recorder.calls == {} for callback in callbacks)

        spy.on_sanity_check_end = sanity
        run.callbacks.append(spy)
        run.fit(module, loader(), loader(Photos(seed=1)))
    assert scores["bare"] == scores["contrast"]
