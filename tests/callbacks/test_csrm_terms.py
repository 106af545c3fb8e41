"""CSRM's terms as callbacks of a plain host, with a teacher, give what the module gives."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from wsss_contrast.callbacks import (
    ActivationConsistencyCallback,
    EMATeacherCallback,
    RegularizerCallback,
    UnreliablePixelContrastCallback,
    WeakToStrongCallback,
)
from wsss_contrast.losses import CSRMSchedule, MultilabelSoftMargin, ReliableSegmentation, UnreliablePixelContrast
from wsss_contrast.modules import CSRM

CLASSES, LABELED, STEPS = 3, 2, 4
CONTRAST: dict[str, Any] = {"queries": 4, "negatives": 5, "negative_confidence": 1.0, "query_confidence": 0.0}


class Photos(Dataset):
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(16, 3, 64, 64, generator=generator)
        self.tags = (torch.rand(16, CLASSES, generator=generator) < 0.5).float()
        self.tags[:, 0] = 1

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index], "tags": self.tags[index]}


def collate(samples: list[Any]) -> dict[str, Any]:
    return {**default_collate(samples), "labeled": LABELED}


def module() -> CSRM:
    """Without mixing and randomness in the network: the teacher's two passes are then one."""
    torch.manual_seed(0)
    made = CSRM(
        CLASSES,
        backbone="test_resnet",
        weights=None,
        scales=(1.0,),
        mix_probability=0.0,
        train_refine="none",
        soft_labels=False,
        embedding_dim=8,
        max_grad_norm=None,  # the host does not clip
        loss={"contrast": CONTRAST, "warmup": 0.25},
    )
    for network in (made.network, made.teacher.network):
        network.backbone.frozen_norm = True
        for part in network.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
    return made


class Host(L.LightningModule):
    """Knows classification and the segmentation of reliable pixels, and the network by one name."""

    def __init__(self) -> None:
        super().__init__()
        source = module()
        self.model = source.network.to(memory_format=torch.channels_last)  # as a trainer has it of CSRM
        self.pseudo = [source]  # a list, so that it is no submodule

    def forward(self, images: Tensor) -> Any:
        return self.model(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, tags = batch["image"], batch["tags"]
        with torch.no_grad():
            cams = self.teacher.eval()(images).cams
        labels, _ = self.pseudo[0].labels_of(images, cams, tags)
        maps = self.model(images)
        segmentation = ReliableSegmentation()(maps.segmentation[:LABELED], labels[:LABELED])
        return MultilabelSoftMargin()(maps.cams, tags) + segmentation

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.model.parameters(), lr=0.01)


class Log(L.Callback):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.rows.append({name.split("/")[-1]: float(value) for name, value in trainer.callback_metrics.items()})


def fit(host: L.LightningModule, callbacks: list[Any]) -> list[dict[str, float]]:
    L.seed_everything(0, verbose=False)
    log = Log()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        max_steps=STEPS, callbacks=[*callbacks, log], enable_model_summary=False, accelerator="cpu", **quiet
    )
    trainer.fit(host, DataLoader(Photos(), 4, collate_fn=collate))
    return log.rows


def terms() -> list[RegularizerCallback]:
    schedule = CSRMSchedule(warmup=0.25)
    segmentation = ("model.segmenter", 0)
    contrast = UnreliablePixelContrast(CLASSES + 1, 8, **CONTRAST)
    return [
        ActivationConsistencyCallback("model.classifier", segmentation, schedule=schedule),
        WeakToStrongCallback(segmentation, schedule=schedule),
        UnreliablePixelContrastCallback(
            contrast, ("model.segmenter", 1), "model.classifier", segmentation, schedule=schedule
        ),
    ]


def teacher() -> EMATeacherCallback:
    return EMATeacherCallback("model", copy_steps=2, ramp_start=1)


def test_callbacks_give_the_losses_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after several steps of training, with the teacher behind the student."""
    monkeypatch.setattr(CSRM, "configure_optimizers", lambda self: torch.optim.SGD(self.network.parameters(), lr=0.01))
    expected = fit(module(), [])
    host = Host()
    found = fit(host, [teacher(), *terms()])
    assert len(found) == len(expected) == STEPS
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        for name in ("seg_to_cam", "weak_to_strong", "contrast"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), (step, name)
    assert expected[0]["contrast"] == 0  # the warm-up
    assert all(expected[-1][name] > 0 for name in ("seg_to_cam", "weak_to_strong", "contrast"))


def test_the_order_of_callbacks_makes_no_difference() -> None:
    first = fit(Host(), [teacher(), *terms()])
    second = fit(Host(), [*terms()[::-1], teacher()])
    assert first == second


def test_one_pass_with_the_teachers_weights_serves_all() -> None:
    host = Host()
    passes: list[bool] = []
    host.model.register_forward_hook(lambda module, *_: passes.append(module.training))
    fit(host, [teacher(), *terms()])
    assert passes == [False, True] * STEPS  # evaluation for the teacher, training for the student


class Skipping(Host):
    """Skips its first step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.batch = batch
        return None if batch_idx == 0 else super().training_step(batch, batch_idx)


def test_a_skipped_step_leaves_nothing_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    regularize = ActivationConsistencyCallback.regularize

    def spy(self: Any, *args: Any) -> Any:
        taught, batch = self._taught, host.batch
        with torch.no_grad(), self.teacher_of(host).swapped(host):
            seen.append(torch.equal(host.eval()(batch["image"]).segmentation, taught["segmentation"]))
        host.train()
        return regularize(self, *args)

    monkeypatch.setattr(ActivationConsistencyCallback, "regularize", spy)
    host = Skipping()
    fit(host, [teacher(), *terms()[:1]])
    assert seen
    assert all(seen)


@pytest.mark.parametrize("in_channels", [None, 8])
def test_a_rank_that_skips_meets_the_others(in_channels: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It calls each term with no image: the features as wide as the memory, or as what the head takes."""
    monkeypatch.setattr("wsss_contrast.callbacks.host.world_size", lambda: 2)
    contrast = UnreliablePixelContrast(CLASSES + 1, 8, **CONTRAST)
    taps: Any = (("model.segmenter", 1), "model.classifier", ("model.segmenter", 0))
    rows = fit(Skipping(), [teacher(), UnreliablePixelContrastCallback(contrast, *taps, in_channels=in_channels)])
    assert rows[0]["contrast"] == 0


def test_without_a_teacher_an_error_says_so() -> None:
    with pytest.raises(ValueError, match="needs an EMATeacherCallback of the name 'teacher'; there is none"):
        fit(Host(), terms()[:1])


def test_a_representation_head_of_its_own() -> None:
    """For a host without a representation: the head trains, and its teacher follows."""
    contrast = UnreliablePixelContrast(CLASSES + 1, 8, **CONTRAST)
    callback = UnreliablePixelContrastCallback(
        contrast,
        ("model.segmenter", 1),
        "model.classifier",
        ("model.segmenter", 0),
        in_channels=8,
        schedule=CSRMSchedule(warmup=0.0),
    )
    host = Host()
    rows = fit(host, [teacher(), callback])
    parts: Any = callback.parts
    assert rows[-1]["contrast"] > 0
    head, followed = (next(iter(module.parameters())) for module in (parts.head, parts.teacher))
    assert not torch.equal(head, followed)  # two steps behind a copy
    assert not followed.requires_grad
    assert contrast.bank.counts.sum() > 0
    assert not any("regularizer" in name for name in host.state_dict())
