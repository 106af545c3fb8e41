"""The CSRM module: what it starts from, what it learns, what it keeps."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from wsss_contrast.callbacks import PrototypeContrastCallback
from wsss_contrast.checkpoints import CheckpointError
from wsss_contrast.data import SHAPES_CLASSES, DataError, ShapesDataModule
from wsss_contrast.modules import CSRM, PuzzleCAM

from .tiny import OPTIONS, trainer

CLASSES = len(SHAPES_CLASSES)
SMALL: dict[str, Any] = OPTIONS | {"embedding_dim": 8}


def data(**options: Any) -> ShapesDataModule:
    sizes = {"train_length": 12, "val_length": 2, "size": 64, "crop_size": 64, "resize_long": (56, 80)}
    return ShapesDataModule(**sizes | {"batch_size": 2, "unlabeled_batch_size": 3} | options)


def csrm(**options: Any) -> CSRM:
    torch.manual_seed(0)
    return CSRM(CLASSES, **SMALL | {"loss": {"contrast": {"queries": 4, "negatives": 5}}} | options)


class Watch(L.Callback):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.batches: list[Any] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.batches.append({key: value for key, value in batch.items() if key != "image"})


@pytest.mark.parametrize("compat", ["paper", "official"])
@pytest.mark.parametrize("refine", ["none", "par"])
def test_trains(compat: str, refine: str, tmp_path: Path) -> None:
    module, watch = csrm(compat=compat, train_refine=refine), Watch()
    before = {name: value.clone() for name, value in module.named_parameters()}
    trainer(tmp_path, max_steps=4, max_epochs=-1, callbacks=[watch]).fit(module, datamodule=data())
    names = {f"train/{name}" for name in ("classification", "segmentation", "seg_to_cam", "weak_to_strong", "contrast")}
    assert all(names <= row.keys() for row in watch.rows)
    for row in watch.rows:
        assert sum(row[name] for name in names) == pytest.approx(row["train/loss"], rel=1e-5)
    assert [batch["labeled"] for batch in watch.batches] == [2] * 4
    assert [len(batch["tags"]) for batch in watch.batches] == [5] * 4
    moved = {name.split(".")[0] for name, value in module.named_parameters() if not torch.equal(value, before[name])}
    assert {"backbone", "classifier", "segmenter", "teacher"} <= moved


def test_the_halves_are_drawn_apart(tmp_path: Path) -> None:
    watch = Watch()
    trainer(tmp_path, max_steps=3, max_epochs=-1, callbacks=[watch]).fit(csrm(), datamodule=data())
    names = [batch["name"] for batch in watch.batches]
    assert all(len(of_batch) == 5 for of_batch in names)
    assert {name for of_batch in names for name in of_batch[:2]} != {n for of_batch in names for n in of_batch[2:]}


def test_starts_from_puzzle_cam(tmp_path: Path) -> None:
    torch.manual_seed(1)
    puzzle = PuzzleCAM(CLASSES, **OPTIONS)
    host = trainer(tmp_path, max_steps=1, max_epochs=-1)
    host.fit(puzzle, datamodule=data(unlabeled_batch_size=0))
    host.save_checkpoint(tmp_path / "puzzle.ckpt")
    module = csrm(start=str(tmp_path / "puzzle.ckpt"))
    for name in ("backbone", "classifier"):
        theirs = getattr(puzzle, name).state_dict()
        for network in (module, module.teacher.network):
            for key, value in getattr(network, name).state_dict().items():
                torch.testing.assert_close(value, theirs[key].cpu(), rtol=0, atol=0)
    assert module.heads == [module.segmenter]
    scratch = csrm()
    assert scratch.heads == [scratch.classifier, scratch.segmenter]


def test_a_start_that_is_none(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"`start`: nothing\.ckpt: no such checkpoint"):
        module = csrm(start="nothing.ckpt")
    with pytest.raises(CheckpointError, match=r"`start`: nothing\.ckpt: no such checkpoint"):
        trainer(tmp_path, max_steps=1, max_epochs=-1).fit(module, datamodule=data())
    torch.save({"state_dict": {}}, tmp_path / "empty.ckpt")
    with pytest.warns(UserWarning, match=r"`start`: the backbone of .*empty\.ckpt is another"):
        module = csrm(start=str(tmp_path / "empty.ckpt"))
    with pytest.raises(CheckpointError, match=r"`start`: the backbone of .*empty\.ckpt is another"):
        trainer(tmp_path, max_steps=1, max_epochs=-1).fit(module, datamodule=data())


def test_a_checkpoint_needs_its_start_no_more(tmp_path: Path) -> None:
    start, last = tmp_path / "start.ckpt", tmp_path / "last.ckpt"
    module = csrm()
    torch.save({"state_dict": module.state_dict()}, start)
    host = trainer(tmp_path, max_steps=1, max_epochs=-1)
    host.fit(csrm(start=str(start)), datamodule=data())
    host.save_checkpoint(last)
    start.unlink()
    with pytest.warns(UserWarning, match="no such checkpoint"):
        loaded = CSRM.load_from_checkpoint(last)
    assert loaded.heads == [loaded.segmenter]
    resumed = trainer(tmp_path, max_steps=2, max_epochs=-1)
    resumed.fit(loaded, datamodule=data(), ckpt_path=last)
    assert resumed.global_step == 2


class Views(PrototypeContrastCallback):
    """Keeps what it is given, and the images of the second view."""

    def __init__(self) -> None:
        super().__init__(view_size=48)
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def second_view(self, module: L.LightningModule, batch: Any) -> torch.Tensor | None:
        self.seen.append((batch["image"], batch["tags"]))
        return super().second_view(module, batch)


def test_other_regularizers_see_the_mixed_images(tmp_path: Path) -> None:
    """Images and tags go together, and are those that the student saw."""
    module, contrast = csrm(mix_probability=1.0), Views()
    mixed: list[Any] = []
    mix = module.mix

    def kept(*args: Any, **kwargs: Any) -> Any:
        mixed.append((args[0], mix(*args, **kwargs)))
        return mixed[-1][1]

    kept.draw = mix.draw  # type: ignore[attr-defined]
    module.mix = kept  # type: ignore[assignment]
    trainer(tmp_path, max_steps=1, max_epochs=-1, callbacks=[contrast]).fit(module, datamodule=data())
    (images, tags) = contrast.seen[0]
    before, after = mixed[0]
    assert torch.equal(images, after.images)
    assert torch.equal(tags, after.tags)
    assert not torch.equal(images, before)


def test_a_start_of_other_classes(tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    torch.save({"state_dict": csrm().state_dict(), "class_names": [*SHAPES_CLASSES][::-1]}, path)
    with pytest.raises(DataError, match="the checkpoint is of the classes"):
        trainer(tmp_path, max_steps=1, max_epochs=-1).fit(csrm(start=str(path)), datamodule=data())


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_start_that_can_not_be_read(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    if content is None:
        torch.save([1], path)
    else:
        path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"other\.ckpt: (cannot be read as a|is no) checkpoint"):
        module = csrm(start=str(path))
    with pytest.raises(ValueError, match=r"other\.ckpt: (cannot be read as a|is no) checkpoint"):
        trainer(tmp_path, max_steps=1, max_epochs=-1).fit(module, datamodule=data())


def test_a_start_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    torch.save({"state_dict": {"classifier.weight": torch.zeros(1)}}, path)
    with pytest.warns(UserWarning, match=r"the backbone of .*other\.ckpt is another"):
        module = csrm(start=str(path))
    with pytest.raises(ValueError, match=r"the backbone of .*other\.ckpt is another"):
        trainer(tmp_path, max_steps=1, max_epochs=-1).fit(module, datamodule=data())
    # Weights of the whole module take its place: those of a checkpoint, whose start has been replaced since.
    module.load_state_dict(csrm().state_dict())
    trainer(tmp_path, max_steps=1, max_epochs=-1).fit(module, datamodule=data())


def test_seeds_are_the_teachers() -> None:
    module = csrm().eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = module.seed_maps(images)
        module.classifier.weight.add_(1.0)
        torch.testing.assert_close(module.seed_maps(images), before)
        module.teacher.network.classifier.weight.add_(1.0)
    assert not torch.equal(module.seed_maps(images), before)


def test_seeds_need_the_activation_maps_alone() -> None:
    """The heads take most of the network's time, and give nothing to the seeds."""
    module = csrm().eval()
    images = torch.randn(1, 3, 64, 64)
    expected = module.teacher(images).cams
    module.teacher.network.segmenter = torch.nn.Identity()  # would fail if it were called
    torch.testing.assert_close(module.raw_maps(images), expected)
    assert module.seeds(images, torch.ones(1, CLASSES)).shape == (1, CLASSES, 64, 64)


@pytest.mark.parametrize(("own", "trainers", "limit"), [(0.5, None, 0.5), (0.5, 0.25, 0.25), (None, None, None)])
def test_gradients_are_clipped(own: float | None, trainers: float | None, limit: float | None, tmp_path: Path) -> None:
    """By the module, unless the trainer does."""
    norms: list[float] = []

    class Norm(L.Callback):
        def on_before_zero_grad(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
            found = [p.grad.norm() for p in pl_module.parameters() if p.grad is not None]
            if found:
                norms.append(float(torch.stack(found).norm()))

    host = trainer(tmp_path, max_steps=3, max_epochs=-1, callbacks=[Norm()], gradient_clip_val=trainers)
    host.fit(csrm(max_grad_norm=own), datamodule=data())
    assert len(norms) >= 2
    if limit is None:
        assert max(norms) > 1
    else:
        assert norms == pytest.approx([limit] * len(norms), rel=1e-3)


@pytest.mark.parametrize("thresholds", [(-0.1, 0.2), (0.4, 0.3), (0.5, 1.0), (0.36, None)])
def test_thresholds_out_of_order(thresholds: tuple[float, float | None]) -> None:
    low, high = thresholds
    with pytest.raises(ValueError, match="thresholds must be 0 <= background <= foreground < 1"):
        csrm(background_threshold=low, foreground_threshold=high)


def test_a_limit_of_gradients_must_be_positive() -> None:
    with pytest.raises(ValueError, match="`max_grad_norm` must be positive or None, got 0"):
        csrm(max_grad_norm=0.0)


def test_the_teacher_follows_the_optimisers_steps(tmp_path: Path) -> None:
    """Not the batches: gradients are accumulated over two."""
    module = csrm()
    updates: list[int] = []
    update = module.teacher.update

    def spy(network: Any, step: int) -> None:
        updates.append(step)
        update(network, step)

    module.teacher.update = spy  # type: ignore[method-assign]
    trainer(tmp_path, max_steps=3, max_epochs=-1, accumulate_grad_batches=2).fit(module, datamodule=data())
    assert updates == [1, 1, 2, 3]  # once at the start, as the student may have been loaded since


def test_a_resumed_run_gives_what_an_undisturbed_one_gives(tmp_path: Path) -> None:
    """Both are planned for two epochs of six steps, as the schedules follow the length of the run."""
    whole = csrm(train_refine="none")
    keep = Keep(tmp_path / "half.ckpt")
    trainer(tmp_path, max_epochs=2, callbacks=[keep]).fit(whole, datamodule=data())
    resumed = csrm(train_refine="none")
    trainer(tmp_path, max_epochs=2).fit(resumed, datamodule=data(), ckpt_path=str(keep.path))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=1e-5, atol=1e-6)


class Keep(L.Callback):
    """A checkpoint of the first epoch's end."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def test_a_checkpoint_within_an_epoch_has_the_steps_teacher(tmp_path: Path) -> None:
    """Callbacks, which may write one, come before the module's own hooks at a batch's end."""
    seen: list[tuple[Any, Any]] = []
    module = csrm(decay=0.0)

    class Look(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.append((module.teacher.network.classifier.weight.clone(), module.classifier.weight.clone()))

    trainer(tmp_path, max_steps=4, max_epochs=-1, callbacks=[Look()]).fit(module, datamodule=data())
    for teacher, student in seen:
        torch.testing.assert_close(teacher, student, rtol=0, atol=0)


@pytest.mark.parametrize("high", [0.35, 0.6])
def test_labels_of_both_presets(high: float) -> None:
    """A map that rises from left to right: background, none, class. Soft and hard labels are of the same classes."""
    thresholds: dict[str, Any] = {"background_threshold": 0.2, "foreground_threshold": high}
    module = csrm(train_refine="none", **thresholds)
    cams = torch.zeros(1, CLASSES, 1, 8)
    cams[0, 1] = torch.arange(8.0)
    images, tags = torch.zeros(1, 3, 1, 8), torch.zeros(1, CLASSES)
    tags[0, 1] = 1
    labels, soft = module.labels_of(images, cams, tags)
    assert soft is not None
    expected = [0, 0, 255, 2 if high < 0.4 else 255, 2 if high < 0.5 else 255, 2, 2, 2]
    assert labels[0, 0].tolist() == expected
    assert soft[0, :, 0].sum(dim=0).tolist() == pytest.approx([float(label != 255) for label in expected])
    hard, none = csrm(compat="official", train_refine="none", **thresholds).labels_of(images, cams, tags)
    assert none is None
    assert hard[0, 0].tolist() == expected


def test_a_crf_keeps_soft_labels_soft() -> None:
    pytest.importorskip("pydensecrf", reason="the extra `crf` is not installed")
    refiners = [csrm(compat=compat, train_refine="crf").label_refiner for compat in ("paper", "official")]
    assert [refiner.settings.confidence for refiner in refiners] == [None, 0.7]


def test_tags_are_the_teachers() -> None:
    module = csrm().eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        module.teacher.network.classifier.weight.fill_(100.0)
        module.classifier.weight.fill_(-100.0)
    assert module.predicted_tags(images).tolist() == [[1.0] * CLASSES] * 2


def test_the_memory_is_set_by_plain_options(tmp_path: Path) -> None:
    module = csrm(loss={"bank": {"capacity": 7, "background_capacity": 9, "dtype": "float16"}})
    bank = module.losses.contrast.bank
    assert bank.capacities == (9, *[7] * CLASSES)
    assert bank.storage.dtype == torch.float16
    host = trainer(tmp_path, max_steps=1, max_epochs=-1)
    host.fit(module, datamodule=data())
    host.save_checkpoint(tmp_path / "last.ckpt")
    loaded = CSRM.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert loaded.losses.contrast.bank.capacities == bank.capacities
    with pytest.raises(ValueError, match="`loss` must have plain values, bank is a module"):
        csrm(loss={"bank": bank})


def test_a_batch_without_labelled_images(tmp_path: Path) -> None:
    watch = Watch()

    class Unlabelled(L.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            batch["labeled"] = 0

    callbacks = [watch, Unlabelled()]
    trainer(tmp_path, max_steps=1, max_epochs=-1, callbacks=callbacks).fit(csrm(), datamodule=data())
    assert watch.rows[0]["train/labeled_pixels"] == 0
    assert watch.rows[0]["train/segmentation"] == 0


def test_sharded_strategies_are_refused() -> None:
    class FSDPStrategy:
        pass

    module = csrm()
    module._trainer = SimpleNamespace(strategy=FSDPStrategy())  # type: ignore[assignment]
    with pytest.raises(ValueError, match="CSRM: FSDPStrategy is not supported, a teacher needs whole weights"):
        module.setup("fit")
