"""Work in processes that may die."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import islice
from typing import Any

_TRIES = 2
_AHEAD = 2  # tasks a process: one that runs and one that waits, so that it need not wait for us


class WorkerError(RuntimeError):
    """A task ended its process twice, as one that needs too much memory does.

    Args:
        message: what happened.
        number: the task's place in the call, from 0.
    """

    def __init__(self, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.number = number


class ProcessPool:
    """Calls a function in several processes, in order, and calls again where a process died.

    Each process is an executor of its own: one that dies takes no other's work with it, where a shared pool would fail
    (``ProcessPoolExecutor``) or wait for ever (``multiprocessing.Pool``). A process that dies between two tasks is
    nobody's fault, and one whose parent was killed ends as well.

    Args:
        function: a function of a module, so that processes find it.
        processes: how many.
    """

    def __init__(self, function: Callable[..., Any], processes: int) -> None:
        if processes < 1:
            raise ValueError(f"`processes` must be at least 1, got {processes}")
        self.function = function
        self.processes = processes
        self._workers = [_Worker() for _ in range(processes)]
        self._free = list(self._workers)
        self._threads = ThreadPoolExecutor(processes)  # each waits for a process
        self._answered = False

    def map(self, tasks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """The results of ``function(*task)``, in order. No more tasks are taken than the processes can soon work on.

        Several threads may do this at once; they share the processes.

        Raises:
            WorkerError: a task ended its process twice; names its number, from 0.
        """
        jobs: deque[Future[Any]] = deque()
        remaining = enumerate(tasks)
        try:
            while True:
                for number, task in islice(remaining, _AHEAD * self.processes - len(jobs)):
                    jobs.append(self._threads.submit(self._call, number, task))
                if not jobs:
                    return
                yield jobs.popleft().result()
        finally:
            for job in jobs:
                job.cancel()

    def close(self) -> None:
        """End the processes, once each has done what it is doing."""
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def _call(self, number: int, task: tuple[Any, ...]) -> Any:
        worker = self._free.pop()  # as many as threads, so one is free
        try:
            for attempt in range(1, _TRIES + 1):
                try:
                    result = worker.start(self.function, task).result()
                except BrokenProcessPool as error:
                    if attempt == _TRIES:
                        raise WorkerError(self._death(number), number) from error
                else:
                    self._answered = True
                    return result
        finally:
            self._free.append(worker)

    def _death(self, number: int) -> str:
        # Without the guard, a process runs the script again, and ends where it would start processes of its own.
        guard = "" if self._answered else "; a script that uses processes must start under `if __name__ == '__main__':`"
        return f"task {number} ended its process {_TRIES} times, as one that needs too much memory does{guard}"


class _Worker:
    """A process that is started when there is work, and started again where it died."""

    executor: ProcessPoolExecutor | None = None

    def start(self, function: Callable[..., Any], task: tuple[Any, ...]) -> Future[Any]:
        if self.executor is not None:
            with suppress(BrokenProcessPool):  # of an earlier task, or it died while it had none
                return self.executor.submit(function, *task)
            self.close()
        # Not a fork: this process has threads (torch), and a fork may inherit their locks.
        spawn = multiprocessing.get_context("spawn")
        self.executor = ProcessPoolExecutor(1, mp_context=spawn, initializer=_end_with_parent)
        return self.executor.submit(function, *task)

    def close(self) -> None:
        if self.executor is not None:
            self.executor.shutdown()
            self.executor = None


def _end_with_parent() -> None:
    """A parent that is killed ends nobody, and its processes would wait for work for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
