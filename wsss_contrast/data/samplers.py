"""Samplers that shard over processes. Both are a ``DistributedSampler``: Lightning leaves them alone."""

from collections.abc import Callable, Iterator, Sized
from itertools import islice
from typing import Any, cast

import torch.distributed as dist
from torch.utils.data import Dataset, DistributedSampler


class EpochSampler(DistributedSampler[tuple[int, int]]):
    """Shuffle by ``(seed, epoch)`` and yield pairs ``(epoch, index)``.

    A dataset that gets the pair knows the epoch, also in a worker process that lives through many epochs.
    Call ``set_epoch`` before each epoch; Lightning does. As in its base class, every process gets the
    same number of images; a few are repeated where the split does not divide.

    A training that was interrupted goes on where it was: ``place``, if it is set, is called when an iterator is made,
    and gives the epoch and how many images of it this process has seen, or ``None`` for what ``set_epoch`` said.

    Args:
        dataset: the dataset to draw from.
        num_replicas: number of processes; by default those of the process group, or 1 without one.
        rank: number of this process; by default the rank in the process group, or 0 without one.
        seed: seed of the order; the same in every process.

    >>> sampler = EpochSampler(range(3))
    >>> sampler.set_epoch(5)
    >>> sorted(sampler)
    [(5, 0), (5, 1), (5, 2)]
    """

    def __init__(
        self,
        dataset: "Dataset[Any] | Sized",
        num_replicas: int | None = None,
        rank: int | None = None,
        seed: int = 0,
    ) -> None:
        num_replicas, rank = _processes(num_replicas, rank)
        super().__init__(cast("Dataset[Any]", dataset), num_replicas, rank, shuffle=True, seed=seed)
        self.place: Callable[[], tuple[int, int] | None] | None = None

    def __iter__(self) -> Iterator[tuple[int, int]]:
        place = None if self.place is None else self.place()
        self.epoch, seen = (self.epoch, 0) if place is None else place
        epoch, indices = self.epoch, cast(Iterator[int], super().__iter__())
        return ((epoch, index) for index in islice(indices, seen, None))


class EvalSampler(DistributedSampler[int]):
    """Shard in order and repeat nothing, so that a metric counts each image once.

    Args:
        dataset: the dataset to evaluate.
        num_replicas: number of processes; by default those of the process group, or 1 without one.
        rank: number of this process; by default the rank in the process group, or 0 without one.
        share: with fewer images than processes, the processes that would have none repeat those of the others. For
            predictions, which may be made twice.

    Raises:
        ValueError: with fewer images than processes, unless they ``share``; a process without a batch would make the
            others wait.

    >>> [list(EvalSampler(range(5), num_replicas=2, rank=rank)) for rank in range(2)]
    [[0, 2, 4], [1, 3]]
    """

    def __init__(
        self,
        dataset: "Dataset[Any] | Sized",
        num_replicas: int | None = None,
        rank: int | None = None,
        share: bool = False,
    ) -> None:
        num_replicas, rank = _processes(num_replicas, rank)
        length = len(cast(Sized, dataset))
        if length < num_replicas and not (share and length):
            raise ValueError(f"{length} images cannot be shared among {num_replicas} processes; use fewer processes")
        super().__init__(cast("Dataset[Any]", dataset), num_replicas, rank, shuffle=False)
        self.indices = range(rank, length, num_replicas) or [rank % length]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def _processes(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    in_group = dist.is_available() and dist.is_initialized()
    if num_replicas is None:
        num_replicas = dist.get_world_size() if in_group else 1
    if rank is None:
        rank = dist.get_rank() if in_group else 0
    return num_replicas, rank
