"""Hosts that forward two views are tapped twice; for hosts that forward one the second is made."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from wsss_contrast.callbacks import PrototypeContrastCallback
from wsss_contrast.callbacks.regularizer import _Place
from wsss_contrast.functional import resize, valid_pixels, view_matrix, warp

from .hosts import DIM, OneView, Photos, TwoView, contrast, fit, ppc, same, tag_loss, weights


class Recording(PrototypeContrastCallback):
    """Keeps the shapes of the features that reach the loss."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("body", "classifier", embedding_dim=DIM, view_size=8, loss=contrast(), **kwargs)
        self.shapes: list[list[tuple[int, ...]]] = []

    def regularize(self, views: Any, tags: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        self.shapes.append([tuple(view["features"].shape[2:]) for view in views])
        return super().regularize(views, tags, generator)


@pytest.mark.parametrize("host", [OneView, TwoView])
def test_both_views_reach_the_loss_in_order(host: type[OneView]) -> None:
    callback, module = Recording(), host()
    fit(module, callback, steps=2)
    assert callback.shapes == [[(8, 8), (4, 4)]] * 2
    assert len(module.seen) == 4  # no pass more than two a step


def test_the_made_view_differs_and_is_the_resized_photo() -> None:
    host = OneView()
    fit(host, ppc(), steps=2)
    for first, second in zip(host.seen[::2], host.seen[1::2], strict=True):
        assert first.shape[2:] == (16, 16)
        assert second.shape[2:] == (8, 8)
        assert torch.equal(second, resize(first, (8, 8)))
        assert not torch.allclose(resize(second, (16, 16)), first, atol=0.1)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_statistics_are_those_of_one_update(momentum: float | None) -> None:
    """The first step's pass is that of the bare host, so its statistics must be, too."""
    kept = {}
    for name, callbacks in {"bare": [], "contrast": [ppc()]}.items():
        host = OneView(norm=True)
        host.norm.momentum = momentum
        fit(host, *callbacks, steps=1)
        assert int(host.norm.num_batches_tracked) == 1
        assert host.norm.momentum == momentum
        kept[name] = list(host.norm.buffers())
    assert same(kept["bare"], kept["contrast"])
    assert not torch.equal(kept["bare"][0], torch.zeros_like(kept["bare"][0]))


def test_batch_norm_still_normalises_by_the_batch_in_the_made_view() -> None:
    class Watch(OneView):
        normed: list[Tensor]

        def forward(self, images: Tensor) -> Tensor:
            self.normed.append(self.norm(self.stem(images)).detach().mean(dim=(0, 2, 3)))
            return super().forward(images)

    host = Watch(norm=True)
    host.normed = []
    fit(host, ppc(), steps=1)
    assert len(host.normed) == 2
    for means in host.normed:
        torch.testing.assert_close(means, torch.zeros_like(means), atol=1e-5, rtol=0)


def test_second_view_can_be_overridden() -> None:
    class Mirrored(PrototypeContrastCallback):
        def second_view(self, module: L.LightningModule, batch: Any) -> None:
            module(batch[self.images].flip(-1))

    host = OneView()
    callback = Mirrored("body", "classifier", embedding_dim=DIM)
    fit(host, callback, steps=2)
    for first, second in zip(host.seen[::2], host.seen[1::2], strict=True):
        assert torch.equal(second, first.flip(-1))


class Matrices(Recording):
    """Keeps the matrices of the second views."""

    def regularize(self, views: Any, tags: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        self.matrices = [*getattr(self, "matrices", []), views[1].get("matrix")]
        return super().regularize(views, tags, generator)


def test_the_made_view_moves_as_asked_and_draws_by_step() -> None:
    seen, matrices = [], []
    for _ in range(2):
        host = OneView()
        callback = Matrices(view_flip=True, view_degrees=20.0, view_translate=2.0)
        fit(host, callback, steps=2)
        for first, second, matrix in zip(host.seen[::2], host.seen[1::2], callback.matrices, strict=True):
            assert torch.equal(second, warp(first, matrix, (8, 8))[0])
            assert not torch.allclose(second, resize(first, (8, 8)))
        seen.append(host.seen)
        matrices.append(callback.matrices)
    assert not torch.equal(*matrices[0])
    assert same(*seen)


def test_a_resize_alone_has_no_matrix() -> None:
    callback = Matrices()
    fit(OneView(), callback, steps=1)
    assert callback.matrices == [None]


def test_what_lies_outside_of_a_moved_view_takes_no_part() -> None:
    """The contrast sees source maps on the target's pixels; where the target looks beside the photo counts nothing."""
    callback = Matrices()
    fit(OneView(), callback, steps=1)
    callback._at = _Place({}, None, None)
    generator = torch.Generator().manual_seed(0)
    matrix = view_matrix((16, 16), torch.tensor([True, False]), torch.tensor([15.0, -10]), torch.tensor([[3.0, 0]] * 2))
    tags = torch.tensor([[1, 0, 1], [0, 1, 0]])
    channels = callback.parts.projector.in_channels
    source = {"features": torch.randn(2, channels, 8, 8), "cams": torch.randn(2, 3, 8, 8)}
    target = {"features": torch.randn(2, channels, 5, 5), "cams": torch.randn(2, 3, 5, 5), "matrix": matrix}
    outside = ~valid_pixels(matrix, (5, 5))
    assert 0 < outside.sum() < outside.numel() / 2
    spoiled = dict(target)
    for label in ("features", "cams"):
        spoiled[label] = torch.where(outside[:, None], 100 * torch.rand_like(target[label]), target[label])
    terms = [callback.regularize([source, second], tags, generator.manual_seed(1)) for second in (target, spoiled)]
    assert terms[0] == terms[1]
    still = callback.regularize([source, {**target, "matrix": view_matrix_identity(2)}], tags, generator.manual_seed(1))
    plain = {label: maps for label, maps in target.items() if label != "matrix"}
    resized = callback.regularize([source, plain], tags, generator.manual_seed(1))
    for term, value in still.items():
        torch.testing.assert_close(value, resized[term])


def view_matrix_identity(images: int) -> Tensor:
    return torch.eye(2, 3).expand(images, 2, 3)


def test_moving_the_view_of_a_host_that_forwards_two_is_refused() -> None:
    with pytest.raises(ValueError, match="TwoView forwards two views itself"):
        fit(TwoView(), ppc(view_flip=True), steps=1)


def test_moved_views_train_in_half_precision() -> None:
    spy = fit(OneView(norm=True), ppc(view_flip=True, view_degrees=20.0, view_translate=2.0), precision="bf16-true")
    assert all(torch.isfinite(loss) for loss in spy.losses)


def test_a_host_that_moves_its_second_view_says_so() -> None:
    class Moved(TwoView):
        def host_loss(self, batch: Any) -> Tensor:
            self.view_matrix = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]]).expand(len(batch["image"]), 2, 3)
            return super().host_loss(batch)

    callback = Matrices()
    fit(Moved(), callback, steps=1)
    assert callback.matrices[0][0, 0, 0] == -1


def test_gradients_flow_through_the_made_view() -> None:
    """With an empty loss of its own, the host learns from the contrast alone."""

    class Silent(OneView):
        def host_loss(self, batch: Any) -> Tensor:
            return 0 * super().host_loss(batch)

    host = Silent()
    before, maps = weights(host.stem, host.body), weights(host.classifier)
    fit(host, ppc(), steps=1)
    assert not same(before, weights(host.stem, host.body))
    assert same(maps, weights(host.classifier))


def test_tuple_batches() -> None:
    class TupleHost(OneView):
        def host_loss(self, batch: Any) -> Tensor:
            return tag_loss(self(batch[0]), batch[1])

    kept = []
    for module, callback, as_tuple in [
        (TupleHost(), ppc(labels=1, images=0), True),
        (OneView(), ppc(), False),
    ]:
        kept.append(fit(module, callback, data=Photos(as_tuple=as_tuple)).losses)
    assert same(*kept)
