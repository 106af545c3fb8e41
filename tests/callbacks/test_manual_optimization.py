"""A host that runs its own backward passes: the terms join the one that is named, and train as under Lightning's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .hosts import AtStart, FeatureNorm, OneView, TwoView, fit, hooks, ppc, same, tag_loss, weights


class Manual(TwoView):
    """Does by hand what Lightning does for ``TwoView``; ``before`` backward passes of other losses come first."""

    def __init__(self, before: int = 0) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.before = before

    def training_step(self, batch: Any) -> None:
        optimizer: Any = self.optimizers()
        loss = self.host_loss(batch)
        optimizer.zero_grad()
        for _ in range(self.before):
            self.manual_backward(sum(p.sum() for p in self.parameters()) * 0)
        self.manual_backward(loss)
        optimizer.step()
        self.after(batch)

    def after(self, batch: Any) -> None:
        """What comes after the step."""


class Adversarial(Manual):
    """Forwards again after the step."""

    def after(self, batch: Any) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        for _ in range(3):  # more passes than views
            self.manual_backward(tag_loss(self(batch["image"]), batch["tags"]) * 0)


@pytest.mark.parametrize("before", [0, 2])
def test_terms_train_as_under_automatic_optimization(before: int) -> None:
    found = []
    for host, options in ((TwoView(), {}), (Manual(before), {"backward": before})):
        callbacks = [ppc(**options), FeatureNorm(**options)]
        fit(host, *callbacks, steps=4)
        found.append([*weights(host), *(w for c in callbacks for w in weights(c.parts))])
    assert same(*found)
    plain = Manual(before)
    fit(plain, steps=4)
    assert not same(weights(plain), found[0][: len(weights(plain))])


class ManualOneView(Manual):
    """Forwards one view: callbacks make the second."""

    def host_loss(self, batch: Any) -> Any:
        return tag_loss(self(batch["image"]), batch["tags"])


def test_the_views_that_callbacks_make_are_their_own() -> None:
    """Two that make views of other sizes, and one that needs none."""
    found = []
    for host, options in ((OneView(), {}), (ManualOneView(), {"backward": 0})):
        sizes = (("first", 8, False), ("second", 12, True))
        callbacks = [ppc(name=name, view_size=size, view_flip=flip, **options) for name, size, flip in sizes]
        callbacks.append(FeatureNorm(name="third", **options))
        fit(host, *callbacks, steps=3)
        found.append([*weights(host), *(w for c in callbacks for w in weights(c.parts))])
    assert same(*found)


class TwoOptimizers(ManualOneView):
    """Its classifier has an optimizer of its own, which the first backward pass does not serve."""

    def training_step(self, batch: Any) -> None:
        body, _ = self.optimizers()  # type: ignore[misc]
        with self.toggled_optimizer(body):
            self.manual_backward(self.host_loss(batch))
            body.step()

    def configure_optimizers(self) -> Any:
        body = [*self.stem.parameters(), *self.body.parameters()]
        return [torch.optim.SGD(parameters, lr=0.1) for parameters in (body, self.classifier.parameters())]


def test_parts_that_would_not_learn_are_an_error() -> None:
    with pytest.raises(ValueError, match="its parts are frozen in this backward pass"):
        fit(TwoOptimizers(), ppc(backward=0))


def test_warm_up_counts_batches() -> None:
    class Counted(Manual):
        def after(self, batch: Any) -> None:
            optimizer: Any = self.optimizers()
            optimizer.step()  # a batch is two steps

    def projector(**options: Any) -> list[Any]:
        callback = ppc(backward=0, **options)
        start = AtStart(lambda *_: weights(callback.parts))
        fit(Counted(), callback, start, steps=2)
        return [start.value, weights(callback.parts)]

    assert same(*projector(warmup_steps=2))
    assert not same(*projector(warmup_steps=1))


def test_what_runs_after_the_loss_is_no_view() -> None:
    hosts = [Manual(), Adversarial()]
    for host in hosts:
        fit(host, ppc(backward=0), steps=3)
    assert same(*(weights(host) for host in hosts))


def test_the_host_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Manual, "regularizer_backward", 1, raising=False)
    hosts = [Manual(1), Manual(1)]
    fit(hosts[0], ppc(), steps=2)
    fit(hosts[1], ppc(backward=1), steps=2)
    assert same(*(weights(host) for host in hosts))


def test_the_host_is_as_it_was_afterwards() -> None:
    host = Manual()
    before = hooks(host)
    start = AtStart(lambda _, module: sorted(module.__dict__))
    fit(host, ppc(backward=0), start)
    assert "manual_backward" in start.value
    assert not {"manual_backward", "training_step"} & host.__dict__.keys()
    assert hooks(host) == before


@pytest.mark.parametrize(("made", "times"), [(lambda: Manual(1), 2), (lambda: Manual(), 1)])
def test_a_backward_that_never_comes(made: Any, times: int) -> None:
    message = rf"the step of Manual called `manual_backward` {times} times, its terms wait for number 2"
    with pytest.raises(ValueError, match=message):
        fit(made(), ppc(backward=2))


def test_backward_must_be_said() -> None:
    with pytest.raises(ValueError, match=r"\[mine\]: Manual has manual optimization; say which .* `backward=0` for"):
        fit(Manual(), ppc(name="mine"))
    with pytest.raises(ValueError, match="`backward` must not be negative, got -1"):
        ppc(backward=-1)


def test_it_says_nothing_to_a_host_with_automatic_optimization() -> None:
    hosts = [OneView(), OneView()]
    fit(hosts[0], ppc())
    fit(hosts[1], ppc(backward=0))
    assert same(*(weights(host) for host in hosts))
    assert torch.isfinite(weights(hosts[0])[0]).all()
