"""Two gloo processes that shard their host by FSDP2: ``python -m tests.callbacks.sharded_case none|contrast|teacher``.

Prints what attaching says in each process, or that it trained.
"""

from __future__ import annotations

import sys

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard

from wsss_contrast.callbacks import EMATeacherCallback

from .hosts import TwoView, loader, ppc, trainer


class Sharded(TwoView):
    def configure_model(self) -> None:
        assert self.device_mesh is not None
        fully_shard(self.body, mesh=self.device_mesh["data_parallel"])


if __name__ == "__main__":
    callbacks = {"none": [], "contrast": [ppc()], "teacher": [EMATeacherCallback("body")]}[sys.argv[1]]
    try:
        trainer(callbacks, devices=2, strategy=ModelParallelStrategy()).fit(Sharded(), loader())
        print("trained\n", end="", flush=True)
    except ValueError as error:
        print(f"{error}\n", end="", flush=True)
