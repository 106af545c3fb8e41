"""ResNet38d, the backbone of PSA, SEAM, EPS and PPC, under its own name in timm: ``timm.create_model("resnet38d")``.

timm knows the name after ``from wsss_contrast.nn import ResNet38d``, and where the library takes a backbone's name.

A wide network of 38 layers (Wu, Shen and van den Hengel, 2016) with dilation, of which PSA made the "d" variant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["ResNet38d", "convert_mxnet_weights"]


class _Block(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU."""

    def __init__(
        self, channels: int, width: int, out_channels: int, stride: int = 1, dilations: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        first, second = dilations
        self.bn_branch2a = nn.BatchNorm2d(channels)
        self.conv_branch2a = nn.Conv2d(channels, width, 3, stride, padding=first, dilation=first, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(width)
        self.conv_branch2b1 = nn.Conv2d(width, out_channels, 3, padding=second, dilation=second, bias=False)
        same = channels == out_channels and stride == 1
        self.conv_branch1 = None if same else nn.Conv2d(channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output, and its input after batch norm and ReLU, which the papers tap."""
        activated = self.bn_branch2a(x).relu()
        shortcut = x if self.conv_branch1 is None else self.conv_branch1(activated)
        branch = self.conv_branch2b1(self.bn_branch2b1(self.conv_branch2a(activated)).relu())
        return shortcut + branch, activated


class _Bottleneck(nn.Module):
    """1x1, dilated 3x3 and 1x1 convolutions, each after batch norm and ReLU."""

    def __init__(self, channels: int, widths: tuple[int, int], out_channels: int, dilation: int, drop: float) -> None:
        super().__init__()
        first, second = widths
        self.bn_branch2a = nn.BatchNorm2d(channels)
        self.conv_branch2a = nn.Conv2d(channels, first, 1, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(first)
        self.conv_branch2b1 = nn.Conv2d(first, second, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn_branch2b2 = nn.BatchNorm2d(second)
        self.conv_branch2b2 = nn.Conv2d(second, out_channels, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.dropout = nn.Dropout2d(drop)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As :class:`_Block`."""
        activated = self.bn_branch2a(x).relu()
        branch = self.dropout(self.bn_branch2b1(self.conv_branch2a(activated)).relu())
        branch = self.dropout(self.bn_branch2b2(self.conv_branch2b1(branch)).relu())
        return self.conv_branch1(activated) + self.conv_branch2b2(branch), activated


class _Activated(nn.Module):
    """What is left of a block whose input alone is wanted."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.bn_branch2a = norm

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The input after batch norm and ReLU, twice."""
        activated = self.bn_branch2a(x).relu()
        return activated, activated


_BLOCKS: dict[str, tuple[Any, ...]] = {  # channels, width, output, stride, dilations
    "b2": (64, 128, 128, 2),
    "b2_1": (128, 128, 128),
    "b2_2": (128, 128, 128),
    "b3": (128, 256, 256, 2),
    "b3_1": (256, 256, 256),
    "b3_2": (256, 256, 256),
    "b4": (256, 512, 512, 2),
    **{f"b4_{number}": (512, 512, 512) for number in range(1, 6)},
    "b5": (512, 512, 1024, 1, (1, 2)),
    "b5_1": (1024, 512, 1024, 1, (2, 2)),
    "b5_2": (1024, 512, 1024, 1, (2, 2)),
}


class ResNet38d(nn.Module):
    """ResNet38d, of output stride 8, as a model of timm.

    The maps of :meth:`forward_intermediates` are those that the papers tap: the inputs of the stages b2 to b6 after
    batch norm and ReLU (SEAM's conv4 and conv5 are the last two) and the last map, conv6, of 4096 channels.

    Args:
        num_classes: of the linear classifier; 0 for none.
        in_chans: colours of the image.
        global_pool: ``"avg"``, ``"max"``, ``"avgmax"``, ``"catavgmax"``, or ``""`` for none, which needs no classes.
        drop_rate: dropout before the classifier.
        output_stride: 8; there is no other.

    Raises:
        NotImplementedError: another ``output_stride``.
        ValueError: classes without pooling.
    """

    frozen_stages = ("conv1a", "b2", "b2_1", "b2_2")
    """What SEAM, EPS and PPC do not train; :class:`~wsss_contrast.nn.TimmBackbone` holds it where it has weights."""

    global_pool: Any
    linear1000: nn.Module

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        output_stride: int = 8,
    ) -> None:
        super().__init__()
        if output_stride != 8:
            raise NotImplementedError("ResNet38d has an output stride of 8")
        self.drop_rate = drop_rate
        self.num_features = 4096
        self.grad_checkpointing = False
        self.conv1a = nn.Conv2d(in_chans, 64, 3, padding=1, bias=False)
        self.blocks = [*_BLOCKS, "b6", "b7"]
        for name, sizes in _BLOCKS.items():
            self.add_module(name, _Block(*sizes))
        self.b6 = _Bottleneck(1024, (512, 1024), 2048, dilation=4, drop=0.3)
        self.b7 = _Bottleneck(2048, (1024, 2048), 4096, dilation=4, drop=0.5)
        self.bn7: nn.Module = nn.BatchNorm2d(4096)
        self.reset_classifier(num_classes, global_pool)
        tapped = (("b2", 64, 1), ("b3", 128, 2), ("b4", 256, 4), ("b5", 512, 8), ("b6", 1024, 8))
        info = [(f"{block}.bn_branch2a", width, stride) for block, width, stride in tapped]
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": width, "reduction": stride, "module": name} for name, width, stride in [*info, ("bn7", 4096, 8)]
        ]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The last map, and those asked for: all, so many of the last, or by index; as timm's networks.

        Raises:
            AssertionError: there is no such map.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"maps are NCHW, got output_fmt={output_fmt!r}")
        wanted, deepest = feature_take_indices(len(self.feature_info), indices)
        names = [level["module"].split(".")[0] for level in self.feature_info]
        found: dict[str, Tensor] = {}
        x = self.conv1a(x)
        for name in self.blocks:
            block = getattr(self, name)
            x, activated = checkpoint(block, x, use_reentrant=False) if self.grad_checkpointing else block(x)
            if name in names:
                found[name] = activated
            if stop_early and intermediates_only and name == names[deepest]:
                return [found[names[index]] for index in wanted]
        found["bn7"] = self.bn7(x).relu()
        maps = [found[names[index]] for index in wanted]
        return maps if intermediates_only else (found["bn7"], maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the maps asked for do not need, the classifier among it; as timm's networks.

        The last norm belongs to the last map and goes where that is not asked for, whatever ``prune_norm`` says.
        """
        wanted, deepest = feature_take_indices(len(self.feature_info), indices)
        name, _, norm = self.feature_info[deepest]["module"].partition(".")
        if norm:  # not the last map
            end = self.blocks.index(name)
            for behind in self.blocks[end + 1 :]:
                delattr(self, behind)
            setattr(self, name, _Activated(self.get_submodule(f"{name}.{norm}")))
            self.blocks, self.bn7 = self.blocks[: end + 1], nn.Identity()
            self.num_features = self.feature_info[deepest]["num_chs"]
        if norm or prune_head:
            self.reset_classifier(0, "")
        return list(wanted)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map (N, 4096, H / 8, W / 8)."""
        last: Tensor = self.forward_intermediates(x, 1)[0]
        return last

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooled features, or logits of them."""
        pooled = F.dropout(self.global_pool(x), self.drop_rate, self.training)
        logits: Tensor = pooled if pre_logits else self.linear1000(pooled)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The linear layer."""
        return self.linear1000

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new linear layer for so many classes, or none."""
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        if num_classes and not pool:
            raise ValueError(f"ResNet38d can't tell {num_classes} classes of a map that is not pooled")
        self.num_classes = num_classes
        self.global_pool, self.linear1000 = create_classifier(self.num_features, num_classes, pool_type=pool)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks keep no activations for the backward pass and compute them again there."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Where each parameter lies in depth, for timm's rates by layer: by block, or by stage."""
        blocks = [(r"^b(\d+)\.", (0,)), (r"^b(\d+)_(\d+)\.", None)]
        return {"stem": r"^conv1a", "blocks": [(r"^b(\d+)", None)] if coarse else blocks, "norm": r"^bn7"}


_KINDS = {  # MXNet's names of a layer's tensors, and PyTorch's
    "weight": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "mean": "running_mean",
    "moving_var": "running_var",
    "var": "running_var",
}
_BRANCH = re.compile(rf"(res|bn)(\d)(?:a|b(\d+))_(branch\w+?)[_.]({'|'.join(_KINDS)})")
_OTHER = re.compile(rf"(conv1a|bn7)[_.]({'|'.join(_KINDS)})")
_OURS = re.compile(rf"(({'|'.join([*_BLOCKS, 'b6', 'b7'])})\.(conv|bn)_branch\w+|conv1a|bn7)\.\w+")


def convert_mxnet_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The public ImageNet weights, saved from MXNet to a PyTorch file, under the names of :class:`ResNet38d`.

    ====================================  ==========================================
    MXNet, with or without arg: or aux:   here
    ====================================  ==========================================
    res2a_branch2a_weight                 b2.conv_branch2a.weight
    res4b5_branch2b1_weight               b4_5.conv_branch2b1.weight
    bn4b5_branch2a_gamma, _beta           b4_5.bn_branch2a.weight, .bias
    bn4b5_branch2a_moving_mean, _var      b4_5.bn_branch2a.running_mean, .running_var
    conv1a_weight, bn7_gamma, ...         conv1a.weight, bn7.weight, ...
    linear1000_weight, linear1000_bias    left out
    ====================================  ==========================================

    Names that are those of PyTorch already stay. Images are normalised by ImageNet's mean and standard deviation, as
    SEAM and PPC do.

    Raises:
        ValueError: a name of neither kind, which it says, or no name.
    """
    converted = {}
    for key, value in state.items():
        name = re.sub(r"^(arg|aux):", "", str(key))
        branch, other = _BRANCH.fullmatch(name), _OTHER.fullmatch(name)
        if name.startswith("linear1000"):
            continue
        if branch is not None:
            kind, stage, number, path, tensor = branch.groups()
            block = f"b{stage}" + (f"_{number}" if number else "")
            name = f"{block}.{'conv' if kind == 'res' else 'bn'}_{path}.{_KINDS[tensor]}"
        elif other is not None:
            name = f"{other[1]}.{_KINDS[other[2]]}"
        if not _OURS.fullmatch(name):
            raise ValueError(f"`{key}` is no weight of ResNet38d")
        converted[name] = value
    if not converted:
        raise ValueError("there is no weight of ResNet38d")
    return converted


default_cfgs = generate_default_cfgs(
    {
        "resnet38d": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (28, 28),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "conv1a",
            "classifier": "linear1000",
        }
    }
)


@register_model
def resnet38d(pretrained: bool = False, **kwargs: Any) -> ResNet38d:
    """ResNet38d. timm knows no address of its weights: load a file, see :func:`convert_mxnet_weights`."""
    features = {"feature_cls": "getter", "out_indices": tuple(range(6))}  # for `features_only`
    model: ResNet38d = build_model_with_cfg(ResNet38d, "resnet38d", pretrained, feature_cfg=features, **kwargs)
    return model
