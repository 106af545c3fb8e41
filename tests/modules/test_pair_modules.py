"""AffinityNet and IRNet: what they learn, what stays as it was, what a checkpoint has."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wsss_contrast.data import DataError
from wsss_contrast.functional import affinity_offsets, edge_affinity, feature_affinity, pair_labels
from wsss_contrast.losses import InterPixelRelations, SemanticAffinity
from wsss_contrast.modules import CAM, AffinityNet, IRNet, PairModule, WSSSModule

from .tiny import trainer

TINY: dict[str, Any] = {"backbone": "test_resnet", "weights": None}
MODULES = {"psa": AffinityNet, "irn": IRNet}
TERMS = {
    "psa": {"background", "foreground", "negative"},
    "irn": {"background", "foreground", "negative", "displacement_background", "displacement_foreground"},
}
RADIUS = {"psa": 2, "irn": 4}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(does not have many workers|in eval mode at the start).*")
        yield


@pytest.fixture(params=["psa", "irn"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def module(kind: str, **options: Any) -> AffinityNet | IRNet:
    torch.manual_seed(0)
    return MODULES[kind](**TINY | {"radius": RADIUS[kind]} | options)


class TwoRegions(Dataset):
    """A disc of a class on the background, each of a colour of its own and with noise. Its rim has no label."""

    def __init__(self, length: int = 4, side: int = 64) -> None:
        generator = torch.Generator().manual_seed(0)
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        self.samples = []
        for index in range(length):
            top, left = torch.randint(side // 3, side * 2 // 3, (2,), generator=generator).tolist()
            distance = ((rows - top) ** 2 + (columns - left) ** 2).float().sqrt()
            inside = distance < side / 4
            colours = torch.tensor([[-1.0, 0.5, 1.0], [1.0, -0.5, -1.0]])[inside.long()].permute(2, 0, 1)
            image = colours + 0.3 * torch.randn(3, side, side, generator=generator)
            labels = torch.where((distance - side / 4).abs() < 3, 255, inside.long())
            self.samples.append({"image": image, "labels": labels, "name": str(index), "tags": torch.ones(1)})

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.samples[index]


def loader(batch_size: int = 4) -> DataLoader:
    return DataLoader(TwoRegions(), batch_size=batch_size)


class Watch(L.Callback):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def separation(kind: str, trained: Any) -> float:
    """By how much the affinity of pairs that belong together exceeds that of others."""
    trained.eval()
    batch = next(iter(loader()))
    with torch.no_grad():
        out = trained(batch["image"])
    affinity = feature_affinity(out, 2) if kind == "psa" else edge_affinity(out[0], RADIUS[kind])
    pairs = pair_labels(trained.labels_of(batch, trained.network.stride), RADIUS[kind])
    assert affinity.shape[1] == len(affinity_offsets(RADIUS[kind]))
    together = affinity[pairs.background | pairs.foreground].mean()
    return float(together - affinity[pairs.negative].mean())


def test_learns_what_belongs_together(kind: str, tmp_path: Path) -> None:
    trained, watch = module(kind, lr={"psa": 0.005, "irn": 0.05}[kind]), Watch()
    before = separation(kind, trained)
    trained.train()
    trainer(tmp_path, max_steps=40, max_epochs=-1, callbacks=[watch]).fit(trained, loader())
    names = {f"train/{name}" for name in TERMS[kind]}
    for row in watch.rows:
        assert row.keys() == names | {"train/loss"}
        assert sum(row[name] for name in names) == pytest.approx(row["train/loss"], rel=1e-4)
    assert watch.rows[-1]["train/loss"] < 0.75 * watch.rows[0]["train/loss"]
    assert separation(kind, trained) > max(before, 0) + 0.3


def test_the_loss_is_of_the_labels_of_blocks(kind: str) -> None:
    """Of the network's outputs and the commonest label of each block."""
    made = module(kind)
    made.log = made.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign, assignment]
    batch = next(iter(loader(2)))
    stride = {"psa": 8, "irn": 4}[kind]
    blocks = batch["labels"].unfold(1, stride, stride).unfold(2, stride, stride).flatten(3)
    labels = torch.stack([(blocks == label).sum(-1) for label in (0, 1, 255)]).argmax(0)
    labels = torch.tensor([0, 1, 255])[labels]
    out = made(batch["image"])
    loss = SemanticAffinity(2)(out, labels) if kind == "psa" else InterPixelRelations(4)(*out, labels)
    torch.testing.assert_close(made.training_step(batch), sum(loss.values()))
    assert {*loss} == TERMS[kind]


def test_what_moves(kind: str, tmp_path: Path) -> None:
    """All of AffinityNet; IRNet's heads, but neither weights nor statistics of its backbone."""
    made = module(kind, lr=0.01)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    trainer(tmp_path, max_steps=2, max_epochs=-1).fit(made, loader())
    moved = {name.split(".")[1] for name, value in made.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == ({"backbone", "affinity"} if kind == "psa" else {"edge", "displacement"})


def test_rates(kind: str, tmp_path: Path) -> None:
    """The library's: biases twice, heads ten times, decay of weights alone; none for what is constant."""
    made = module(kind, lr=0.01, weight_decay=0.1)
    host = trainer(tmp_path, max_steps=4, max_epochs=-1)
    host.fit(made, loader())
    rates: dict[int, tuple[float, float]] = {}
    for group in host.optimizers[0].param_groups:
        rates |= {id(p): (group["initial_lr"], group["weight_decay"]) for p in group["params"]}
    found = {name: rates.get(id(p)) for name, p in made.network.named_parameters()}
    fast, slow = ("affinity.", "backbone.") if kind == "psa" else ("displacement.", "edge.")
    for name, value in found.items():
        if kind == "irn" and name.startswith("backbone."):
            assert value is None
            continue
        assert name.startswith((fast, slow))
        factor = (10 if name.startswith(fast) else 1) * (2 if name.endswith("bias") else 1)
        assert value == pytest.approx((0.01 * factor, 0.0 if name.endswith("bias") else 0.1))
    rate = host.optimizers[0].param_groups[0]
    assert rate["lr"] == pytest.approx(rate["initial_lr"] * 0.25**0.9)  # poly decay, its last value


@pytest.mark.parametrize("steps", [{"max_epochs": 2}, {"max_steps": 3, "max_epochs": -1}])
def test_displacements_are_centred_at_the_end(steps: dict[str, int], tmp_path: Path) -> None:
    """Over the training crops, and the checkpoint of the last epoch has it."""
    made = module("irn")
    save = ModelCheckpoint(
        tmp_path, save_last=True, save_on_train_epoch_end=True, enable_version_counter=False, save_top_k=-1
    )
    options = {"max_steps": -1, "enable_checkpointing": True, "callbacks": [save]} | steps
    trainer(tmp_path, **options).fit(made, loader(2))
    loaded = IRNet.load_from_checkpoint(tmp_path / "last.ckpt").eval()
    shift = loaded.network.displacement.mean_shift
    assert shift.abs().max() > 0
    with torch.no_grad():
        means = torch.stack([loaded(batch["image"])[1].mean(dim=(0, 2, 3)) for batch in loader(2)]).mean(dim=0)
    torch.testing.assert_close(means, torch.zeros(2), atol=1e-5, rtol=0)
    first = torch.load(tmp_path / "epoch=0-step=2.ckpt", weights_only=True)["state_dict"]
    assert not first["network.displacement.mean_shift"].any()  # not before the end


def test_centre_over_images_of_your_own() -> None:
    made = module("irn").eval()
    images = [torch.randn(1, 3, 40, 48), torch.randn(2, 3, 64, 64)]
    made.center(iter(images))
    with torch.no_grad():
        found = torch.cat([made(of)[1].transpose(0, 1).flatten(1) for of in images], dim=1)
    torch.testing.assert_close(found.mean(dim=1), torch.zeros(2), atol=1e-5, rtol=0)


def test_training_goes_on_from_a_checkpoint(kind: str, tmp_path: Path) -> None:
    made = module(kind)
    host = trainer(tmp_path, max_epochs=1, max_steps=-1)
    host.fit(made, loader())
    host.save_checkpoint(tmp_path / "last.ckpt")
    loaded = MODULES[kind].load_from_checkpoint(tmp_path / "last.ckpt")
    assert loaded.hparams == made.hparams
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, made.state_dict()[name], rtol=0, atol=0)
    host = trainer(tmp_path, max_epochs=2, max_steps=-1)
    host.fit(loaded, loader(), ckpt_path=tmp_path / "last.ckpt")
    assert host.global_step == 2


def test_a_batch_without_labels(kind: str, tmp_path: Path) -> None:
    class Unlabelled(TwoRegions):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"image": super().__getitem__(index)["image"]}

    with pytest.raises(DataError, match=rf"^{MODULES[kind].__name__} learns from label images, .* a folder `labels`"):
        trainer(tmp_path).fit(module(kind), DataLoader(Unlabelled(), batch_size=2))


def test_a_crop_too_small_for_the_radius(kind: str) -> None:
    made = module(kind, radius={"psa": 5, "irn": 10}[kind])
    batch = {"image": torch.randn(1, 3, 36, 36), "labels": torch.zeros(1, 36, 36, dtype=torch.int64)}
    with pytest.raises(ValueError, match=r"a map of \d+ x \d+ is too small for the radius (5|10)"):
        made.training_step(batch)


def test_seeds_are_of_other_modules(kind: str) -> None:
    made = module(kind)
    assert isinstance(made, PairModule)
    assert not isinstance(made, CAM)
    assert issubclass(CAM, WSSSModule)
    assert not hasattr(made, "seeds")


def test_bad_options(kind: str) -> None:
    with pytest.raises(ValueError, match="`lr` must be positive, got 0"):
        module(kind, lr=0)
    with pytest.raises(ValueError, match="`radius` must be at least 2, got 1"):
        module(kind, radius=1)
    with pytest.raises(ValueError, match="has no map of stride 3"):
        module(kind, low_strides=[3, 8])


@pytest.mark.parametrize("length", [1, 3])
def test_families_without_low_strides(kind: str, length: int) -> None:
    """``None`` takes the two maps before the last: here of a transformer, all of whose maps have one stride."""
    made = module(kind, backbone="test_vit", output_stride=None, low_strides=None).eval()
    with torch.no_grad():
        out = made(torch.randn(length, 3, 72, 80))
    first: Tensor = out if kind == "psa" else out[0]
    assert first.shape == ((length, 448, 9, 10) if kind == "psa" else (length, 1, 18, 20))
