"""A training goes on at the batch behind its checkpoint's, with that batch's draws, wherever the checkpoint is from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from wsss_contrast.data import ShapesDataModule
from wsss_contrast.modules.base import WSSSModule

from .tiny import trainer


class Spy(WSSSModule):
    """Writes down which images came, and what it drew."""

    def __init__(self) -> None:
        super().__init__(0.1, 0.0, 0.0)
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[Any, ...]] = []

    def training_step(self, batch: dict[str, Any]) -> Tensor:
        self.seen.append((*batch["name"], *batch["image"].mean((1, 2, 3)).tolist(), float(torch.rand(()))))
        return (self.weight * batch["image"].mean()).sum()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        pass


class Save(L.Callback):
    """Saves wherever ModelCheckpoint can, and how many batches are behind."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.saved = folder, list[tuple[Path, int]]()

    def _save(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        if not trainer.sanity_checking:
            path = self.folder / f"{len(self.saved)}.ckpt"
            trainer.save_checkpoint(path)
            self.saved.append((path, len(module.seen)))

    on_train_batch_end = on_train_epoch_end = on_validation_end = on_train_end = _save


def fit(folder: Path, options: dict[str, Any], start: Path | None = None) -> tuple[list[Any], list[tuple[Path, int]]]:
    torch.manual_seed(5)
    module, save, options = Spy(), Save(folder), dict(options)
    sizes = {"train_length": 4, "val_length": 1, "size": 32, "crop_size": 32, "resize_long": (32, 40), "batch_size": 2}
    data = ShapesDataModule(**sizes, unlabeled_batch_size=options.pop("unlabeled", 0))
    trainer(folder, **({"max_steps": -1} | options), callbacks=[save]).fit(module, datamodule=data, ckpt_path=start)
    return module.seen, save.saved


RUNS = {
    "epochs": {"max_epochs": 3, "limit_val_batches": 0},
    "epochs and validation": {"max_epochs": 2},
    "steps": {"max_steps": 5, "limit_val_batches": 0},
    "steps and validation within epochs": {"max_steps": 5, "val_check_interval": 1},
    "unlabelled": {"max_epochs": 2, "limit_val_batches": 0, "unlabeled": 4},
}


@pytest.mark.parametrize("name", RUNS)
def test_twice_interrupted(name: str, tmp_path: Path) -> None:
    """From each checkpoint, and from each of the run that begins there."""
    options, whole_folder = RUNS[name], tmp_path / "whole"
    whole, saved = fit(whole_folder, options)
    assert len(set(whole)) == len(whole) >= 4
    for first, behind in saved:
        rest, again = fit(first.with_suffix(""), options, first)
        assert rest == whole[behind:], first.name
        for second, further in again:
            assert fit(second.with_suffix(""), options, second)[0] == whole[behind + further :], (
                first.name,
                second.name,
            )


def test_stopped_within_an_epoch(tmp_path: Path) -> None:
    """By its number of steps, or by a signal: the rest of the epoch is not lost."""
    options = {"max_epochs": 3, "limit_val_batches": 0}
    whole, _ = fit(tmp_path / "whole", options)
    for steps in (1, 2, 3):
        begun, saved = fit(tmp_path / f"{steps}", options | {"max_steps": steps})
        assert begun == whole[:steps]
        assert fit(tmp_path / f"{steps} and on", options, saved[-1][0])[0] == whole[steps:]


def test_a_batch_that_failed_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"max_epochs": 2, "limit_val_batches": 0}
    whole, _ = fit(tmp_path / "whole", options)
    step = Spy.training_step

    def failing(self: Spy, batch: dict[str, Any]) -> Tensor:
        if len(self.seen) == 2:
            self.trainer.save_checkpoint(tmp_path / "failed.ckpt")
            raise RuntimeError("out of luck")
        return step(self, batch)

    monkeypatch.setattr(Spy, "training_step", failing)
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(tmp_path / "broken", options)
    monkeypatch.undo()
    assert fit(tmp_path / "again", options, tmp_path / "failed.ckpt")[0] == whole[2:]


def test_a_checkpoint_without_a_seed(tmp_path: Path) -> None:
    """As older releases wrote it: the seed is that of the run that resumes, and stays it."""
    _, saved = fit(tmp_path / "first", {"max_epochs": 2, "limit_val_batches": 0})
    state = torch.load(saved[0][0], weights_only=True)
    assert state.pop("seed") == 5
    torch.save(state, tmp_path / "old.ckpt")
    _, again = fit(tmp_path / "second", {"max_epochs": 2, "limit_val_batches": 0}, tmp_path / "old.ckpt")
    assert {torch.load(path, weights_only=True)["seed"] for path, _ in again} == {5}
