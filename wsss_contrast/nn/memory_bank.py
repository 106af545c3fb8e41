"""A memory of past features, a ring for each class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wsss_contrast import distributed
from wsss_contrast._checks import check_below_one, check_mask, check_whole, kind, shape_of
from wsss_contrast.functional.maps import full_precision, readable

_CHUNK = 2**18  # elements that are written at a time on a CPU: they stay in its cache


class ClassMemoryBank(nn.Module):
    """The last rows of each class, first in, first out (CSRM, Sec. 3.4; U2PL).

    The memory is allocated once. A push writes its new rows and nothing else, a draw copies the drawn rows and
    nothing else, and an empty place is never drawn.

    The content is part of the ``state_dict``: the rows there are, oldest first. It follows the module to a device, but
    it is no parameter and no buffer, so DDP does not broadcast it in each step (0.65 GB at full size), an average of
    weights leaves it alone, and ``half()`` does not change its type.

    Args:
        num_classes: C, with the background, which is class 0.
        embedding_dim: D.
        capacity: most rows of a foreground class.
        background_capacity: most rows of the background.
        dtype: of the rows, or torch's name of it; half precision saves memory. Give rows of unit length then.

    Distributed contract: every rank writes the rows of all ranks, in rank order, so that the banks are the same
    everywhere and the same as that of one process on the joined batch. Every rank must push, if need be no row.

    >>> bank = ClassMemoryBank(num_classes=2, embedding_dim=1, capacity=2)
    >>> bank.push(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[False, True]] * 3))
    >>> bank.rows(1).flatten()
    tensor([2., 3.])
    """

    keep_out_of_teacher = True

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        capacity: int = 30_000,
        background_capacity: int = 50_000,
        dtype: torch.dtype | str = torch.float32,
    ) -> None:
        super().__init__()
        sizes = {"num_classes": num_classes, "embedding_dim": embedding_dim, "capacity": capacity}
        for name, value in {**sizes, "background_capacity": background_capacity}.items():
            check_whole(**{name: value})
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        of_rows = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not isinstance(of_rows, torch.dtype) or not of_rows.is_floating_point:
            raise ValueError(f"`dtype` must be floating, got {dtype}")
        self.capacities = (background_capacity, *[capacity] * (num_classes - 1))
        self._capacity = torch.tensor(self.capacities)
        self._first = self._capacity.cumsum(0) - self._capacity  # where a class's ring begins
        self._storage = torch.zeros(sum(self.capacities) + 1, embedding_dim, dtype=of_rows)  # the last: to discard
        self._count = torch.zeros(num_classes, dtype=torch.long)
        self._next = torch.zeros(num_classes, dtype=torch.long)  # the place in the ring to write at

    @property
    def num_classes(self) -> int:
        return len(self.capacities)

    @property
    def embedding_dim(self) -> int:
        return self._storage.shape[1]

    @property
    def counts(self) -> Tensor:
        """(C,), rows of each class."""
        return self._count

    @property
    def storage(self) -> Tensor:
        """All rows, (rows, D), for indices of :meth:`places`. Not to be written to."""
        return self._storage

    def rows(self, index: int) -> Tensor:
        """A copy of the rows of a class, (n, D), oldest first. Waits for the device."""
        n = int(self._count[index])
        order = torch.arange(n, device=self._storage.device)
        return self._storage[self._place(torch.tensor([index], device=order.device), order[None])[0]]

    def means(self) -> Tensor:
        """The mean row of each class, (C, D), in float32 for half-precision rows; zeros for an empty class.

        Copies all rows, so it is meant for small rings, of some 50 rows a class. It does not wait for the device.
        """
        # Oldest first: a bank that was saved and loaded adds in the same order, to the same last bit.
        order = torch.arange(max(self.capacities), device=self._storage.device).expand(self.num_classes, -1)
        rows = full_precision(self._storage[self._place(torch.arange(self.num_classes, device=order.device), order)])
        filled = order < self._count[:, None]
        return torch.where(filled[..., None], rows, 0.0).sum(dim=1) / self._count.clamp_min(1)[:, None]

    def extra_repr(self) -> str:
        return f"capacities={self.capacities}, embedding_dim={self.embedding_dim}, dtype={self._storage.dtype}"

    @torch.no_grad()
    def push(self, rows: Tensor, members: Tensor, most: int | None = None) -> None:
        """Append rows to the rings of their classes, in order; the oldest make room.

        Rows that are not finite are left out: one would spoil each later draw of it.

        Args:
            rows: (n, D).
            members: (n, C) bool; a row goes to each class that it is a member of.
            most: how many classes a row is a member of at most; by default all. On a device it bounds the work, which
                cannot wait for the true number.

        Raises:
            ValueError: shapes or types that do not fit, a negative ``most``.
        """
        fits = isinstance(rows, Tensor) and rows.dim() == 2 and rows.shape[1] == self.embedding_dim
        if not fits or not rows.is_floating_point():
            raise ValueError(f"`rows` must be floating (n, {self.embedding_dim}), got {kind(rows)}")
        check_mask((len(rows), self.num_classes), members=members)
        if most is not None:
            check_whole(most=most)
            if most < 0:
                raise ValueError(f"`most` must not be negative, got {most}")
        rows = rows.detach().to(self._storage.dtype)
        rows, members = self._joined(rows, members & rows.sum(dim=1).isfinite()[:, None])
        if len(rows) == 0:
            return
        order = members.cumsum(0, dtype=torch.int32)  # 1 for a class's first row
        new = order[-1].long()
        # Of more rows than a ring holds, only the last are written.
        kept = members & (order > new - self._capacity)
        row, index, filled = self._entries(kept, self.num_classes if most is None else most)
        place = self._first[index] + (self._next[index] + order[row, index] - 1) % self._capacity[index]
        place = torch.where(filled, place, len(self._storage) - 1)
        chunk = max(_CHUNK // self.embedding_dim, 1) if rows.device.type == "cpu" else len(rows)
        for part, of_part in zip(place.split(chunk), row.split(chunk), strict=True):
            self._storage.index_copy_(0, part, rows[of_part])
        self._next = (self._next + new) % self._capacity
        self._count = torch.minimum(self._count + new, self._capacity)

    def places(self, draws: Tensor) -> Tensor:
        """Where in :attr:`storage` the rows lie that random numbers choose.

        Args:
            draws: (C, M) in [0, 1); row c draws from class c, evenly and with replacement.

        Returns:
            (C, M) indices. For an empty class they have no meaning, see :attr:`counts`.
        """
        if not isinstance(draws, Tensor) or draws.dim() != 2 or len(draws) != self.num_classes:
            raise ValueError(f"`draws` must be of shape ({self.num_classes}, M), got {shape_of(draws)}")
        check_below_one(draws)
        chosen = torch.minimum((draws * self._count[:, None]).long(), (self._count - 1).clamp_min(0)[:, None])
        return self._place(torch.arange(self.num_classes, device=draws.device), chosen)

    def sample(self, draws: Tensor) -> Tensor:
        """The rows (C, M, D) that random numbers choose, see :meth:`places`; only these are copied."""
        return self._storage[self.places(draws)]

    def _place(self, index: Tensor, order: Tensor) -> Tensor:
        """The indices of rows numbered from the oldest: (n,) classes and (n, M) numbers to (n, M)."""
        oldest = self._next[index] - self._count[index]
        return self._first[index, None] + (oldest[:, None] + order) % self._capacity[index, None]

    def _joined(self, rows: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of all ranks; the members travel as more columns, in one call."""
        if distributed.world_size() == 1:
            return rows, members
        used = members.any(dim=1)  # most pixels are no class's negative
        joined, _ = distributed.all_gather_rows(torch.cat([rows[used], members[used].to(rows.dtype)], dim=1))
        return joined[:, : self.embedding_dim], joined[:, self.embedding_dim :] > 0

    def _entries(self, kept: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
        """The pairs of row and class that are true, and which of the entries are such a pair."""
        flat = kept.flatten()
        if readable(kept):
            pairs = flat.nonzero()[:, 0]
            filled = torch.ones_like(pairs, dtype=torch.bool)
        else:  # a fixed number: to count them would wait for the device
            size = len(kept) * most
            place = torch.where(flat, flat.cumsum(0) - 1, size).clamp_max(size)
            every = torch.arange(len(flat), device=kept.device)
            pairs = torch.zeros(size + 1, dtype=torch.long, device=kept.device).scatter_(0, place, every)[:size]
            filled = torch.arange(size, device=kept.device) < flat.sum()
        return pairs // self.num_classes, pairs % self.num_classes, filled

    # What a buffer would do, without being one.

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        device = fn(torch.empty(0)).device
        for name in ("_capacity", "_first", "_storage", "_count", "_next"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}rows"] = torch.cat([self.rows(index) for index in range(self.num_classes)])
        destination[f"{prefix}counts"] = self._count.clone()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        found = {name: state_dict.get(prefix + name) for name in ("rows", "counts")}
        missing = [prefix + name for name, value in found.items() if value is None]
        missing_keys += missing if strict else []
        if missing:
            return
        rows, counts = found["rows"], found["counts"]
        assert rows is not None
        assert counts is not None
        sizes = counts.tolist()
        if rows.shape != (sum(sizes), self.embedding_dim) or len(sizes) != self.num_classes:
            error_msgs.append(
                f"{prefix}rows: rows {tuple(rows.shape)} of {len(sizes)} classes do not fit a bank of "
                f"{self.num_classes} classes and {self.embedding_dim} columns"
            )
            return
        self._count.zero_()
        self._next.zero_()
        for index, (part, first) in enumerate(zip(rows.split(sizes), self._first.tolist(), strict=True)):
            kept = part[-self.capacities[index] :]  # of a larger bank, the last
            self._storage[first : first + len(kept)] = kept.to(self._storage)
            self._count[index] = len(kept)
            self._next[index] = len(kept) % self.capacities[index]
