"""Several regularizers on one host, in any order."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from .hosts import FeatureNorm, Groups, OneView, TwoView, fit, ppc, same, surface, weights


class Mixed(OneView):
    """One view, batch norm and dropout: all that a second forward pass could disturb."""

    def __init__(self) -> None:
        super().__init__(norm=True, dropout=0.3)


def make() -> list[Any]:
    return [
        ppc(name="first", lr_factor=2.0),
        ppc(name="second", cams=lambda out: out["classifier"], in_channels=6, view_size=12, seed=4),
        FeatureNorm(lr_factor=3.0),
    ]


@pytest.mark.parametrize("host", [Mixed, TwoView, Groups])
def test_any_order_gives_the_same_run_bit_for_bit(host: type[OneView]) -> None:
    runs: list[tuple[list[Tensor], list[Tensor]]] = []
    for order in itertools.permutations(range(3)):
        callbacks = make()
        module = host()
        spy = fit(module, *[callbacks[i] for i in order], steps=3)
        runs.append((spy.losses, weights(module, *[c.parts for c in callbacks])))
    for losses, values in runs[1:]:
        assert same(losses, runs[0][0])
        assert same(values, runs[0][1])


def test_each_adds_its_own_term() -> None:
    """Without dropout, the first step's loss is the host's plus what each adds alone."""
    bare = fit(TwoView(), steps=1).losses[0]
    alone = [fit(TwoView(), callback, steps=1).losses[0] - bare for callback in make()]
    together = fit(TwoView(), *make(), steps=1).losses[0]
    assert all(term > 0 for term in alone)
    torch.testing.assert_close(together, bare + sum(alone))


def test_all_leave() -> None:
    host = Mixed()
    before = surface(host)
    fit(host, *make())
    assert surface(host) == before


def test_one_view_is_enough_for_one() -> None:
    """A regularizer of one view makes no second, and takes the first of two."""
    host = OneView()
    fit(host, FeatureNorm(), steps=2)
    assert len(host.seen) == 2
    assert len(fit(TwoView(), FeatureNorm(), steps=2).losses) == 2
