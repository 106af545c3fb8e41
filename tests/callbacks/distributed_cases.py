"""Two gloo processes for ``test_distributed.py``: ``python -m tests.callbacks.distributed_cases DIR``.

A process of its own, because forked workers need one whose autograd threads have not started. Each rank
writes what it has after training to ``DIR/CASE-RANK.pt``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy

from wsss_contrast.callbacks import EMATeacherCallback
from wsss_contrast.nn import ClassMemoryBank

from .hosts import DIM, FeatureNorm, Groups, K, OneView, Photos, Spy, TwoView, contrast, loader, ppc, trainer, weights


class Keep(Spy):
    """Writes the weights before and after training."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.start: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start = self.now(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rank = dist.get_rank() if dist.is_initialized() else 0
        found = {"start": self.start, "end": self.now(trainer, pl_module), "losses": self.losses}
        torch.save(found, f"{self.path}-{rank}.pt")

    def now(self, trainer: Any, module: L.LightningModule) -> dict[str, Any]:
        parts = {c.name: state(c.parts) for c in trainer.callbacks if hasattr(c, "parts")}
        parts |= {c.name: state(c.teacher) for c in trainer.callbacks if hasattr(c, "teacher")}
        return {"host": weights(module), "parts": parts}


def state(module: torch.nn.Module) -> list[torch.Tensor]:
    """Copies of weights, buffers and memories."""
    return [value.clone() for value in module.state_dict().values()]


class NoneOnOne(TwoView):
    """Rank 1 skips its second step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 1 and self.global_rank == 1:
            return None
        return self.host_loss(batch)


class NoneOnAll(NoneOnOne):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx == 1 else self.host_loss(batch)


class OneNorm(OneView):
    def __init__(self) -> None:
        super().__init__(norm=True)


class Half(TwoView):
    """Takes its rank's half of a batch. Its batch norm is frozen."""

    def __init__(self) -> None:
        super().__init__(norm=True)
        self.norm.eval()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        world = self.trainer.world_size
        return {key: value.chunk(world)[self.global_rank] for key, value in batch.items()}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02)


def exact(bank: ClassMemoryBank | None = None, **options: Any) -> list[Any]:
    """A contrast without random draws, whose value does not depend on the number of processes, and a teacher."""
    loss = contrast(mine_prototypes=False, sample_pixels=False, bank=bank)
    return [ppc(loss=loss, **options), EMATeacherCallback("body")]


def remembering() -> list[Any]:
    return exact(ClassMemoryBank(K + 1, DIM, 3, 4))


def of_ddp(**options: Any) -> dict[str, Any]:
    return {"strategy": DDPStrategy(start_method="fork", **options)}


WHOLE_BATCHES = {"use_distributed_sampler": False}
JOINED: dict[str, tuple[Callable[[], list[Any]], dict[str, Any]]] = {
    "plain": (exact, {}),
    "memory": (remembering, {}),
    "warm-up": (lambda: exact(warmup_steps=2), {}),
    "accumulated": (remembering, {"accumulate_grad_batches": 2}),
    "static graph": (remembering, of_ddp(static_graph=True)),
    "static graph, warm-up": (lambda: exact(warmup_steps=2), of_ddp(static_graph=True)),
    "no broadcast of buffers": (remembering, of_ddp(broadcast_buffers=False)),
    "bf16": (remembering, {"precision": "bf16-mixed"}),
}
"""Each rank has its half of the batches of four."""
CASES: dict[str, tuple[type[OneView], Any, dict[str, Any]]] = {
    "two_views": (TwoView, lambda: [ppc()], {}),
    "one_view": (OneNorm, lambda: [ppc()], {}),
    "groups": (Groups, lambda: [ppc(lr_factor=3.0), FeatureNorm()], {}),
    "none_on_one": (NoneOnOne, lambda: [ppc(), FeatureNorm()], {}),
    "none_on_one_double": (NoneOnOne, lambda: [ppc()], {"precision": "64-true"}),
    "none_on_all": (NoneOnAll, lambda: [ppc()], {}),
    "same_photos": (TwoView, lambda: [FeatureNorm()], WHOLE_BATCHES),
    "teacher": (Groups, lambda: [EMATeacherCallback("body"), ppc()], {}),
    **{name: (Half, make, WHOLE_BATCHES | options) for name, (make, options) in JOINED.items()},
}


def main(folder: Path) -> None:
    for case, (host, callbacks, options) in CASES.items():
        torch.manual_seed(0)
        run = trainer(
            [*callbacks(), Keep(str(folder / case))],
            steps=4 if case in JOINED else 3,
            devices=2,
            **({"strategy": "ddp_fork"} | options),
        )
        run.fit(host(), loader(Photos(16), batch_size=4 if case in JOINED else 2))
        print("finished", case, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
