"""The teacher follows its student as the equation says, brings nothing else along, and can stand in for it."""

from __future__ import annotations

import functools
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.literal import ema_teacher as literal
from wsss_contrast.nn import ClassMemoryBank, EMATeacher

CSRM = {"copy_steps": 92, "ramp_start": 46}


def network(seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1))
    move(net, generator)
    return net


@torch.no_grad()
def move(net: nn.Module, generator: torch.Generator) -> None:
    """An optimiser's step and a batch, for what matters here."""
    for tensor in net.state_dict().values():
        noise = torch.rand(tensor.shape, generator=generator)
        tensor.copy_(noise if tensor.is_floating_point() else tensor + 1)


def flat(net: nn.Module) -> list[float]:
    return [float(x) for p in net.parameters() for x in p.detach().double().flatten()]


def images(seed: int = 0) -> Tensor:
    return torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


def states(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# The average.


@pytest.mark.parametrize("how", [{}, CSRM, {"copy_steps": 3}, {"copy_steps": 3, "ramp_start": 3}, {"decay": 0.5}])
def test_decay(how: dict[str, Any]) -> None:
    teacher = EMATeacher(nn.Identity(), **how)
    expected = {("most" if name == "decay" else name): value for name, value in how.items()}
    for step in range(1, 300):
        assert teacher.decay_at(step) == pytest.approx(literal.decay(step, **expected), abs=1e-15)


def test_decay_of_the_released_code() -> None:
    teacher = EMATeacher(nn.Identity(), **CSRM)
    assert [teacher.decay_at(step) for step in (1, 92, 93, 145, 690)] == [0, 0, 1 - 1 / 48, 0.99, 0.99]


@pytest.mark.parametrize("how", [{}, {"copy_steps": 2}, {"copy_steps": 3, "ramp_start": 2}])
def test_average(how: dict[str, Any]) -> None:
    net, generator = network(), torch.Generator().manual_seed(1)
    teacher, start, students = EMATeacher(net, **how), flat(net), []
    for step in range(1, 8):
        move(net, generator)
        students.append(flat(net))
        teacher.update(net, step)
        expected = literal.teacher(start, students, **how)
        assert flat(teacher) == pytest.approx(expected, rel=1e-6)
        assert (flat(teacher) == students[-1]) == (step <= how.get("copy_steps", 0))


def test_a_copy_is_exact_whatever_was_there() -> None:
    net = network()
    teacher = EMATeacher(net, copy_steps=5)
    wanted = states(net)
    for value in (float("inf"), float("nan"), 1e30):
        net[0].weight.data.fill_(value)
        teacher.update(net, 1)
        net.load_state_dict(wanted)
        teacher.update(net, 2)
        assert equal(states(teacher.network), wanted)


def test_persistent_buffers_are_copied_and_others_stay() -> None:
    net = network()
    net.register_buffer("cache", torch.ones(1), persistent=False)
    teacher = EMATeacher(net)
    net.train()(images())
    net.cache = torch.zeros(5)  # of another shape, as caches are
    teacher.update(net, 500)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(teacher.network[1], name), getattr(net[1], name))
    assert int(net[1].num_batches_tracked) == 2  # `move`, and a batch
    assert torch.equal(teacher.network.cache, torch.ones(1))


def test_types_that_are_not_averaged_or_are_several() -> None:
    net = nn.Module()
    net.first, net.second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3, dtype=torch.float64))
    net.third = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    net.index = nn.Parameter(torch.zeros(2, dtype=torch.long), requires_grad=False)
    teacher = EMATeacher(net)
    for parameter in net.parameters():
        parameter.data.fill_(4)
    teacher.update(net, 1)
    assert [p.flatten()[0].item() for p in teacher.parameters()] == [2, 2, 2, 4]
    assert [p.dtype for p in teacher.parameters()] == [p.dtype for p in net.parameters()]


def test_shared_weights_are_averaged_once() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    net[1].weight = net[0].weight
    net[0].weight.data.fill_(0)
    teacher = EMATeacher(net)
    net[0].weight.data.fill_(4)
    teacher.update(net, 1)
    assert teacher.network[0].weight is teacher.network[1].weight
    assert torch.equal(teacher.network[0].weight.data, torch.full((2, 2), 2.0))
    with teacher.swapped(net):
        assert (net[1].weight == 2).all()


def test_update_allocates_nothing() -> None:
    class InPlaceOnly(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    net = network()
    teacher = EMATeacher(net, copy_steps=1)
    with InPlaceOnly():
        teacher.update(net, 1)
        teacher.update(net, 2)
    assert set(seen) == {"_foreach_lerp_", "_foreach_copy_"}
    assert len(seen) == 2 + 3  # float and integer tensors; of the second step weights, and both kinds of buffers


# What it is.


def test_is_a_copy_without_gradients() -> None:
    net = network().train()
    before = states(net)
    teacher = EMATeacher(net)
    assert not teacher.training
    assert net.training
    assert equal(states(teacher.network), before)
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in teacher.parameters()}
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in net.parameters())
    x = images().requires_grad_()
    output = teacher(x)
    assert not output.requires_grad
    assert torch.equal(output, net.eval()(x))


def test_forward_hands_on_its_arguments() -> None:
    class Two(nn.Module):
        def forward(self, first: Tensor, *, second: Tensor) -> dict[str, Tensor]:
            return {"difference": first - second}

    assert EMATeacher(Two())(torch.ones(1), second=torch.ones(1))["difference"] == 0


def test_training_mode_turns_dropout_on() -> None:
    teacher = EMATeacher(nn.Dropout(0.5))
    x = torch.ones(100)
    assert torch.equal(teacher(x), x)
    assert (teacher.train()(x) == 0).any()


def test_hooks_of_others_stay_with_the_network() -> None:
    fired: list[str] = []

    class Extractor:
        def keep(self, *_: Any) -> None:
            fired.append("method")

    net, extractor = network(), Extractor()
    net[0].register_forward_hook(lambda *_: fired.append("forward"))
    net[0].register_forward_hook(lambda *_, **__: fired.append("always"), with_kwargs=True, always_call=True)
    net[0].register_forward_hook(extractor.keep)
    net[0].register_forward_pre_hook(functools.partial(lambda *_: fired.append("before")))
    net[2].register_full_backward_hook(lambda *_: fired.append("backward"))
    net[2].register_full_backward_pre_hook(lambda *_: fired.append("backward before"))
    net.register_state_dict_post_hook(lambda *_: fired.append("state"))
    net.register_state_dict_pre_hook(lambda *_: fired.append("state before"))
    net.register_load_state_dict_post_hook(lambda *_: fired.append("load"))
    net.register_load_state_dict_pre_hook(lambda *_: fired.append("load before"))
    teacher = EMATeacher(net)
    teacher(images())
    teacher.load_state_dict(teacher.state_dict())
    with torch.enable_grad():
        teacher.network(images().requires_grad_()).sum().backward()
    assert not fired
    for module in teacher.modules():
        assert not [name for name, found in module.__dict__.items() if name.endswith("_hooks") and found]
    net(images()).sum().backward()
    net.load_state_dict(net.state_dict())
    assert len(set(fired)) == 10  # the network's all do


class Collects(nn.Sequential):
    """Reads its layers by hooks of its own, as timm's feature extractors do."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(2, 2, 1))
        self.collected: list[Tensor] = []
        self[0].register_forward_hook(functools.partial(self.collect, 2.0), with_kwargs=True)

    def collect(self, factor: float, _: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        self.collected.append(output * factor)

    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        return self.collected.pop()


def test_hooks_that_a_network_has_of_itself_come_along() -> None:
    net = Collects()
    teacher = EMATeacher(net)
    assert torch.equal(teacher(images()), net(images()))
    assert not net.collected
    net[0].weight.data.fill_(0)
    net[0].bias.data.fill_(1)
    teacher.update(net, 1)
    assert not torch.equal(teacher(images()), net(images()))


def test_reparametrised_weights() -> None:
    """By a hook that computes them before each pass."""
    net = torch.nn.utils.spectral_norm(nn.Linear(2, 2, bias=False)).eval()
    teacher = EMATeacher(net, copy_steps=1)
    net.weight_orig.data.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    teacher.update(net, 1)
    x = torch.tensor([[1.0, -1.0]])
    assert torch.equal(teacher(x), net(x))


def test_banks_regularizers_and_teachers_are_left_out() -> None:
    net = network()
    net.bank = ClassMemoryBank(num_classes=2, embedding_dim=2, capacity=4)
    net.regularizer_contrast = nn.Linear(2, 2)
    net.regularizer_contrast.register_buffer("state", torch.zeros(1))
    net[0].inner = EMATeacher(nn.Linear(1, 1))
    teacher = EMATeacher(net)
    for left_out in (teacher.network.bank, teacher.network.regularizer_contrast, teacher.network[0].inner):
        assert type(left_out) is nn.Identity
    assert list(teacher.network.state_dict()) == list(network().state_dict())
    net.regularizer_contrast.weight.data.fill_(7)
    net[0].weight.data.fill_(7)
    teacher.update(net, 1000)
    with teacher.swapped(net):
        assert (net.regularizer_contrast.weight == 7).all()
        assert not (net[0].weight == 7).any()
    assert isinstance(net.bank, ClassMemoryBank)


def test_a_checkpoint_goes_on() -> None:
    net, generator = network(), torch.Generator().manual_seed(1)
    teacher = EMATeacher(net)
    teacher.update(net, 1)
    move(net, generator)
    teacher.update(net, 2)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "teacher": teacher.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = network(5)
    resumed = EMATeacher(other)
    other.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["teacher"])
    move(net, generator)
    other.load_state_dict(net.state_dict())
    teacher.update(net, 3)
    resumed.update(other, 3)
    assert equal(states(teacher), states(resumed))


# In place of the network.


@pytest.fixture
def pair() -> tuple[nn.Sequential, EMATeacher]:
    """A network and a teacher that has fallen behind."""
    net = network().eval()
    teacher = EMATeacher(net)
    move(net, torch.Generator().manual_seed(3))
    return net, teacher


def test_swapped(pair: tuple[nn.Sequential, EMATeacher]) -> None:
    net, teacher = pair
    students, teachers, parameters = states(net), states(teacher.network), list(net.parameters())
    theirs = [p.data_ptr() for p in teacher.parameters()]
    assert not equal(students, teachers)
    for _ in range(2):
        with teacher.swapped(net):
            assert equal(states(net), teachers)
            assert equal(states(teacher.network), students)
            assert [p.data_ptr() for p in net.parameters()] == theirs  # and no copies
        assert equal(states(net), students)
        assert equal(states(teacher.network), teachers)
    assert [p.data_ptr() for p in teacher.parameters()] == theirs
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))
    assert not any(p.requires_grad for p in teacher.parameters())


def test_swapped_ends_with_an_exception(pair: tuple[nn.Sequential, EMATeacher]) -> None:
    net, teacher = pair
    students, teachers = states(net), states(teacher.network)
    with pytest.raises(ZeroDivisionError), teacher.swapped(net):
        raise ZeroDivisionError
    assert equal(states(net), students)
    assert equal(states(teacher.network), teachers)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_goes_on_after_swapped(pair: tuple[nn.Sequential, EMATeacher], mode: Any) -> None:
    net, teacher = pair
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        net.train()(images()).square().mean().backward()
        optimizer.step()

    twin = network()
    twin.load_state_dict(net.state_dict())
    other = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for number in (1, 2):
        step()
        with mode(), teacher.swapped(net):
            net.eval()(images())
        teacher.update(net, number)
        other.zero_grad()
        twin.train()(images()).square().mean().backward()
        other.step()
    assert equal(states(net), states(twin))


def test_swapped_under_autocast(pair: tuple[nn.Sequential, EMATeacher]) -> None:
    """Autocast remembers a parameter's cast, which is the other's after the swap."""
    net, teacher = pair
    with torch.autocast("cpu", torch.bfloat16):
        before, expected = net(images()), teacher(images())
        with teacher.swapped(net):
            assert torch.equal(net(images()), expected)
        assert torch.equal(net(images()), before)


# Errors.


def grown(net: nn.Sequential) -> None:
    net.extra = nn.Linear(1, 1)


def shrunk(net: nn.Sequential) -> None:
    del net[2]


def wider(net: nn.Sequential) -> None:
    net[0].weight = nn.Parameter(torch.zeros(3, 2, 3, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (grown, "has `extra.bias`, `extra.weight` that the teacher has not, and lacks nothing"),
        (shrunk, "lacks `2.bias`, `2.weight` that the teacher has"),
        (wider, r"`0.weight` is \(3, 2, 3, 3\) of torch.float32 on cpu in the network, \(3, 2, 1, 1\) of"),
        (lambda net: net.double(), r"`0.weight` is .* of torch.float64 .* of torch.float32"),
        (lambda net: net.to("meta"), r"`0.weight` is .* on meta in the network, .* on cpu in the teacher"),
    ],
)
def test_a_network_that_has_changed(change: Any, message: str) -> None:
    net = network()
    teacher = EMATeacher(net)
    change(net)
    kept = states(teacher)
    with pytest.raises(ValueError, match=message):
        teacher.update(net, 1)
    with pytest.raises(ValueError, match=message), teacher.swapped(net):
        pass
    assert equal(states(teacher), kept)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"decay": 1.5}, r"`decay` must be in \[0, 1\], got 1.5"),
        ({"decay": float("nan")}, "`decay`"),
        ({"copy_steps": -1}, "`copy_steps` must not be negative, got -1"),
        ({"copy_steps": 4, "ramp_start": 5}, "`ramp_start` must be from 0 to `copy_steps`, 4, got 5"),
        ({"ramp_start": -1}, "`ramp_start`"),
    ],
)
def test_arguments(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EMATeacher(network(), **how)


def test_steps_count_from_one() -> None:
    with pytest.raises(ValueError, match="counts optimiser steps from 1, got 0"):
        EMATeacher(network()).update(network(), 0)
