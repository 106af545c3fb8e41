"""The scripts in `examples/many_nodes` train a packaged configuration, on two nodes that are this machine twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.test_cli import TINY
from tests.test_examples import free_port

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "examples" / "many_nodes"
SECONDS = 240  # most that a run may take; it takes some 20
# srun on two nodes with a task each. As with `--kill-on-bad-exit`, no task outlives another that fails.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
trap 'kill -KILL $(jobs -p) 2>/dev/null' EXIT
for node in 0 1; do
  SLURM_NTASKS=2 SLURM_PROCID=$node SLURM_NODEID=$node SLURM_LOCALID=0 "$@" &
done
wait -n && wait -n
"""

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or not torch.distributed.is_available(), reason="needs bash and torch.distributed"
)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty working directory, with the programs that the scripts call, of this Python, in `bin`."""
    path = tmp_path_factory.mktemp("cwd")
    (path / "bin").mkdir()
    programs = {
        name: f'#!/usr/bin/env bash\nexec "{sys.executable}" -m {module} "$@"\n'
        for name, module in (("torchrun", "torch.distributed.run"), ("wsss-contrast", "wsss_contrast.cli"))
    }
    for name, text in (programs | {"srun": SRUN}).items():
        (path / "bin" / name).write_text(text)
        (path / "bin" / name).chmod(0o755)
    return path


def options(root: Path) -> list[str]:
    """An epoch of SEAM with PPC on the three photos of ``root``, with validation."""
    tiny = TINY | {
        "data.init_args.root": str(root),
        "data.init_args.batch_size": "1",
        "model.init_args.view_size": "24",
        "trainer.max_epochs": "1",
        "trainer.check_val_every_n_epoch": "1",
    }
    return ["--config", "seam_ppc", *(f"--{key}={value}" for key, value in tiny.items())]


def run(script: str, arguments: list[str], folder: Path, times: int, **variables: str) -> str:
    """Run a script so many times side by side; what they wrote. None of their processes outlives the call."""
    of_a_cluster = ("SLURM_", "PET_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_RANK")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(of_a_cluster)}
    environment |= {
        "PATH": os.pathsep.join([str(folder / "bin"), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    log, until, started = folder / "log.txt", time.monotonic() + SECONDS, []
    try:
        with log.open("w") as written:
            for _ in range(times):
                command = ["bash", str(SCRIPTS / script), *arguments]
                started.append(
                    subprocess.Popen(
                        command,
                        cwd=folder,
                        env=environment,
                        stdout=written,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        while None in (ends := [process.poll() for process in started]) and not any(ends):
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)  # which torchrun passes on to its workers
        for process in started:
            process.wait(timeout=60)
    assert ends == [0] * times, log.read_text()
    return log.read_text()


def check(folder: Path, written: str) -> None:
    """Two processes shared the three photos: two steps each, and a threshold from all."""
    assert "MEMBER: 1/2" in written
    assert "MEMBER: 2/2" in written
    checkpoint = torch.load(folder / "runs" / "seam_ppc" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2


@pytest.mark.parametrize("script", sorted(SCRIPTS.iterdir()), ids=lambda script: script.name)
def test_script_is_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=60)
    assert os.access(script, os.X_OK)


def test_torchrun(voc_root: Path, folder: Path) -> None:
    place = {"NODES": "2", "DEVICES": "1", "MAIN": f"localhost:{free_port()}"}
    check(folder, run("torchrun.sh", options(voc_root), folder, times=2, PET_LOCAL_ADDR="localhost", **place))


def test_slurm(voc_root: Path, folder: Path) -> None:
    """With what sbatch sets for `--nodes=2 --ntasks-per-node=1`, and a port that is free, not the job's."""
    job = {"JOB_ID": "1", "JOB_NAME": "wsss_contrast", "NODELIST": "localhost", "CPUS_PER_TASK": "1"}
    size = {"NNODES": "2", "NTASKS_PER_NODE": "1"}
    given = {f"SLURM_{name}": value for name, value in (job | size).items()}
    check(folder, run("slurm.sh", options(voc_root), folder, times=1, MASTER_PORT=str(free_port()), **given))
