"""P-NOC: two networks that learn in turn, their losses and schedules, and a contrast that joins the generator's."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.literal import erasing, puzzle
from tests.literal.seam import multilabel_soft_margin
from wsss_contrast.callbacks import PrototypeContrastCallback
from wsss_contrast.data import DataError
from wsss_contrast.modules import CSRM, PNOC

from .tiny import CLASSES, OPTIONS, RandomPhotos, batch, cam, loader, trainer


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(num_workers|does not have many workers|no `val_dataloader`).*")
        yield


def pnoc(**options: Any) -> PNOC:
    return PNOC(CLASSES, **OPTIONS | {"label_smoothing": 0.0} | options)


class Watch(L.Callback):
    """What each batch logged; the parameters after each."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.states: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.states = [{name: value.clone() for name, value in module.state_dict().items()}]

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.states.append({name: value.clone() for name, value in module.state_dict().items()})


def gradients_of_a_step(module: PNOC, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The gradients that each optimiser steps with, by parameter."""
    found: list[dict[str, Tensor]] = []

    class Look(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, host: Any, optimizer: Any) -> None:
            mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
            found.append(
                {n: p.grad.clone() for n, p in host.named_parameters() if id(p) in mine and p.grad is not None}
            )

    trainer(folder, max_steps=2, callbacks=[Look()]).fit(module, loader())
    first, second = found
    return first, second


def test_losses_and_gradients_are_those_of_the_equations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first batch, with weights that are not 0 at the start."""
    data, drawn = batch(), torch.tensor([[1.0, 0, 0], [1.0, 0, 0]])
    monkeypatch.setattr("wsss_contrast.modules.pnoc.draw_tag", lambda tags, generator: drawn)
    module = pnoc(erased_weight=(0.7, 1.0), second_weight=(0.6, 1.0)).to(memory_format=torch.channels_last)
    with torch.no_grad():  # maps that are positive somewhere
        module.classifier.weight.abs_()
    start = {name: value.clone() for name, value in module.state_dict().items()}  # the passes below move batch norms
    module.train()
    cams, tiled = module(data["image"]), module(puzzle.tile(data["image"]))
    merged = puzzle.merge_tiles(tiled)
    soft = erasing.erasing_masks(cams.detach(), drawn, (64, 64), "batch")
    hard = erasing.erasing_masks(cams.detach(), drawn, (64, 64), "map")
    remaining = data["tags"] - drawn

    def pooled(maps: Tensor) -> Tensor:
        return maps.mean(dim=(2, 3))

    module.second.eval()
    erased = multilabel_soft_margin(pooled(module.second(data["image"] * (1 - soft))), remaining)
    module.second.train()
    second = multilabel_soft_margin(pooled(module.second(data["image"] * (hard <= 0.2))), data["tags"])
    parts = [multilabel_soft_margin(pooled(maps), data["tags"]) for maps in (cams, merged)]
    expected = torch.autograd.grad(0.6 * second, [p for p in module.second.parameters() if p.requires_grad])
    values = {"erased": erased, "second": second, "classification": parts[0], "tiled_classification": parts[1]}

    watch = Watch()
    fresh = pnoc(erased_weight=(0.7, 1.0), second_weight=(0.6, 1.0))
    fresh.load_state_dict(start)
    trainer(tmp_path, max_steps=2, callbacks=[watch]).fit(fresh, loader())
    for name, value in values.items():
        assert watch.logged[0][f"train/{name}"] == pytest.approx(float(value.detach()), rel=1e-4), name
    total = sum(parts) + 0.7 * erased
    assert watch.logged[0]["train/loss"] == pytest.approx(float(total.detach()), rel=1e-4)

    again = pnoc(erased_weight=(0.7, 1.0), second_weight=(0.6, 1.0))
    again.load_state_dict(start)
    of_generator, of_second = gradients_of_a_step(again, tmp_path)
    assert not any(name.startswith("second.") for name in of_generator)
    assert all(name.startswith("second.") for name in of_second)
    names = [name for name, p in module.named_parameters() if p.requires_grad and name.startswith("second.")]
    for name, slope in zip(names, expected, strict=True):
        assert (of_second[name] - slope).norm() <= 1e-3 * slope.norm() + 1e-7, name
    # The generator learns through the mask as well, whose largest value is no constant.
    module.load_state_dict(start)
    module.train()
    cams = module(data["image"])
    merged = puzzle.merge_tiles(module(puzzle.tile(data["image"])))
    chosen = F.interpolate(cams.relu()[:, :1], (64, 64), mode="bilinear", align_corners=False)
    module.second.eval()
    seen = module.second(data["image"] * (1 - chosen / (chosen.max() + 1e-5)))
    terms = [multilabel_soft_margin(pooled(maps), data["tags"]) for maps in (cams, merged)]
    total = sum(terms) + 0.7 * multilabel_soft_margin(pooled(seen), remaining)
    first = next(name for name in of_generator if name.startswith("backbone.net."))
    for name in ("classifier.weight", first):
        slope = torch.autograd.grad(total, module.get_parameter(name), retain_graph=True)[0]
        assert (of_generator[name] - slope).norm() <= 1e-3 * slope.norm(), name


def test_both_networks_learn_and_their_weights_are_scheduled(tmp_path: Path) -> None:
    watch, module = Watch(), pnoc(alpha=2.0, weight_decay=0.0)
    trainer(tmp_path, max_steps=-1, max_epochs=4, callbacks=[watch]).fit(module, loader())  # 8 batches
    assert [logged["train/alpha"] for logged in watch.logged] == pytest.approx([0, 0.5, 1, 1.5, 2, 2, 2, 2])
    for before, after in zip(watch.states, watch.states[1:], strict=False):
        assert not torch.equal(before["classifier.weight"], after["classifier.weight"])
    second = [state["second.classifier.weight"] for state in watch.states]
    assert torch.equal(second[0], second[1])  # lambda_noc begins with 0
    assert not torch.equal(second[1], second[2])


def test_max_steps_counts_both(tmp_path: Path) -> None:
    watch = Watch()
    trainer(tmp_path, max_steps=8, callbacks=[watch]).fit(pnoc(alpha=2.0), loader())
    assert [logged["train/alpha"] for logged in watch.logged] == pytest.approx([0, 1, 2, 2])


def test_learning_rates_decay_by_the_batch(tmp_path: Path) -> None:
    rates: list[list[float]] = []

    class Rates(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])

    trainer(tmp_path, max_steps=-1, max_epochs=2, callbacks=[Rates()]).fit(pnoc(lr=0.01), loader())  # 4 batches
    expected = [0.01 * (1 - done / 4) ** 0.9 for done in range(4)]
    assert rates == [pytest.approx([rate, rate]) for rate in expected]


def test_terms_are_weighted_by_the_share_of_the_training(tmp_path: Path) -> None:
    watch = Watch()
    trainer(tmp_path, max_steps=-1, max_epochs=4, callbacks=[watch]).fit(pnoc(alpha=2.0), loader())  # 8 batches
    for done, logged in enumerate(watch.logged):
        terms = [logged[f"train/{name}"] for name in ("classification", "tiled_classification")]
        terms.append(logged["train/alpha"] * logged["train/reconstruction"])
        terms.append((0.3 + 0.7 * done / 8) * logged["train/erased"])
        assert logged["train/loss"] == pytest.approx(sum(terms), rel=1e-5)


def test_a_resumed_run_goes_on_as_it_would_have(tmp_path: Path) -> None:
    whole = pnoc()
    start = {name: value.clone() for name, value in whole.state_dict().items()}
    trainer(tmp_path, max_steps=-1, max_epochs=3).fit(whole, loader())

    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
            trainer.save_checkpoint(tmp_path / "one.ckpt")
            trainer.should_stop = True

    torch.manual_seed(0)
    first = pnoc()
    first.load_state_dict(start)
    trainer(tmp_path, max_steps=-1, max_epochs=3, callbacks=[Stop()]).fit(first, loader())
    second = pnoc()
    trainer(tmp_path, max_steps=-1, max_epochs=3).fit(second, loader(), ckpt_path=tmp_path / "one.ckpt")
    expected = whole.state_dict()
    for name, value in second.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_half_precision(precision: str, tmp_path: Path) -> None:
    watch = Watch()
    trainer(tmp_path, max_steps=4, precision=precision, callbacks=[watch]).fit(pnoc(), loader())
    assert all(torch.isfinite(torch.tensor(value)) for logged in watch.logged for value in logged.values())


def test_an_error_within_a_step_leaves_no_network_frozen(tmp_path: Path) -> None:
    module = pnoc()
    learning = [name for name, p in module.named_parameters() if p.requires_grad]
    with pytest.raises(ValueError, match="multiples of twice the stride"):
        trainer(tmp_path).fit(module, loader(side=56))
    assert [name for name, p in module.named_parameters() if p.requires_grad] == learning


def test_contrast_joins_the_generator(tmp_path: Path) -> None:
    plain, contrasted = (Watch() for _ in range(2))
    for watch, callbacks in ((plain, []), (contrasted, [PrototypeContrastCallback(view_size=48)])):
        torch.manual_seed(1)
        module = pnoc()
        host = trainer(tmp_path, max_steps=4, callbacks=[watch, *callbacks])
        host.fit(module, loader())
    assert contrasted.logged[0]["train/prototype_contrast/intra_view"] > 0
    first, other = (watch.states[1] for watch in (plain, contrasted))
    moved = {name.split(".")[0] for name in first if not torch.equal(first[name], other[name])}
    assert moved == {"backbone"}  # the contrast sends no gradient to the maps
    assert torch.equal(first["second.classifier.weight"], other["second.classifier.weight"])
    (callback,) = callbacks
    assert callback.parts is not None
    assert not hasattr(module, "regularizer_prototype_contrast")  # it has left
    assert "manual_backward" not in module.__dict__
    # The projector learns with the generator's optimiser.
    assert len(host.optimizers[0].param_groups) > len(host.optimizers[1].param_groups)


def test_is_a_start_for_csrm_and_takes_one_itself(tmp_path: Path) -> None:
    first = trainer(tmp_path, max_steps=1)
    first.fit(cam(), loader())
    first.save_checkpoint(tmp_path / "cam.ckpt")
    module = pnoc(second=str(tmp_path / "cam.ckpt"))
    state = torch.load(tmp_path / "cam.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(module.second.classifier.weight, state["classifier.weight"])
    assert not torch.equal(module.classifier.weight, state["classifier.weight"])
    host = trainer(tmp_path, max_steps=2)
    host.fit(module, loader())
    host.save_checkpoint(tmp_path / "pnoc.ckpt")
    (tmp_path / "cam.ckpt").unlink()
    with pytest.warns(UserWarning, match=r"`second`: .*cam\.ckpt: no such checkpoint"):
        loaded = PNOC.load_from_checkpoint(tmp_path / "pnoc.ckpt", weights_only=True)
    assert torch.equal(loaded.second.classifier.weight, module.second.classifier.weight)
    trainer(tmp_path, max_steps=2).fit(loaded, loader())
    student = CSRM(CLASSES, start=str(tmp_path / "pnoc.ckpt"), embedding_dim=8, **OPTIONS)
    assert torch.equal(student.classifier.weight, module.classifier.weight)


def test_a_second_that_is_missing_or_of_other_classes(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"`second`: nowhere\.ckpt: no such checkpoint"):
        module = pnoc(second="nowhere.ckpt")
    with pytest.raises(ValueError, match=r"`second`: nowhere\.ckpt: no such checkpoint"):
        trainer(tmp_path).fit(module, loader())
    weights = cam().state_dict()
    torch.save({"state_dict": weights, "class_names": ["a", "b", "c"]}, tmp_path / "cam.ckpt")
    data = L.LightningDataModule.from_datasets(RandomPhotos(), batch_size=2)
    data.class_names = ["a", "b", "d"]
    with pytest.raises(DataError, match="the checkpoint is of the classes"):
        trainer(tmp_path).fit(pnoc(second=str(tmp_path / "cam.ckpt")), datamodule=data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"erased_weight": (-0.1, 1.0)}, "`erased_weight` must be two numbers that are not negative"),
        ({"second_weight": (0.5,)}, r"`second_weight` must be two numbers .* got \(0.5,\)"),
        ({"erasing_threshold": 1.0}, r"`erasing_threshold` must be in \[0, 1\), got 1.0"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pnoc(**options)
