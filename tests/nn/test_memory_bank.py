"""The memory bank is a list for each class, whatever way the rows come in."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from wsss_contrast.nn import ClassMemoryBank, memory_bank

ROWS = st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=12)


class Lists:
    """First in, first out."""

    def __init__(self, capacities: tuple[int, ...]) -> None:
        self.capacities, self.rows = capacities, [[] for _ in capacities]

    def push(self, rows: Tensor, members: Tensor) -> None:
        for row, classes in zip(rows.tolist(), members.tolist(), strict=True):
            for index, member in enumerate(classes):
                if member:
                    self.rows[index] = [*self.rows[index], row][-self.capacities[index] :]


def contents(bank: ClassMemoryBank) -> list[list[list[float]]]:
    return [bank.rows(index).tolist() for index in range(bank.num_classes)]


def assert_means(bank: ClassMemoryBank, lists: Lists) -> None:
    expected = [torch.tensor(rows, dtype=torch.float64).view(-1, 2).mean(dim=0).nan_to_num() for rows in lists.rows]
    torch.testing.assert_close(bank.means().double(), torch.stack(expected), rtol=1e-6, atol=0)


def numbered(first: int, members: list[list[bool]]) -> tuple[Tensor, Tensor]:
    rows = torch.arange(first, first + len(members)).float()[:, None]
    return torch.cat([rows, -rows], dim=1), torch.tensor(members, dtype=torch.bool).view(-1, 3)


@pytest.fixture(params=["cpu", "device"])
def readable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """What runs on a CPU, and what runs where values cannot be read."""
    if request.param == "device":
        monkeypatch.setattr(memory_bank, "readable", lambda _: False)
    return request.param == "cpu"


@given(st.lists(ROWS, max_size=6), st.integers(1, 6), st.integers(1, 6), st.booleans())
def test_any_split_of_pushes_is_a_list(pushes: list, capacity: int, background: int, fixed: bool) -> None:
    """Wrap-around, several classes a row, no row at all, and more rows than a ring holds; both ways of writing."""
    bank = ClassMemoryBank(3, 2, capacity, background)
    lists = Lists((background, capacity, capacity))
    first = 1
    for members in pushes:
        batch = numbered(first, members)
        with pytest.MonkeyPatch.context() as patch:
            if fixed:
                patch.setattr(memory_bank, "readable", lambda _: False)
            bank.push(*batch)
        lists.push(*batch)
        first += len(members)
        assert contents(bank) == lists.rows
        assert bank.counts.tolist() == [len(rows) for rows in lists.rows]
        assert_means(bank, lists)
        everything = torch.arange(24).repeat(3, 1) / 24
        for index, rows in enumerate(bank.sample(everything).tolist()):
            if lists.rows[index]:
                n = len(lists.rows[index])
                assert rows == [lists.rows[index][k * n // 24] for k in range(24)]


def test_the_fixed_size_way_writes_within_its_bound(readable: bool) -> None:
    """A row of at most two classes, and no more room than that."""
    bank, lists = ClassMemoryBank(3, 2, 4, 5), Lists((5, 4, 4))
    for first in (0, 6, 12):
        batch = numbered(first, [[True, True, False], [False, True, True], [True, False, True]] * 2)
        bank.push(*batch, most=2)
        lists.push(*batch)
        assert contents(bank) == lists.rows


def test_entries_are_the_true_pairs(readable: bool) -> None:
    kept = torch.rand(9, 3, generator=torch.Generator().manual_seed(0)) < 0.4
    row, index, filled = ClassMemoryBank(3, 2)._entries(kept, 3)
    assert torch.stack([row, index], 1)[filled].tolist() == kept.nonzero().tolist()
    assert readable or len(filled) == 27


def test_writing_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_bank, "_CHUNK", 4)
    bank, lists = ClassMemoryBank(3, 2, 5, 7), Lists((7, 5, 5))
    for first in (0, 9):
        batch = numbered(first, [[True, False, True]] * 9)
        bank.push(*batch)
        lists.push(*batch)
    assert contents(bank) == lists.rows


def filled(dtype: torch.dtype = torch.float32, capacity: int = 4) -> ClassMemoryBank:
    """Class 2 has wrapped around, class 1 is empty."""
    bank = ClassMemoryBank(3, 2, capacity, 6, dtype)
    bank.push(*numbered(1, [[k < 3, False, True] for k in range(capacity + 2)]))
    return bank


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    bank = filled(dtype)
    assert bank.storage.dtype == bank.rows(0).dtype == dtype
    assert contents(bank) == contents(filled())
    assert bank.storage.nbytes == filled().storage.nbytes // 2


def test_an_empty_place_is_never_drawn() -> None:
    bank = filled()
    drawn = bank.sample(torch.rand(3, 500, generator=torch.Generator().manual_seed(0)))
    assert (drawn[[0, 2]] != 0).all()
    assert set(drawn[0, :, 0].tolist()) == {1, 2, 3}
    assert set(drawn[2, :, 0].tolist()) == {3, 4, 5, 6}


def test_the_largest_draw_is_the_newest_row() -> None:
    almost = torch.full((3, 1), 1 - 2**-24)
    assert filled().sample(almost)[[0, 2], 0, 0].tolist() == [3, 6]


def test_a_push_writes_its_new_rows_only() -> None:
    bank = filled()
    before, storage = bank.storage.clone(), bank.storage.data_ptr()
    bank.push(torch.tensor([[70.0, 70.0]]), torch.tensor([[True, False, False]]))
    assert bank.storage.data_ptr() == storage
    assert (bank.storage != before).any(dim=1).sum() == 1


def test_rows_that_are_not_finite_are_left_out() -> None:
    bank = ClassMemoryBank(num_classes=2, embedding_dim=2, capacity=4)
    rows = torch.tensor([[1.0, 2.0], [torch.inf, 0.0], [torch.nan, 0.0], [torch.inf, -torch.inf], [3.0, 4.0]])
    bank.push(rows, torch.ones(5, 2, dtype=torch.bool))
    assert bank.rows(1).tolist() == [[1, 2], [3, 4]]
    assert bank.counts.tolist() == [2, 2]


def test_a_push_keeps_no_graph() -> None:
    bank, rows = filled(), torch.ones(1, 2, requires_grad=True)
    bank.push(rows, torch.ones(1, 3, dtype=torch.bool))
    assert not bank.storage.requires_grad
    assert bank.rows(1).tolist() == [[1, 1]]


@pytest.mark.parametrize("capacity", [2, 3, 4, 9])
def test_checkpoint(capacity: int) -> None:
    """Also into a bank of another size: the last rows, as many as fit. A push goes on from there."""
    old = nn.Sequential(nn.Linear(2, 2), filled())
    file = io.BytesIO()
    torch.save(old.state_dict(), file)
    file.seek(0)
    new = nn.Sequential(nn.Linear(2, 2), ClassMemoryBank(3, 2, capacity, capacity, torch.float64))
    new[1].push(torch.full((5, 2), 99.0), torch.ones(5, 3, dtype=torch.bool))  # is forgotten
    assert str(new.load_state_dict(torch.load(file))) == "<All keys matched successfully>"
    lists = Lists((capacity,) * 3)
    lists.rows = [rows[-capacity:] for rows in contents(old[1])]
    assert contents(new[1]) == lists.rows
    batch = numbered(20, [[True, True, False], [True, False, True], [False, False, True]])
    assert_means(new[1], lists)
    new[1].push(*batch)
    lists.push(*batch)
    assert contents(new[1]) == lists.rows
    assert_means(new[1], lists)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_means_are_those_before_the_checkpoint(dtype: torch.dtype) -> None:
    """To the last bit, though the ring has turned round and its rows lie in other places."""
    bank = ClassMemoryBank(3, 50, 7, 11, dtype)
    generator = torch.Generator().manual_seed(0)
    bank.push(torch.randn(17, 50, generator=generator), torch.rand(17, 3, generator=generator) < 0.8)
    other = ClassMemoryBank(3, 50, 7, 11, dtype)
    other.load_state_dict(bank.state_dict())
    assert not torch.equal(other.storage, bank.storage)
    assert torch.equal(other.means(), bank.means())
    assert bank.means().dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)


def test_means_of_half_precision_do_not_overflow() -> None:
    bank = ClassMemoryBank(2, 1, 3, 3, torch.float16)
    bank.push(torch.full((3, 1), 6e4), torch.tensor([[False, True]] * 3))
    assert bank.means().tolist() == [[0], [6e4]]


def test_a_checkpoint_holds_the_rows_there_are() -> None:
    state = filled().state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {"rows": (7, 2), "counts": (3,)}


def test_a_checkpoint_does_not_follow_the_bank() -> None:
    bank = filled()
    state = bank.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    bank.push(torch.ones(5, 2), torch.ones(5, 3, dtype=torch.bool))
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_checkpoints_that_do_not_fit() -> None:
    for other in (ClassMemoryBank(2, 2), ClassMemoryBank(3, 5)):
        before = contents(other)
        with pytest.raises(RuntimeError, match="do not fit a bank of"):
            other.load_state_dict(filled().state_dict())
        assert contents(other) == before
    with pytest.raises(RuntimeError, match=r'Missing key\(s\).*"1\.counts"'):
        nn.Sequential(nn.Identity(), filled()).load_state_dict({"1.rows": torch.zeros(0, 2)})
    bank = filled()
    assert bank.load_state_dict({}, strict=False).missing_keys == ["rows", "counts"]
    assert contents(bank) == contents(filled())


def test_casts_leave_it_alone() -> None:
    network = nn.Sequential(nn.Linear(2, 2), filled())
    for cast in (lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.double()):
        cast(network)
        assert network[0].weight.dtype != torch.float32
        assert network[1].storage.dtype == torch.float32
        assert network[1].counts.dtype == torch.int64
        assert contents(network[1]) == contents(filled())


def test_it_follows_its_module_to_a_device() -> None:
    bank = filled().to("meta")
    assert {v.device.type for v in vars(bank).values() if isinstance(v, Tensor)} == {"meta"}


def test_copies_are_apart() -> None:
    bank = filled()
    other = copy.deepcopy(bank)
    other.push(torch.ones(2, 2), torch.ones(2, 3, dtype=torch.bool))
    assert contents(bank) == contents(filled())


def test_ddp_has_nothing_of_it_to_broadcast() -> None:
    """DDP broadcasts the named buffers in each step, and the whole module's parameters and buffers at the start."""
    bank = ClassMemoryBank(21, 256, 300, 500)
    assert bank.storage.nbytes > 6_000_000
    network = nn.Sequential(nn.BatchNorm2d(2), bank)
    broadcast = [*network.named_buffers(), *network.named_parameters()]
    assert sum(value.nbytes for name, value in broadcast if name.startswith("1.")) == 0
    assert len(broadcast) == 5
    assert sum(value.nbytes for _, value in broadcast) < 100


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_classes": 0}, "`num_classes` must be at least 1, got 0"),
        ({"embedding_dim": 0}, "`embedding_dim` must be at least 1, got 0"),
        ({"capacity": -3}, "`capacity` must be at least 1, got -3"),
        ({"background_capacity": 0}, "`background_capacity` must be at least 1, got 0"),
        ({"dtype": torch.int64}, "`dtype` must be floating, got torch.int64"),
        ({"dtype": "int8"}, "`dtype` must be floating, got int8"),
        ({"dtype": "floaty"}, "`dtype` must be floating, got floaty"),
    ],
)
def test_banks_that_cannot_be(sizes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassMemoryBank(**{"num_classes": 3, "embedding_dim": 2} | sizes)


@pytest.mark.parametrize(
    ("rows", "members", "message"),
    [
        (torch.ones(4, 3), torch.ones(4, 3).bool(), r"`rows` must be floating \(n, 2\), got torch.float32 \(4, 3\)"),
        (torch.ones(4, 2).long(), torch.ones(4, 3).bool(), r"`rows` must be floating.*torch.int64"),
        (torch.ones(4, 2), torch.ones(5, 3).bool(), r"`members` must be bool of shape \(4, 3\), got.*\(5, 3\)"),
        (torch.ones(4, 2), torch.ones(4, 3), r"`members` must be bool.*torch.float32"),
    ],
)
def test_rows_that_do_not_fit(rows: Tensor, members: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        filled().push(rows, members)


def test_draws_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"`draws` must be of shape \(3, M\), got \(2, 5\)"):
        filled().places(torch.rand(2, 5))


def test_defaults_are_those_of_the_method() -> None:
    assert ClassMemoryBank(3, 1).capacities == (50_000, 30_000, 30_000)
    assert "capacities=(6, 4, 4), embedding_dim=2, dtype=torch.float32" in repr(filled())
