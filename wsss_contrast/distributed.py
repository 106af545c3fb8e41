"""What several processes share: the collectives, no-ops without a process group."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def all_gather(x: Tensor) -> Tensor:
    """Stack a tensor of equal shape on every rank into (W, ...), in rank order. No gradient flows."""
    if world_size() == 1:
        return x.detach()[None]
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.stack(parts)


def joined_mean(total: Tensor, count: Tensor) -> Tensor:
    """A rank's share of the mean over the joined batch, times the number of ranks; 0 with a graph of nothing.

    The mean over ranks, which DDP takes of gradients, is then the mean of one process on the joined batch.

    Args:
        total: sum over this rank's elements, a scalar with a graph.
        count: their number.
    """
    return total * world_size() / all_gather(count).sum(dim=0).clamp_min(1)


def all_gather_rows(x: Tensor) -> tuple[Tensor, int]:
    """Concatenate the rows of every rank, in rank order. No gradient flows.

    Ranks may have different numbers of rows, also none. The numbers are exchanged first: the one place where a step on
    several processes waits for the device.

    Args:
        x: (n, ...), n may differ between ranks.

    Returns:
        The rows of all ranks, and the place where this rank's own begin.
    """
    if world_size() == 1:
        return x.detach(), 0
    counts = [int(n) for n in all_gather(torch.tensor([x.shape[0]], device=x.device)).flatten().tolist()]
    padding = [0, 0] * (x.dim() - 1) + [0, max(counts) - x.shape[0]]
    padded = all_gather(F.pad(x.detach(), padding))
    joined = torch.cat([part[:n] for part, n in zip(padded, counts, strict=True)])
    return joined, sum(counts[: rank()])
