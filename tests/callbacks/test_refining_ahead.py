"""A refiner that takes several batches at once: the mask writer gives them, goes on, and collects in order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from wsss_contrast.callbacks import MaskWriter, mask_writer
from wsss_contrast.refine import DenseCRF, WorkerError
from wsss_contrast.refine.processes import ProcessPool

from ..modules.tiny import trainer
from .test_mask_writer import NAMES, images, model, predict, shapes


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "masks"


class Flip:
    """Turns the background and the first class around. Photo after photo is ``at`` 0, 1 and so on."""

    def __init__(self, concurrency: int = 1, at: Callable[[int], None] = lambda _: None) -> None:
        self.concurrency = concurrency
        self.at = at
        self.calls = 0
        self.lock = threading.Lock()

    def __repr__(self) -> str:
        return "Flip()"

    def __call__(self, photos: Tensor, scores: Tensor, present: Tensor) -> Tensor:
        with self.lock:
            number, self.calls = self.calls, self.calls + 1
        self.at(number)
        return scores[:, [1, 0, *range(2, scores.shape[1])]]


@pytest.fixture
def expected(out: Path) -> dict[str, bytes]:
    """The masks of a refiner of one batch at a time."""
    module = model()
    module.refine = Flip()
    predict(out.parent / "one", module)
    return images(out.parent / "one")


@pytest.mark.parametrize("soft", [False, True])
def test_batches_are_refined_side_by_side(soft: bool, out: Path, expected: dict[str, bytes]) -> None:
    """The first two wait for each other."""
    both, threads = threading.Barrier(2), set(threading.enumerate())

    def meet(number: int) -> None:
        if number < 2:
            both.wait(60)

    module = model()
    module.refine = Flip(2, meet)
    assert predict(out, module, soft=soft) == NAMES
    assert images(out) == expected
    assert len(list(out.glob("*.npz"))) == 5 * soft
    assert module.refine.calls == 5
    assert set(threading.enumerate()) <= threads
    assert predict(out, module, soft=soft) == []


class Lazy:
    """In place of threads: works when the result is asked for."""

    submitted: list[Any]
    at_work: list[int]  # how many had been submitted

    def __init__(self, *_: Any, **__: Any) -> None:
        Lazy.submitted, Lazy.at_work = [], []

    def submit(self, function: Callable[[], Tensor]) -> Any:
        def result() -> Tensor:
            Lazy.at_work.append(len(self.submitted))
            return function()

        job = Future[Tensor]()
        job.result = result  # type: ignore[method-assign, assignment]
        self.submitted.append(job)
        return job

    def shutdown(self, **_: Any) -> None:
        pass


@pytest.mark.parametrize(("batch_size", "at_work"), [(1, [5, 5, 5, 5, 5]), (2, [3, 3, 3]), (5, [1])])
def test_no_more_photos_wait_than_are_needed(
    batch_size: int, at_work: list[int], out: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at work and two that wait; with large batches, one batch."""
    monkeypatch.setattr(mask_writer, "ThreadPoolExecutor", Lazy)
    module = model()
    module.refine = Flip(2)
    predict(out, module, shapes(eval_batch_size=batch_size))
    assert Lazy.at_work == at_work
    assert images(out) == expected


def test_masks_are_written_as_soon_as_they_are_there(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed loses little."""

    class Eager(Lazy):
        def submit(self, function: Callable[[], Tensor]) -> Any:
            job: Future[Tensor] = Future()
            job.set_result(function())
            return job

    monkeypatch.setattr(mask_writer, "ThreadPoolExecutor", Eager)
    module, written = model(), []
    module.refine = Flip(2, lambda _: written.append(len(images(out))))
    predict(out, module)
    assert written == [0, 1, 2, 3, 4]


def test_a_photo_that_ends_its_process_is_named(out: Path, expected: dict[str, bytes]) -> None:
    def dies(number: int) -> None:
        if number == 2:
            raise WorkerError("task 0 ended its process", 0)

    for concurrency in (1, 2):
        module = model()
        module.refine = Flip(concurrency, dies)
        with pytest.raises(WorkerError, match=rf"photo {NAMES[2]}: task 0 ended its process"):
            predict(out, module)
        assert not module.masks_later
        assert images(out).keys() == {f"{name}.png" for name in NAMES[:2]}  # in order
        module.refine.at = lambda _: None
        assert predict(out, module) == NAMES[2:]
        assert images(out) == expected
        for path in out.iterdir():
            path.unlink()


def test_without_a_writer_the_step_gives_masks(out: Path) -> None:
    module = model()
    module.refine = Flip(2)
    host = trainer(out.parent)
    found = host.predict(module, datamodule=shapes())
    assert all(torch.is_tensor(prediction["mask"]) for prediction in found)
    host = trainer(out.parent, callbacks=[MaskWriter(str(out))])
    host.predict(module, datamodule=shapes())
    assert not module.masks_later
    assert all(torch.is_tensor(prediction["mask"]) for prediction in trainer(out).predict(module, datamodule=shapes()))


@pytest.mark.skipif(find_spec("pydensecrf") is None, reason="the extra `crf` is not installed")
def test_the_dense_crf_uses_its_processes_for_photos_one_at_a_time(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = model()
    module.refine = DenseCRF()
    predict(out, module)
    both, real = threading.Barrier(2), ProcessPool._call

    def call(self: ProcessPool, number: int, task: Any) -> Any:
        if len(calls) < 2:
            calls.append(threading.get_ident())
            both.wait(60)
        return real(self, number, task)

    calls: list[int] = []
    monkeypatch.setattr(ProcessPool, "_call", call)
    with DenseCRF(processes=2) as module.refine:
        predict(out.parent / "two", module)
    assert len(set(calls)) == 2
    assert images(out) == images(out.parent / "two")
