"""What every loss promises: a graph, right gradients, safe half precision, no waiting for the device."""

from __future__ import annotations

import copy
import itertools
import shutil

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from wsss_contrast import losses
from wsss_contrast.losses import prototype_contrast as contrast
from wsss_contrast.nn import ClassMemoryBank

from .cases import CASES, Case

EVERY_LOSS = pytest.mark.parametrize("name", CASES)
HALF = pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
SYNCHRONISING = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "unique",
    "item",
    "equal.default",
    "is_nonzero",
)


def gradients(case: Case) -> tuple[torch.Tensor | None, ...]:
    leaves = [x for x in case.inputs if x.requires_grad]
    return torch.autograd.grad(case.total(), leaves, allow_unused=True)


def cast(case: Case, dtype: torch.dtype) -> Case:
    return case.to(lambda x: x.to(dtype) if x.is_floating_point() else x)


def test_every_loss_is_here() -> None:
    public = [getattr(losses, name) for name in losses.__all__]
    modules = {thing for thing in public if isinstance(thing, type) and issubclass(thing, nn.Module)}
    assert modules <= {kind for make in CASES.values() for kind in type(make(1).loss).__mro__}


@EVERY_LOSS
def test_gradcheck(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The constants of a loss (prototypes, the maps that ECR follows) are held while its inputs move.

    Of CSRM's total the segmentation is left out: its background is a constant of one term and moves another.
    """
    case = CASES[name](2)
    free = [x for x in case.inputs if x.requires_grad]
    if name.startswith("prototype_contrast"):
        kept = []
        estimate = contrast.functional.estimate_prototypes
        with monkeypatch.context() as patch:
            patch.setattr(contrast.functional, "estimate_prototypes", lambda *x: kept.append(estimate(*x)) or kept[-1])
            case.total()
        turn = itertools.cycle(kept)
        monkeypatch.setattr(contrast.functional, "estimate_prototypes", lambda *_: next(turn))
    if name == "equivariant_cross":
        free = [case.inputs[1], case.inputs[3]]
    if name.startswith("csrm"):
        free = [case.inputs[0], case.inputs[2]]

    def total(*moved: torch.Tensor) -> torch.Tensor:
        queue = list(moved)
        return case.total(*(queue.pop(0) if any(x is y for y in free) else x.detach() for x in case.inputs[:-1]))

    assert torch.autograd.gradcheck(total, free, atol=1e-6)


@EVERY_LOSS
def test_is_a_positive_scalar_with_a_graph(name: str) -> None:
    total = CASES[name](2).total()
    assert total.shape == ()
    assert total > 0
    assert total.dtype == torch.float64
    assert total.requires_grad


@EVERY_LOSS
def test_empty_batch_is_a_zero_with_a_graph(name: str) -> None:
    case = CASES[name](0)
    total = case.total()
    assert total == 0
    assert total.requires_grad
    assert all(g.shape[0] == 0 for g in gradients(case) if g is not None)


@EVERY_LOSS
def test_no_tags_and_dead_maps_give_finite_gradients(name: str) -> None:
    case = CASES[name](2)
    for scale in (0, 1):
        for tag in (0, 1):
            changed = case.to(lambda x, s=scale, t=tag: x * s if x.is_floating_point() else torch.full_like(x, t))
            assert changed.total().isfinite()
            assert changed.total().requires_grad
            assert all(g.isfinite().all() for g in gradients(changed) if g is not None)


@EVERY_LOSS
@HALF
def test_half_precision_inputs_are_computed_in_float32(name: str, half: torch.dtype) -> None:
    exact = CASES[name](2)
    low = cast(exact, half)._replace(keywords=cast(exact, torch.float32).keywords)
    full = cast(low, torch.float32)
    assert low.total().dtype == torch.float32
    torch.testing.assert_close(low.total(), full.total(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(low.total().double(), exact.total(), rtol=0.1, atol=0.02)
    for got, want in zip(gradients(low), gradients(full), strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            assert got.dtype == half
            torch.testing.assert_close(got.float(), want, rtol=0.02, atol=1e-4)


@EVERY_LOSS
@HALF
def test_autocast_changes_nothing(name: str, half: torch.dtype) -> None:
    case = cast(CASES[name](2), torch.float32)
    with torch.autocast("cpu", dtype=half):
        total = case.total()
    assert total.dtype == torch.float32
    assert torch.equal(total, case.total())
    slopes = torch.autograd.grad(total, [x for x in case.inputs if x.requires_grad], allow_unused=True)
    for got, want in zip(slopes, gradients(case), strict=True):
        assert got is want is None or torch.equal(got, want)


@EVERY_LOSS
@HALF
def test_large_half_precision_values_do_not_overflow(name: str, half: torch.dtype) -> None:
    case = CASES[name](2)
    large = case.to(lambda x: (x * 1e4).clamp(-6e4, 6e4).to(half) if x.is_floating_point() else x)
    large = large._replace(keywords=case.keywords)
    assert large.total().isfinite()
    assert all(g.isfinite().all() for g in gradients(large) if g is not None)


@EVERY_LOSS
def test_runs_are_bit_identical(name: str) -> None:
    case = CASES[name](3)
    assert torch.equal(case.total(), case.total())
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(gradients(case), gradients(case), strict=True))


@EVERY_LOSS
def test_inputs_are_left_alone(name: str) -> None:
    case = CASES[name](2)
    before = [x.detach().clone() for x in case.inputs]
    case.total().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, case.inputs, strict=True))


@EVERY_LOSS
def test_memory_layout_does_not_matter(name: str) -> None:
    case = CASES[name](2)
    changed = [
        x.to(memory_format=torch.channels_last) if x.dim() == 4 else x.mT.contiguous().mT for x in case.inputs[:-1]
    ]
    torch.testing.assert_close(case.total(*changed), case.total(), rtol=1e-12, atol=1e-12)


def assert_compiles(case: Case, backend: str) -> None:
    """One graph, and the same values and gradients as without compiling."""
    torch._dynamo.reset()
    case = cast(case, torch.float32)
    compiled = case._replace(loss=copy.copy(case.loss))
    compiled.loss.compile(fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled.total(), case.total(), rtol=1e-5, atol=1e-6)
    for got, want in zip(gradients(compiled), gradients(case), strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


@EVERY_LOSS
def test_traced_in_one_graph_equals_eager(name: str) -> None:
    assert_compiles(CASES[name](2), "aot_eager")


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_equals_eager() -> None:
    assert_compiles(CASES["prototype_contrast"](2), "inductor")


class Operations(TorchDispatchMode):
    """Notes each operation, and each tensor that it moves from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.moves: list[str] = []
        self.blocking: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.names.append(str(function))
        if isinstance(result, torch.Tensor):
            sources = {x.device.type for x in args if isinstance(x, torch.Tensor) and x.dim() > 0}
            if sources and sources != {result.device.type}:
                self.moves.append(str(function))
                if not (kwargs or {}).get("non_blocking", False):
                    self.blocking.append(str(function))
        return result


def synchronising(names: list[str]) -> set[str]:
    return {name for name in names if any(part in name for part in SYNCHRONISING)}


def test_the_recorder_sees_a_synchronisation() -> None:
    with Operations() as operations:
        bool((torch.ones(2) > 0).all())
    assert synchronising(operations.names)


@EVERY_LOSS
def test_forward_does_not_wait_for_the_device(name: str) -> None:
    """On tensors that claim to be on a GPU: reading one raises, and nothing moves between devices."""
    mode = FakeTensorMode()
    case = CASES[name](2).to(mode.from_tensor)
    fake_memory(case.loss, mode)
    with mode:
        case = case.to(lambda x: x.to("cuda"))
        case.loss.to("cuda")
        with Operations() as operations:
            case.total()
            case._replace(keywords={k: v for k, v in case.keywords.items() if k != "draws"}).total()
    assert len(operations.names) > 5
    assert not synchronising(operations.names)
    assert not operations.moves


def fake_memory(loss: nn.Module, mode: FakeTensorMode) -> None:
    for module in loss.modules():
        if isinstance(module, ClassMemoryBank):
            for key, value in vars(module).items():
                if isinstance(value, torch.Tensor):
                    setattr(module, key, mode.from_tensor(value))


@pytest.mark.parametrize("name", ["prototype_contrast", "unreliable_contrast", "csrm"])
def test_forward_with_a_cpu_generator_does_not_wait_for_the_device(name: str) -> None:
    """The random numbers may come from the CPU; the copy must not block."""
    mode = FakeTensorMode()
    case = CASES[name](2).to(mode.from_tensor)
    fake_memory(case.loss, mode)
    with mode:
        case = case.to(lambda x: x.to("cuda"))
        case.loss.to("cuda")
        keywords = {k: v for k, v in case.keywords.items() if k != "draws"}
        case = case._replace(keywords=keywords | {"generator": torch.Generator()})
        with Operations() as operations:
            case.total()
    assert operations.moves
    assert not operations.blocking


@EVERY_LOSS
def test_backward_does_not_wait_for_the_device(name: str) -> None:
    total = CASES[name](2).total()
    with Operations() as operations:
        total.backward()
    assert len(operations.names) > 5
    assert not synchronising(operations.names)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@EVERY_LOSS
def test_cuda_equals_cpu_without_waiting(name: str) -> None:
    case = CASES[name](2)
    on_device = case.to(lambda x: x.cuda())._replace(loss=copy.deepcopy(case.loss).cuda())
    torch.cuda.set_sync_debug_mode("error")
    try:
        total, slopes = on_device.total(), gradients(on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(total.cpu(), case.total(), rtol=1e-9, atol=1e-12)
    for got, want in zip(slopes, gradients(case), strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got.cpu(), want, rtol=1e-8, atol=1e-10)
