"""Processes that die, between tasks and in them, and a parent that does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from wsss_contrast.refine import WorkerError
from wsss_contrast.refine.processes import ProcessPool

GUARD = "if __name__ == '__main__'"
PATIENCE = 300  # seconds until something that must happen has failed


def work(number: int, folder: str, *dies: int) -> tuple[int, int]:
    """Note the call. The first call of a number in ``dies`` ends the process, and every call of a negative one."""
    calls = Path(folder) / f"{number}_{os.getpid()}"
    calls.touch()
    if -number - 1 in dies or (number in dies and len(list(Path(folder).glob(f"{number}_*"))) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return number, os.getpid()


@pytest.fixture
def pool() -> Iterator[ProcessPool]:
    made = ProcessPool(work, 2)
    yield made
    made.close()


def numbers(results: Any) -> list[int]:
    return [number for number, _ in results]


def test_a_process_that_dies_costs_one_task_a_second_try(pool: ProcessPool, tmp_path: Path) -> None:
    results = list(pool.map((number, str(tmp_path), 3) for number in range(12)))
    assert numbers(results) == list(range(12))
    calls = [int(path.name.split("_")[0]) for path in tmp_path.iterdir()]
    assert sorted(calls) == sorted([*range(12), 3])
    assert len({process for _, process in results}) == 3  # the other process went on


def test_a_task_that_ends_its_process_twice_is_named(pool: ProcessPool, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="task 2 ended its process 2 times, as one that needs too much mem") as caught:
        list(pool.map((number, str(tmp_path), -3) for number in range(5)))
    assert caught.value.number == 2
    assert GUARD not in str(caught.value)  # the script has it: there were results
    assert numbers(pool.map((n, str(tmp_path)) for n in range(5, 9))) == [5, 6, 7, 8]  # and goes on


def test_where_no_process_gives_a_result_the_guard_may_be_missing(tmp_path: Path) -> None:
    pool = ProcessPool(work, 1)
    with pytest.raises(WorkerError) as caught:
        list(pool.map([(0, str(tmp_path), -1)]))
    assert GUARD in str(caught.value)
    pool.close()


def test_a_process_that_dies_without_a_task_costs_no_try(tmp_path: Path) -> None:
    pool = ProcessPool(work, 1)
    ((_, process),) = pool.map([(0, str(tmp_path))])
    os.kill(process, signal.SIGKILL)
    gone(process)
    assert numbers(pool.map([(1, str(tmp_path), 1)])) == [1]  # dies once itself
    pool.close()


def gone(process: int) -> None:
    """Wait until it has ended and the pool knows it."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise AssertionError(f"{process} lives on")


def test_tasks_are_taken_as_they_are_needed(pool: ProcessPool, tmp_path: Path) -> None:
    taken: list[int] = []

    def tasks() -> Any:
        for number in range(40):
            taken.append(number)
            yield number, str(tmp_path)

    results = pool.map(tasks())
    next(results)
    assert len(taken) == 4
    results.close()
    assert numbers(pool.map([(50, str(tmp_path))])) == [50]


def test_threads_share_the_processes(pool: ProcessPool, tmp_path: Path) -> None:
    """A death in one is nothing to the others."""

    def stream(first: int) -> list[tuple[int, int]]:
        return list(pool.map((number, str(tmp_path), 11) for number in range(first, first + 5)))

    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(stream, [0, 10, 20]))
    assert [numbers(results) for results in found] == [list(range(first, first + 5)) for first in (0, 10, 20)]
    assert len({process for results in found for _, process in results}) <= 3


def waits(number: int, folder: str) -> int:
    """Note the call, and wait for a file."""
    (Path(folder) / str(number)).touch()
    ends = time.monotonic() + 20
    while number and not (Path(folder) / "go").exists() and time.monotonic() < ends:
        time.sleep(0.01)
    return os.getpid()


def test_closing_waits_for_the_task_at_work_and_forgets_the_others(tmp_path: Path) -> None:
    pool = ProcessPool(waits, 1)
    results = pool.map((number, str(tmp_path)) for number in range(10))
    process = next(results)
    following = pool._threads.submit(pool._call, 0, (3, str(tmp_path)))  # behind 1
    following.add_done_callback(lambda _: (tmp_path / "go").touch())  # forgotten: 1 may end
    pool.close()
    assert following.cancelled()
    assert {path.name for path in tmp_path.iterdir()} <= {"0", "1", "go"}
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


SCRIPT = """
import os, sys, time
from wsss_contrast.refine.processes import ProcessPool

def pid():
    return os.getpid()

if __name__ == "__main__":
    print(*ProcessPool(pid, 1).map([()]), flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills as only POSIX does")
def test_no_process_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}) as parent:
        assert parent.stdout is not None
        process = int(parent.stdout.readline())
        parent.kill()
        try:
            parent.communicate(timeout=PATIENCE)  # to the end of the output, which the process has inherited
        except subprocess.TimeoutExpired:
            os.kill(process, signal.SIGKILL)
            raise


def fails(number: int) -> int:
    if number == 1:
        raise ValueError("one")
    return number


def test_an_error_comes_through() -> None:
    pool = ProcessPool(fails, 1)
    with pytest.raises(ValueError, match="one"):
        list(pool.map([(0,), (1,), (2,)]))
    assert list(pool.map([(5,)])) == [5]
    pool.close()
    with pytest.raises(ValueError, match=r"processes.*0"):
        ProcessPool(fails, 0)
