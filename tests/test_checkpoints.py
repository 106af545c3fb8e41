"""Checkpoints of older releases, of newer ones, files that are none, and files whose writing was interrupted."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from tests.callbacks.hosts import TwoView, fit, loader, ppc, trainer
from tests.modules.tiny import cam
from wsss_contrast import cli
from wsss_contrast.callbacks import EMATeacherCallback, PrototypeContrastCallback
from wsss_contrast.checkpoints import CheckpointError, WholeCheckpoints, read_checkpoint, up_to_date
from wsss_contrast.modules import CAM, SEAM

OLD = Path(__file__).parent / "fixtures" / "seam_ppc_2f4539b.ckpt"
"""Of the last commit on the first issue: SEAM with PPC after the first of two epochs of two steps, 4 classes.

Beside it, the seeds that the code of that commit gave for a ramp of grey values.
"""
KEY = "PrototypeContrastCallback[prototype_contrast]"


def of_four_classes() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    return DataLoader([{"image": image, "tags": torch.tensor([1.0, 0.0, 0.0, 1.0])} for image in images], batch_size=2)


def old_settings() -> tuple[SEAM, PrototypeContrastCallback]:
    module = SEAM(4, 32, backbone="test_convnext", weights=None, momentum=0.0, scales=(1.0,), flip=False)
    return module, PrototypeContrastCallback(embedding_dim=16)


def test_weights_of_an_older_release() -> None:
    module = SEAM.load_from_checkpoint(OLD, map_location="cpu", strict=True, weights_only=True).eval()
    ramp = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    with torch.no_grad():
        seeds = module.seed_maps(ramp)
    recorded = torch.load(OLD.with_name("seam_ppc_2f4539b_seeds.pt"), weights_only=True)
    assert recorded.std() > 0
    torch.testing.assert_close(seeds, recorded, rtol=1e-4, atol=1e-5)


def test_a_training_of_an_older_release_goes_on() -> None:
    (module, contrast), old = old_settings(), torch.load(OLD, weights_only=True)
    run = trainer([contrast], steps=2, epochs=2)
    run.fit(module, of_four_classes(), ckpt_path=OLD, weights_only=True)
    assert (old["global_step"], run.global_step, run.current_epoch) == (2, 4, 2)
    for now, then in ((module.state_dict(), old["state_dict"]), (contrast.parts.state_dict(), parts_of(old))):
        assert now.keys() == then.keys()
        trained = [name for name in now if name.endswith("weight")]
        assert all(torch.isfinite(now[name]).all() for name in now)
        # Two more steps at the end of a decay: it moved, and it is no new start.
        moved = [float((now[name] - then[name]).norm() / then[name].norm()) for name in trained]
        assert max(moved) > 0
        assert sum(moved) / len(moved) < 0.1


def parts_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    parts: dict[str, Any] = checkpoint["callbacks"][KEY]["parts"]
    return parts


def test_an_older_checkpoint_without_the_callback() -> None:
    module, _ = old_settings()
    trainer([], limit_val_batches=1).validate(module, [], ckpt_path=OLD, weights_only=True, verbose=False)
    old = torch.load(OLD, weights_only=True)["state_dict"]
    assert all(torch.equal(value, old[name]) for name, value in module.state_dict().items())


def renamed(state: dict[str, Any]) -> dict[str, Any]:
    return {"parts": {name.removeprefix("old."): value for name, value in state["former"].items()}}


class Migrated(PrototypeContrastCallback):
    """Its version 1 had the parts under other names."""

    migrations = (renamed,)
    state_key = KEY


def test_a_state_is_migrated(tmp_path: Path) -> None:
    path = saved(tmp_path / "first.ckpt", TwoView(), ppc())
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["callbacks"][KEY] = {"former": {f"old.{k}": v for k, v in parts_of(checkpoint).items()}, "version": 1}
    torch.save(checkpoint, path)
    contrast = Migrated("body", "classifier", embedding_dim=8, view_size=8)
    fit(TwoView(), contrast, ckpt_path=path, epochs=1)
    assert contrast.state_dict()["version"] == 2
    found, given = contrast.parts.state_dict(), renamed(checkpoint["callbacks"][KEY])["parts"]
    assert given
    assert all(torch.equal(found[name], value) for name, value in given.items())


def test_every_migration_is_taken_once() -> None:
    steps = [lambda s, n=n: s | {"seen": [*s.get("seen", []), n]} for n in (1, 2, 3)]
    assert up_to_date({"seen": []}, steps, "x") == {"seen": [1, 2, 3], "version": 4}
    assert up_to_date({"version": 3}, steps, "x") == {"seen": [3], "version": 4}
    assert up_to_date({"version": 4, "kept": 1}, steps, "x") == {"version": 4, "kept": 1}


class MigratedCAM(CAM):
    migrations = (lambda checkpoint: checkpoint | {"state_dict": checkpoint["of old"]},)


def test_a_module_is_migrated(tmp_path: Path) -> None:
    path = saved(tmp_path / "cam.ckpt", cam())
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["version"] == 1
    checkpoint["of old"], checkpoint["state_dict"] = checkpoint["state_dict"], {}
    torch.save(checkpoint, path)
    module = MigratedCAM.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    assert all(torch.equal(value, checkpoint["of old"][name]) for name, value in module.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        CAM.load_from_checkpoint(path, map_location="cpu", weights_only=True)


@pytest.mark.parametrize("version", [2, 0, "1"])
def test_a_newer_release_wrote_it(version: Any, tmp_path: Path) -> None:
    said = rf"has version {version}, this release reads versions up to 1"
    path = saved(tmp_path / "new.ckpt", TwoView(), ppc(), EMATeacherCallback("body"))
    for key in (KEY, "EMATeacherCallback[teacher]"):
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["callbacks"][key]["version"] = version
        torch.save(checkpoint, tmp_path / "changed.ckpt")
        with pytest.raises(CheckpointError, match=rf"the state of {key.replace('[', '.').replace(']', '.')} {said}"):
            fit(TwoView(), ppc(), EMATeacherCallback("body"), ckpt_path=tmp_path / "changed.ckpt")
    path = saved(tmp_path / "cam.ckpt", cam())
    torch.save(torch.load(path, weights_only=True) | {"version": version}, path)
    with pytest.raises(CheckpointError, match=f"the state of CAM {said}"):
        CAM.load_from_checkpoint(path, map_location="cpu", weights_only=True)


def saved(path: Path, module: L.LightningModule, *callbacks: L.Callback) -> Path:
    """A checkpoint of a host after two steps, of another module before the first."""
    run = trainer(callbacks, plugins=[WholeCheckpoints()])
    if isinstance(module, TwoView):
        run.fit(module, loader())
    else:
        run.strategy.connect(module)
    run.save_checkpoint(path)
    return path


def test_only_the_file_is_left(tmp_path: Path) -> None:
    path = saved(tmp_path / "deeper" / "a.ckpt", TwoView(), ppc())
    assert [found.name for found in path.parent.iterdir()] == ["a.ckpt"]
    assert parts_of(read_checkpoint(path))


class Foreign:
    """Not for ``weights_only``."""


NO_CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: path.write_bytes(b""), "cannot be read as a checkpoint"),
    "text": (lambda path: path.write_text("weights"), "cannot be read as a checkpoint"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps(Foreign())), "cannot be read as a checkpoint"),
    "an object": (lambda path: torch.save({"state_dict": Foreign()}, path), "cannot be read as a checkpoint"),
    "a tensor": (lambda path: torch.save(torch.ones(3), path), "is no checkpoint of Lightning"),
    "weights": (lambda path: torch.save({"layer.weight": torch.ones(3)}, path), "is no checkpoint of Lightning"),
    "a folder": (lambda path: path.mkdir(), "cannot be read as a checkpoint"),
    "missing": (lambda path: None, "no such checkpoint"),
}
for _share in (0.02, 0.5, 0.9, 0.999):
    NO_CHECKPOINTS[f"{_share:.1%} of one"] = (
        lambda path, share=_share: path.write_bytes(OLD.read_bytes()[: int(share * OLD.stat().st_size)]),
        "cannot be read as a checkpoint",
    )


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_files_that_are_no_checkpoints(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that names the file: read, resumed from, and given to the program."""
    (make, said), path = NO_CHECKPOINTS[name], tmp_path / "this.ckpt"
    make(path)
    with pytest.raises(CheckpointError, match=rf"this\.ckpt: {said}"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match=rf"this\.ckpt: {said}"):
        trainer([ppc()], plugins=[WholeCheckpoints()]).fit(TwoView(), loader(), ckpt_path=path, weights_only=True)
    if name != "a folder":  # the program takes it for the folder of a sharded checkpoint
        command = ["wsss-contrast", "predict", "--config", "seam", "--ckpt_path", str(path)]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit, match=rf"wsss-contrast: .*this\.ckpt: {said}"):
            cli.main()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_while_writing(tmp_path: Path) -> None:
    """The file of before is there, whole, and a run goes on from it."""
    path = saved(tmp_path / "last.ckpt", TwoView(), ppc())
    before = path.read_bytes()
    child = os.fork()
    if child == 0:  # no training here: autograd's threads did not come along

        def half(checkpoint: Any, file: Path) -> None:
            file.write_bytes(before[: len(before) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half
        WholeCheckpoints().save_checkpoint({"state_dict": {}}, path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2  # the half is under another name
    assert len(fit(TwoView(), ppc(), ckpt_path=path, epochs=2).losses) == 2


def test_an_error_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "last.ckpt", TwoView())
    before = path.read_bytes()

    def full(checkpoint: Any, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space left"):
        saved(path, TwoView())
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_the_program_writes_whole_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    real = WholeCheckpoints.save_checkpoint

    def noted(self: Any, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        written.append(Path(path).name)
        real(self, checkpoint, path, storage_options)

    monkeypatch.setattr(WholeCheckpoints, "save_checkpoint", noted)
    monkeypatch.chdir(tmp_path)
    data = ["train_length=2", "val_length=1", "size=32", "crop_size=32", "resize_long=[32,40]", "batch_size=2"]
    model = ["backbone=test_resnet", "weights=null", "scales=[1.0]"]
    saver = ["lightning.pytorch.callbacks.ModelCheckpoint", "dirpath=.", "filename=only"]
    command = ["wsss-contrast", "fit", "--model=CAM", "--data=ShapesDataModule", "--trainer.logger=false"]
    command += [f"--data.{option}" for option in data] + [f"--model.{option}" for option in model]
    command += [f"--trainer.callbacks+={saver[0]}", *(f"--trainer.callbacks.{option}" for option in saver[1:])]
    command += ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"]
    monkeypatch.setattr(sys, "argv", command)
    cli.main()
    assert written == ["only.ckpt"]
