"""DeepLab of three generations: what is trained on pseudo-masks at the end."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .backbone import TimmBackbone, color_change, create_features


class LargeFOVHead(nn.Sequential):
    """The head of DeepLabV1-LargeFOV (ICLR 2015): one 3x3 convolution of dilation 12, as PPC's released code has it.

    Args:
        in_channels: width of the features.
        num_classes: C, the background among them.
        width: of the layers between.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int = 512) -> None:
        super().__init__(
            nn.Conv2d(in_channels, width, 3, padding=12, dilation=12, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Conv2d(width, num_classes, 1),
        )


class SummedASPPHead(nn.Module):
    """The head of DeepLabV2 (TPAMI 2018): 3x3 convolutions of the dilations 6, 12, 18 and 24 side by side, added up.

    Args:
        in_channels: width of the features.
        num_classes: C, the background among them.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, num_classes, 3, padding=rate, dilation=rate) for rate in (6, 12, 18, 24)
        )
        for branch in self.branches:
            assert isinstance(branch, nn.Conv2d)
            nn.init.normal_(branch.weight, std=0.01)

    def forward(self, features: Tensor) -> Tensor:
        return torch.stack([branch(features) for branch in self.branches]).sum(dim=0)


class DeepLab(nn.Module):
    """A backbone and a head: images (N, 3, H, W) to logits (N, C, h, w)."""

    def __init__(self, backbone: TimmBackbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        features, _ = self.backbone(images)
        logits: Tensor = self.head(features)
        return logits


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ (ECCV 2018) of segmentation-models-pytorch over a CNN of timm: images to logits (N, C, H, W).

    Images come normalised by ImageNet's mean and standard deviation, as for :class:`TimmBackbone`.

    Args:
        backbone: a timm model.
        weights: of it, as for :class:`TimmBackbone`.
        num_classes: C, the background among them.
        output_stride: 16 or 8.
        frozen_norm: the encoder's batch norm uses its running statistics and does not learn; never without weights.

    Raises:
        ImportError: the extra ``segmenter`` is not installed.
        ValueError: no timm model, or one without an output stride.
    """

    def __init__(
        self, backbone: str, weights: str | None, num_classes: int, output_stride: int = 16, frozen_norm: bool = True
    ) -> None:
        super().__init__()
        try:
            import segmentation_models_pytorch as smp
        except ImportError as error:
            raise ImportError('DeepLabV3+ needs the extra: pip install "wsss-contrast[segmenter]"') from error
        state = create_features(backbone, weights)
        try:
            self.net: Any = smp.DeepLabV3Plus(
                f"tu-{backbone}", encoder_weights=None, classes=num_classes, encoder_output_stride=output_stride
            )
        except (AssertionError, KeyError, TypeError, ValueError, RuntimeError, NotImplementedError) as error:
            reason = f"with output stride {output_stride}: {error}"
            raise ValueError(f"`{backbone}` can't be the encoder of DeepLabV3+ {reason}") from error
        encoder, values = self.net.encoder.model, state.state_dict()
        # Some families' names are flat here: `stages_0.` is `stages.0.` of the whole network.
        names = {name: name if name in values else name.replace("_", ".", 1) for name in encoder.state_dict()}
        if not values.keys() >= {*names.values()}:
            raise ValueError(f"`{backbone}` can't be the encoder of DeepLabV3+: its weights have other names there")
        encoder.load_state_dict({ours: values[theirs] for ours, theirs in names.items()})
        self.scale: Tensor
        self.shift: Tensor
        for name, value in zip(("scale", "shift"), color_change(state.pretrained_cfg, weights), strict=True):
            self.register_buffer(name, value, persistent=False)
        self.frozen_norm = frozen_norm and weights is not None
        if self.frozen_norm:
            for norm in self._norms():
                norm.requires_grad_(False)

    def train(self, mode: bool = True) -> DeepLabV3Plus:
        super().train(mode)
        if self.frozen_norm:
            for norm in self._norms():
                norm.eval()
        return self

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.net.encoder.modules() if isinstance(module, _BatchNorm)]

    @property
    def head(self) -> nn.Module:
        """What is trained from scratch."""
        return nn.ModuleList([self.net.decoder, self.net.segmentation_head])

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images (N, 3, H, W).

        Raises:
            ValueError: a batch of 1 in training.
        """
        height, width = images.shape[-2:]
        norms = [module for module in self.net.decoder.modules() if isinstance(module, nn.BatchNorm2d)]
        if len(images) == 1 and any(norm.training for norm in norms):
            raise ValueError(
                "DeepLabV3+ can't train on a batch of 1, in which its pooled map has one value per channel; use a "
                "larger batch"
            )
        # Its encoders take whole multiples of 16 only.
        padded = F.pad(images * self.scale + self.shift, (0, -width % 16, 0, -height % 16))
        logits: Tensor = self.net(padded)
        return logits[..., :height, :width]
