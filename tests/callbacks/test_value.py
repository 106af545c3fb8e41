"""The loss under the callback is the host's own plus the terms, the same as in a plain PyTorch loop."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wsss_contrast.nn import Projector

from .hosts import (
    DIM,
    WIDTH,
    AtStart,
    FeatureNorm,
    OneView,
    Photos,
    Spy,
    TwoView,
    contrast,
    fit,
    loader,
    ppc,
    repeated,
    same,
    small,
    tag_loss,
    trainer,
    weights,
)


class Sampled(TwoView):
    """Draws from the global generator at each step, beside its dropout."""

    def build(self, *args: Any) -> None:
        super().build(dropout=0.5)
        self.drawn: list[Tensor] = []

    def host_loss(self, batch: Any) -> Tensor:
        loss = super().host_loss(batch)
        self.drawn.append(torch.rand(3))
        return loss


def plain_step(host: TwoView, projector: nn.Module, batch: Any, step: int, seed: int, loss: Any) -> dict[str, Tensor]:
    """A training step as a script without Lightning would write it."""
    tags, features, cams = batch["tags"], [], []
    for images in (batch["image"], small(batch["image"])):
        features.append(host.body(host.norm(host.stem(images))))
        cams.append(host.classifier(features[-1]))
    terms = loss(
        projector(features[0]),
        cams[0],
        projector(features[1]),
        cams[1],
        tags,
        generator=torch.Generator().manual_seed(seed * 1_000_003 + step),
    )
    return {"host": tag_loss(cams[0], tags) + tag_loss(cams[1], tags), **terms}


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("settings", [{}, {"compat": "official"}, {"cross_cam_weight": 0.0, "temperature": 0.5}])
def test_training_is_that_of_a_plain_loop(settings: dict[str, Any], seed: int) -> None:
    host, twin, projector = TwoView(), TwoView(), Projector(WIDTH, DIM)
    loss = contrast(**settings)
    callback = ppc(loss=loss, seed=seed)
    spy = fit(
        host,
        callback,
        AtStart(lambda *_: projector.load_state_dict(callback.parts.projector.state_dict())),
        steps=3,
    )
    optimizer = torch.optim.SGD([*twin.parameters(), *projector.parameters()], lr=0.02, momentum=0.9)
    for step, batch in zip(range(3), loader(), strict=False):
        terms = plain_step(twin, projector, batch, step, seed, loss)
        total = sum(terms.values())
        assert isinstance(total, Tensor)
        assert all(term > 0 for term in terms.values())
        torch.testing.assert_close(spy.losses[step], total.detach(), rtol=1e-6, atol=1e-6)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    for got, want in zip(weights(host, callback.parts.projector), weights(twin, projector), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_the_terms_are_logged() -> None:
    logged: list[dict[str, Tensor]] = []
    callback = ppc(name="mine")
    spy = fit(TwoView(), callback, Spy(lambda trainer, _: logged.append(dict(trainer.callback_metrics))), steps=1)
    names = {f"train/mine/{term}" for term in ("cross_prototype", "cross_cam", "intra_view")}
    assert names <= set(logged[0])
    bare = fit(TwoView(), steps=1)
    total = bare.losses[0] + sum(logged[0][name] for name in sorted(names))
    torch.testing.assert_close(spy.losses[0], total)


def test_the_terms_count_after_the_warm_up() -> None:
    def weights(callbacks: Any) -> list[list[Tensor]]:
        spy = Spy(lambda _, host: [p.detach().clone() for p in host.parameters()])
        terms = Spy(lambda trainer, _: {name: float(v) for name, v in trainer.callback_metrics.items()})
        fit(TwoView(), *callbacks, spy, terms, steps=3)
        for logged in terms.looks if callbacks else []:
            assert all(value > 0 for name, value in logged.items() if "contrast" in name)
            assert sum("contrast" in name for name in logged) == 3
        return spy.looks

    bare, warmed = weights([]), weights([ppc(warmup_steps=2)])
    for step, bitwise in enumerate((True, True, False)):
        assert all(torch.equal(a, b) for a, b in zip(bare[step], warmed[step], strict=False)) is bitwise


def test_gradients_reach_features_and_projector_but_not_the_maps() -> None:
    class Silent(TwoView):
        def host_loss(self, batch: Any) -> Tensor:
            return 0 * super().host_loss(batch)

    host, callback, kept = Silent(), ppc(), {}

    def gradients(*_: Any) -> None:
        kept["features"] = host.body[0].weight.grad.abs().sum()
        kept["stem"] = host.stem.weight.grad.abs().sum()
        kept["projector"] = callback.parts.projector[0].weight.grad.abs().sum()
        kept["maps"] = host.classifier.weight.grad.abs().sum()

    fit(host, callback, Spy(gradients), steps=1)
    assert kept["features"] > 0
    assert kept["stem"] > 0
    assert kept["projector"] > 0
    assert kept["maps"] == 0


@pytest.mark.parametrize("callbacks", [lambda: [ppc()], lambda: [ppc(), FeatureNorm(), ppc(name="other")]])
def test_the_hosts_random_draws_are_untouched(callbacks: Any) -> None:
    """A run with the regularizer draws what the same run without it draws, from the first step on."""
    bare, host = Sampled(), Sampled()
    fit(bare, steps=3)
    after_bare = torch.get_rng_state()
    fit(host, *callbacks(), steps=3)
    assert same(bare.drawn, host.drawn)
    assert torch.equal(after_bare, torch.get_rng_state())


def test_the_step_leaves_the_global_generator_alone() -> None:
    states = []
    callback = ppc()
    step = callback.step

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        states.append(torch.get_rng_state())
        term = step(*args, **kwargs)
        states.append(torch.get_rng_state())
        return term

    callback.step = watched
    fit(Sampled(), callback, steps=2)
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[2], states[3])


def test_draws_depend_on_the_step_not_on_what_was_drawn_before() -> None:
    """The same photos at another step draw anew; a repeated run draws the same."""
    data = repeated(3)

    class Fixed(TwoView):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    first, again = (fit(Fixed(), ppc(), data=data, steps=3, epochs=2).losses for _ in range(2))
    assert same(first, again)
    assert len({float(loss) for loss in first}) == 6
    other = fit(Fixed(), ppc(seed=1), data=data, steps=3).losses
    assert not torch.equal(first[0], other[0])


def test_the_projector_starts_from_the_global_seed() -> None:
    """Runs with the same seed start alike; other seeds and other names give other weights."""

    def start(seed: int, name: str) -> list[Tensor]:
        callback, kept = ppc(name=name), []
        torch.manual_seed(seed)
        trainer([callback, AtStart(lambda *_: kept.extend(weights(callback.parts)))]).fit(TwoView(), loader())
        return kept

    assert same(start(0, "a"), start(0, "a"))
    assert not same(start(0, "a"), start(1, "a"))
    assert not same(start(0, "a"), start(0, "b"))


@pytest.mark.parametrize("host", [OneView, TwoView])
@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16-mixed"},
        {"precision": "64-true"},
        {"precision": "bf16-true"},
        {"accumulate_grad_batches": 2},
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_precisions_and_accumulation(host: type[OneView], options: dict[str, Any]) -> None:
    module, callback = host(norm=True), ppc()
    before = copy.deepcopy(module.state_dict())
    spy = fit(module, callback, steps=4, **options)
    assert torch.isfinite(torch.stack(spy.losses)).all()
    assert any(not torch.equal(before[key].double(), value.double()) for key, value in module.state_dict().items())
    assert all(torch.isfinite(p).all() for p in callback.parts.parameters())


def test_accumulated_steps_are_the_mean_of_single_ones() -> None:
    """Two batches accumulated: the projector moves by the mean of their gradients."""
    data = Photos(4)
    start: list[Tensor] = []
    callback = ppc()

    class Plain(TwoView):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.02)

    fit(
        Plain(),
        callback,
        AtStart(lambda *_: start.extend(weights(callback.parts))),
        data=data,
        steps=2,
        accumulate_grad_batches=2,
    )
    twin, projector = Plain(), Projector(WIDTH, DIM)
    with torch.no_grad():
        projector[0].weight.copy_(start[0])
    for step, batch in enumerate(loader(data)):
        terms = plain_step(twin, projector, batch, step, 0, contrast())
        (sum(terms.values()) / 2).backward()
    want = start[0] - 0.02 * projector[0].weight.grad
    torch.testing.assert_close(weights(callback.parts)[0], want)
