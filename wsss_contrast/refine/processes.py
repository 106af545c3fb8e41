"""Work in processes that may die."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

_TRIES = 2
_AHEAD = 2  # tasks a process: one that runs and one that waits, so that it need not wait for us


class ProcessPool:
    """Calls a function in several processes, in order, and calls again where a process died.

    Each process is an executor of its own: one that dies takes no other's work with it, where a shared pool would fail
    (``ProcessPoolExecutor``) or wait for ever (``multiprocessing.Pool``).

    Args:
        function: a function of a module, so that processes find it.
        processes: how many.
    """

    def __init__(self, function: Callable[..., Any], processes: int) -> None:
        if processes < 1:
            raise ValueError(f"`processes` must be at least 1, got {processes}")
        self.function = function
        self.workers = [_Worker() for _ in range(processes)]

    def map(self, tasks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """The results of ``function(*task)``, in order. No more tasks are taken than the processes can soon work on.

        Raises:
            RuntimeError: a task ended its process twice, as one that needs too much memory does; names its number,
                from 0.
        """
        jobs: deque[_Job] = deque()
        remaining = enumerate(tasks)
        try:
            while True:
                while len(jobs) < _AHEAD * len(self.workers):
                    number, task = next(remaining, (0, None))
                    if task is None:
                        break
                    worker = min(self.workers, key=lambda worker: len(worker.jobs))
                    jobs.append(worker.submit(_Job(number, self.function, task)))
                if not jobs:
                    return
                yield jobs.popleft().result()
        finally:
            for job in jobs:
                job.cancel()

    def close(self) -> None:
        """End the processes."""
        for worker in self.workers:
            worker.close()


class _Worker:
    """A process that is started when there is work, and started again where it died."""

    def __init__(self) -> None:
        self.executor: ProcessPoolExecutor | None = None
        self.jobs: list[_Job] = []  # not yet collected, in the order in which they run

    def submit(self, job: _Job) -> _Job:
        job.worker = self
        self.jobs.append(job)
        self._start(job)
        return job

    def restart(self) -> None:
        """Submit what was lost to a new process. The first of it was running when the old one died."""
        self.close()
        lost = [job for job in self.jobs if isinstance(job.future.exception(), BrokenProcessPool)]
        lost[0].deaths += 1
        for job in lost:
            if job.deaths < _TRIES:
                self._start(job)

    def close(self) -> None:
        if self.executor is not None:
            self.executor.shutdown(cancel_futures=True)
            self.executor = None

    def _start(self, job: _Job) -> None:
        if self.executor is None:
            # Not a fork: this process has threads (torch), and a fork may inherit their locks.
            self.executor = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        try:
            job.future = self.executor.submit(job.function, *job.task)
        except BrokenProcessPool as error:  # an earlier job ended it, and nobody has asked for its result yet
            job.future = Future()
            job.future.set_exception(error)


class _Job:
    """A task and what becomes of it."""

    worker: _Worker
    future: Future[Any]

    def __init__(self, number: int, function: Callable[..., Any], task: tuple[Any, ...]) -> None:
        self.number = number
        self.function = function
        self.task = task
        self.deaths = 0

    def result(self) -> Any:
        try:
            while True:
                try:
                    return self.future.result()
                except BrokenProcessPool as error:
                    if self.deaths == _TRIES:
                        raise RuntimeError(f"task {self.number} ended its process {_TRIES} times") from error
                    self.worker.restart()
        finally:
            self.worker.jobs.remove(self)

    def cancel(self) -> None:
        self.future.cancel()
        self.worker.jobs.remove(self)
