"""Kill trainings and predictions, go on with them, and compare: ``python benchmarks/faults.py --kills 20``.

A training on the drawn set, with a checkpoint each step, is killed (SIGKILL) again and again at a moment that is drawn,
each time continued from its last checkpoint, and must end with the bits of one that nothing disturbed: weights,
optimizer, schedule, teacher, memory bank. A prediction with a dense CRF likewise must end with the same files. Needs
fork.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from wsss_contrast.callbacks import MaskWriter, PrototypeContrastCallback
from wsss_contrast.checkpoints import WholeCheckpoints
from wsss_contrast.data import ShapesDataModule
from wsss_contrast.files import whole_file
from wsss_contrast.losses import PrototypeContrast
from wsss_contrast.modules import CAM, CSRM, SEAM
from wsss_contrast.nn import ClassMemoryBank
from wsss_contrast.refine import DenseCRF

TINY: dict[str, Any] = {"backbone": "test_resnet", "weights": None, "scales": (1.0,), "flip": False}
CLASSES, EPOCHS, BATCHES, PHOTOS = 6, 3, 5, 12


def seam() -> tuple[CAM, list[Callback]]:
    """SEAM, whose classifier has dropout, and PPC with a memory."""
    contrast = PrototypeContrast(bank=ClassMemoryBank(1 + CLASSES, 128, 40, 40))
    return SEAM(CLASSES, view_size=32, **TINY), [PrototypeContrastCallback(loss=contrast)]


def csrm() -> tuple[CAM, list[Callback]]:
    """CSRM with small memories; the teacher ramps up within the training."""
    return CSRM(CLASSES, loss={"warmup": 0.2, "bank": {"capacity": 50, "background_capacity": 80}}, **TINY), []


METHODS: dict[str, Callable[[], tuple[CAM, list[Callback]]]] = {"seam": seam, "csrm": csrm}


def data(method: str, workers: int) -> ShapesDataModule:
    # The unlabelled half is shorter: its loader begins again within an epoch.
    sizes = {"train_length": 2 * BATCHES, "val_length": PHOTOS, "size": 64, "crop_size": 64, "resize_long": (56, 72)}
    unlabeled = {"unlabeled_batch_size": 4} if method == "csrm" else {}
    return ShapesDataModule(batch_size=2, num_workers=workers, **sizes, **unlabeled)


def quiet(**options: Any) -> L.Trainer:
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return L.Trainer(**silent, **options)


class Killed(Callback):
    """Ends its process at the ``count``-th call of its hooks."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    on_train_batch_start = on_before_backward = on_before_optimizer_step = on_train_batch_end = __call__
    on_save_checkpoint = on_train_epoch_end = on_predict_batch_start = on_predict_batch_end = __call__


class CutShort(WholeCheckpoints):
    """Where a checkpoint is written is a moment, too: half of the file is there."""

    def __init__(self, killed: Sequence[Killed]) -> None:
        self.killed = killed

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        for killed in self.killed:
            if killed.left == 1:
                with whole_file(Path(path)) as temporary:
                    torch.save(checkpoint, temporary)
                    os.truncate(temporary, temporary.stat().st_size // 2)
                    killed()
            killed()
        super().save_checkpoint(checkpoint, path, storage_options)


def fit(method: str, folder: Path, workers: int, kill_at: int | None) -> None:
    """Train to the end, from the last checkpoint if there is one."""
    L.seed_everything(1, verbose=False)
    module, callbacks = METHODS[method]()
    saving = ModelCheckpoint(folder, every_n_train_steps=1, save_last=True, enable_version_counter=False, save_top_k=0)
    killed = [] if kill_at is None else [Killed(kill_at)]
    last = folder / "last.ckpt"
    options = {"max_epochs": EPOCHS, "limit_val_batches": 0, "num_sanity_val_steps": 0, "plugins": [CutShort(killed)]}
    quiet(callbacks=[*callbacks, *killed, saving], **options).fit(
        module, data(method, workers), ckpt_path=last if last.is_file() else None, weights_only=True
    )


def predict(checkpoint: Path, folder: Path, kill_at: int | None) -> None:
    """Write what is missing of the masks."""
    module = SEAM.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    module.refine = DenseCRF(processes=1)
    killed = [] if kill_at is None else [Killed(kill_at)]
    quiet(callbacks=[*killed, MaskWriter(str(folder))]).predict(module, data("seam", 0))
    module.refine.close()


def in_a_process(run: Callable[[], None]) -> int:
    """What a forked process that does this ends with."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        status = 1
        try:
            run()
            status = 0
        except BaseException as error:  # said here: the parent sees the status only
            print(f"{type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def until_done(run: Callable[[int | None], None], kills: int, moments: random.Random, latest: int) -> int:
    """Run with a kill at a moment drawn from the first ``latest``, so many times, then to the end; count the kills."""
    hit = 0
    for _ in range(kills):
        at = moments.randint(1, latest)
        status = in_a_process(partial(run, at))
        if status not in (0, -signal.SIGKILL):
            raise SystemExit(f"a run that was to be killed at its hook {at} ended with {status}")
        hit += status != 0
    if in_a_process(partial(run, None)):
        raise SystemExit("the last run, which nothing disturbed, failed")
    return hit


def different(first: Any, second: Any, where: str = "") -> list[str]:
    """The places at which two checkpoints differ, but for what ModelCheckpoint says of files."""
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        first, second = dict(enumerate(first)), dict(enumerate(second))
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        compared = [key for key in first if not str(key).startswith("ModelCheckpoint")]
        return [place for key in compared for place in different(first[key], second[key], f"{where}/{key}")]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if torch.equal(first, second) else [where]
    return [] if first == second else [where]


def trained(method: str, folder: Path, options: argparse.Namespace, moments: random.Random) -> str:
    """Compare an undisturbed training with one that is killed."""
    whole, broken = folder / "whole", folder / "broken"
    if in_a_process(partial(fit, method, whole, options.workers, None)):
        raise SystemExit(f"{method}: the undisturbed run failed")
    latest = max(7 * EPOCHS * BATCHES // options.kills, 8)  # a step has seven moments: none comes after the end
    hit = until_done(partial(fit, method, broken, options.workers), options.kills, moments, latest)
    ends = [torch.load(of / "last.ckpt", weights_only=True) for of in (whole, broken)]
    for end in ends:  # a run that was killed behind its last step does not count the epoch again
        del end["loops"], end["epoch"]
    places = different(*ends)
    if places:
        raise SystemExit(f"{method}: after {hit} kills these differ: {', '.join(places[:10])}")
    return f"{method}: killed {hit} times, the checkpoint of step {ends[0]['global_step']} is the same"


def predicted(folder: Path, kills: int, moments: random.Random) -> str:
    """The same of predictions of a SEAM."""
    checkpoint, whole, broken = folder / "seam.ckpt", folder / "masks", folder / "masks of several runs"
    trainer = quiet(max_epochs=0)
    trainer.strategy.connect(seam()[0])
    trainer.save_checkpoint(checkpoint)
    if in_a_process(partial(predict, checkpoint, whole, None)):
        raise SystemExit("the undisturbed prediction failed")
    latest = max(4 * PHOTOS // (kills + 1), 3)  # a photo has two moments
    hit = until_done(partial(predict, checkpoint, broken), kills, moments, latest)
    files = [{path.name: path.read_bytes() for path in sorted(of.iterdir())} for of in (whole, broken)]
    if files[0] != files[1] or len(files[0]) != 1 + PHOTOS:
        raise SystemExit(f"prediction: after {hit} kills the masks differ: {[sorted(of) for of in files]}")
    return f"prediction: killed {hit} times, the {PHOTOS} masks are the same"


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each training, and of the prediction")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--workers", type=int, default=1, help="of the training's loaders")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(args)
    moments, began = random.Random(options.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as parent:
        for method in options.methods:
            print(trained(method, Path(parent, method), options, moments), flush=True)
        print(predicted(Path(parent), options.kills, moments), flush=True)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
