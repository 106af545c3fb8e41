"""ResNet38d as a model of timm and as a backbone, by shapes: it has 105 million weights. Values are in conformance."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from wsss_contrast.modules import SEAM
from wsss_contrast.nn import ResNet38d, TimmBackbone, convert_mxnet_weights

pytestmark = pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter.*")


@pytest.fixture(autouse=True)
def without_memory() -> Iterator[None]:
    with torch.device("meta"):
        yield


def image() -> Tensor:
    return torch.empty(2, 3, 72, 56)


def test_timm_makes_it() -> None:
    net = timm.create_model("resnet38d")
    assert isinstance(net, ResNet38d)
    assert net(image()).shape == (2, 1000)
    assert net.forward_features(image()).shape == (2, 4096, 9, 7)
    assert net.forward_head(torch.empty(2, 4096, 9, 7), pre_logits=True).shape == (2, 4096)
    net.reset_classifier(6)
    assert net.get_classifier().out_features == 6
    assert net(image()).shape == (2, 6)
    assert timm.create_model("resnet38d", num_classes=0)(image()).shape == (2, 4096)
    assert "resnet38d" in timm.list_models()
    with pytest.raises(RuntimeError, match="resnet38d"):
        timm.create_model("resnet38d", pretrained=True)


@pytest.mark.parametrize(
    ("import_", "made"),
    [
        ("from wsss_contrast.nn import ResNet38d", "timm.create_model('resnet38d')"),
        ("from wsss_contrast.nn import DeepLabV3Plus", "timm.create_model('resnet38d')"),
        ("from wsss_contrast.modules import CAM", "CAM(2, 'resnet38d', None, None)"),
    ],
)
def test_a_new_process_knows_it(import_: str, made: str) -> None:
    """After the import that the documentation names, and wherever the library takes a backbone's name."""
    code = f"import timm, torch\n{import_}\nwith torch.device('meta'): {made}"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.parametrize(
    ("pool", "width", "expected"),
    [("avg", 4096, 2.0), ("max", 4096, 5.0), ("avgmax", 4096, 3.5), ("catavgmax", 8192, None)],
)
def test_pooling(pool: str, width: int, expected: float | None) -> None:
    net = timm.create_model("resnet38d", num_classes=6, global_pool=pool)
    assert net.head_hidden_size == net.get_classifier().in_features == width
    assert net(image()).shape == (2, 6)
    net.reset_classifier(0)
    assert net(image()).shape == (2, width)
    pooled = net.forward_head(torch.tensor([1.0, 5.0, 1.0, 1.0], device="cpu").view(1, 1, 2, 2).expand(1, 4096, 2, 2))
    assert expected is None or bool((pooled == expected).all())


def test_without_pooling_there_is_no_classifier() -> None:
    net = timm.create_model("resnet38d", num_classes=0, global_pool="")
    assert net(image()).shape == (2, 4096, 9, 7)
    with pytest.raises(ValueError, match="can't tell 6 classes of a map that is not pooled"):
        net.reset_classifier(6)
    net.reset_classifier(6, "avg")
    assert net(image()).shape == (2, 6)


def test_number_of_weights() -> None:
    """With PPC's heads 105.88 million, as is published."""
    net = timm.create_model("resnet38d", num_classes=0)
    heads = 4096 * (21 + 128) + 512 * 64 + 1024 * 128 + 195 * 192
    assert round((sum(p.numel() for p in net.parameters()) + heads) / 1e6, 2) == 105.88


def test_maps_that_the_papers_tap() -> None:
    net = timm.create_model("resnet38d", num_classes=0)
    last, maps = net.forward_intermediates(image())
    shapes = [tuple(level.shape) for level in maps]
    assert shapes == [
        (2, 64, 72, 56),
        (2, 128, 36, 28),
        (2, 256, 18, 14),
        (2, 512, 9, 7),
        (2, 1024, 9, 7),
        (2, 4096, 9, 7),
    ]
    info = [(level["num_chs"], 72 // level["reduction"]) for level in net.feature_info]
    assert info == [(shape[1], shape[2]) for shape in shapes]
    assert last.shape == maps[-1].shape
    for indices, widths in ((2, [1024, 4096]), ([3, -2], [512, 1024]), ([1], [128])):
        chosen = net.forward_intermediates(image(), indices, intermediates_only=True, stop_early=True)
        assert [level.shape[1] for level in chosen] == widths
    for none in (0, 7, [9], [-7]):
        with pytest.raises(AssertionError, match="out of range"):
            net.forward_intermediates(image(), none)
    with pytest.raises(ValueError, match="NCHW, got output_fmt='NLC'"):
        net.forward_intermediates(image(), output_fmt="NLC")


def test_stopping_early_leaves_out_the_rest() -> None:
    net, ran = timm.create_model("resnet38d", num_classes=0), []
    for name in ("b4", "b5"):
        net.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    net.forward_intermediates(image(), [2], stop_early=True, intermediates_only=True)
    assert ran == ["b4"]


@pytest.mark.parametrize("indices", [None, 2, (0, 2), (1, -2)])
def test_features_only(indices: Any) -> None:
    """The maps of the whole network, of what they need alone: each parameter gets a gradient, as DDP wants."""
    options = {} if indices is None else {"out_indices": indices}
    net = timm.create_model("resnet38d", features_only=True, **options)
    maps = net(image())
    wanted = list(indices) if isinstance(indices, tuple) else indices
    whole = timm.create_model("resnet38d", num_classes=0)
    expected = whole.forward_intermediates(image(), wanted, intermediates_only=True)
    assert [level.shape for level in maps] == [level.shape for level in expected]
    assert net.feature_info.channels() == [level.shape[1] for level in maps]
    assert [72 // level.shape[2] for level in maps] == net.feature_info.reduction()
    assert {name.removeprefix("model.") for name in net.state_dict()} <= whole.state_dict().keys()
    sum(level.sum() for level in maps).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_features_only_have_the_values_of_the_network() -> None:
    """Of the first blocks, which are small."""
    net = timm.create_model("resnet38d", features_only=True, out_indices=(0, 1)).to_empty(device="cpu").eval()
    whole = timm.create_model("resnet38d", num_classes=0).eval()
    with torch.device("cpu"):
        generator = torch.Generator().manual_seed(0)
        for value in net.state_dict().values():
            value.copy_(torch.rand(value.shape, generator=generator) / 10 + 0.1)
        for name in ("conv1a", "b2", "b2_1", "b2_2", "b3"):
            whole.get_submodule(name).to_empty(device="cpu")
        whole.load_state_dict(net.model.state_dict(), strict=False)
        photo = torch.rand(1, 3, 16, 16, generator=generator)
        with torch.no_grad():
            maps, expected = (
                net(photo),
                whole.forward_intermediates(photo, [0, 1], stop_early=True, intermediates_only=True),
            )
    assert [tuple(level.shape) for level in maps] == [(1, 64, 16, 16), (1, 128, 8, 8)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(maps, expected, strict=True))


def test_checkpointing_computes_blocks_again() -> None:
    """In the backward pass, with the same gradients; of the first blocks, which are small."""
    net = timm.create_model("resnet38d", features_only=True, out_indices=(0, 1)).to_empty(device="cpu").eval()
    with torch.device("cpu"):
        generator = torch.Generator().manual_seed(0)
        for value in net.state_dict().values():
            value.copy_(torch.rand(value.shape, generator=generator) / 10 + 0.1)
        photo, ran, found = torch.rand(1, 3, 16, 16, generator=generator), [], []
        net.model.b2_1.register_forward_pre_hook(lambda *_: ran.append("b2_1"))
        for enable in (False, True):
            net.model.set_grad_checkpointing(enable)
            loss = sum(level.square().mean() for level in net(photo))
            found.append(torch.autograd.grad(loss, list(net.parameters())))
    assert len(ran) == 3
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_groups_by_depth() -> None:
    net = timm.create_model("resnet38d")
    for coarse, expected in (
        (True, ["conv1a", *(f"b{stage}" for stage in range(2, 8)), "bn7", "linear1000"]),
        (False, ["conv1a", *net.blocks, "bn7", "linear1000"]),
    ):
        layers = group_parameters(net, net.group_matcher(coarse), reverse=True)
        of_block = {name.split(".")[0]: layer for name, layer in layers.items()}
        assert [of_block[name] for name in expected] == list(range(len(expected)))
    assert of_block["b2_1"] == 2


def test_is_a_backbone() -> None:
    for output_stride in (None, 8):
        backbone = TimmBackbone("resnet38d", None, output_stride)
        assert (backbone.out_channels, backbone.low_channels) == (4096, (512, 1024))
        last, low = backbone(image())
        assert last.shape == (2, 4096, 9, 7)
        assert [level.shape[1] for level in low] == [512, 1024]
    assert TimmBackbone("resnet38d", None, None, low_strides=(4,)).low_channels == (256,)
    with pytest.raises(ValueError, match="timm has no weights of `resnet38d`; give `weights` a file, or None"):
        TimmBackbone("resnet38d", "timm", None)
    with pytest.raises(ValueError, match=r"`resnet38d` has no output stride 16; .*output stride of 8"):
        TimmBackbone("resnet38d", None, 16)
    module = SEAM(20, backbone="resnet38d", weights=None, output_stride=None)
    assert module.pcm.reduce[0].weight.shape == (64, 512, 1, 1)


def mxnet_names(net: nn.Module) -> dict[str, Tensor]:
    """A state dict under MXNet's names, of tensors that take no room."""
    state = {}
    for name, value in net.state_dict().items():
        *path, kind = name.split(".")
        if kind == "num_batches_tracked":
            continue
        kind = {"bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}.get(kind, kind)
        of_norm = "bn" in path[-1]
        kind = "gamma" if of_norm and kind == "weight" else kind
        if len(path) == 2:
            stage, _, number = path[0][1:].partition("_")
            layer, branch = path[1].split("_")
            path = [("bn" if layer == "bn" else "res") + stage + (f"b{number}" if number else "a"), branch]
        prefix = "aux" if kind.startswith("moving") else "arg"
        state[f"{prefix}:{'_'.join([*path, kind])}"] = torch.zeros(1, device="cpu").expand(value.shape)
    return state


def test_public_weights_are_converted(tmp_path: Path) -> None:
    net = timm.create_model("resnet38d", num_classes=0)
    state = mxnet_names(net)
    assert {"arg:res2a_branch2a_weight", "arg:bn4b5_branch2b1_beta", "aux:bn7_moving_var"} <= state.keys()
    converted = convert_mxnet_weights(state | {"arg:linear1000_weight": torch.zeros(1)})
    expected = {name for name in net.state_dict() if not name.endswith("num_batches_tracked")}
    assert converted.keys() == expected
    assert convert_mxnet_weights(converted).keys() == expected  # names of PyTorch stay

    torch.save(state, tmp_path / "resnet38d.pth")
    backbone = TimmBackbone("resnet38d", str(tmp_path / "resnet38d.pth"), None)
    learning = {name.split(".")[0] for name, p in backbone.net.named_parameters() if p.requires_grad}
    assert learning == {name for name in backbone.net.blocks if not name.startswith("b2")}
    assert not any(isinstance(m, nn.BatchNorm2d) and m.weight.requires_grad for m in backbone.modules())


def test_other_weights_are_refused(tmp_path: Path) -> None:
    others = ("layer1.0.weight", "res2c_branch2a_weight", "res4a5_branch2a_weight", "arg:res4b_branch1_weight")
    no_blocks = ("res9a_branch2a_weight", "bn4b6_branch2a_gamma", "b9.conv_branch2a.weight", "b4_6.bn_branch2a.weight")
    for name in (*others, *no_blocks, 1):
        with pytest.raises(ValueError, match=f"`{name}` is no weight of ResNet38d"):
            convert_mxnet_weights({name: torch.zeros(1)})
    for nothing in ({}, {"linear1000_weight": torch.zeros(1)}):
        with pytest.raises(ValueError, match="there is no weight of ResNet38d"):
            convert_mxnet_weights(nothing)
    torch.save({"fc.weight": torch.zeros(1, device="cpu")}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: no state dict of this timm model: `fc.weight` is no weight"):
        TimmBackbone("resnet38d", str(tmp_path / "other.pth"), None)
    torch.save({"conv1a.weight": torch.zeros(1, device="cpu").expand(64, 3, 3, 3)}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"part\.pth: no state dict of this timm model: Error.*\n.*Missing key"):
        TimmBackbone("resnet38d", str(tmp_path / "part.pth"), None)
