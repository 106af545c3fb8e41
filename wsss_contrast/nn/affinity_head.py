"""The network of PSA: features whose differences are affinities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from .backbone import TimmBackbone


def bring_to(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps at another size, bilinear: as far from one border as from the other, so that blocks of pixels fit."""
    if (maps.shape[-2], maps.shape[-1]) == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def strided_size(images: Tensor, stride: int) -> tuple[int, int]:
    """Height and width of a map of images (N, C, H, W) with this stride, rounded up."""
    return -(-images.shape[-2] // stride), -(-images.shape[-1] // stride)


def check_levels(maps: Sequence[Tensor], channels: Sequence[int]) -> None:
    """The maps are (N, C, h, w) of the widths that the head was made for."""
    found = [tuple(level.shape) for level in maps]
    if [shape[1] if len(shape) == 4 else None for shape in found] != list(channels):
        raise ValueError(f"the maps must be (N, C, h, w) of the widths {list(channels)}, got {found}")


class AffinityHead(nn.Module):
    """From maps of several stages to the features that PSA takes affinities of (AffinityNet, CVPR 2018).

    Each map goes through a 1x1 convolution and an ELU, all are brought to one size and joined, and another 1x1
    convolution and ELU follow. No biases. Kaiming-normal weights, and Xavier-uniform ones of gain 4 at the end. Torch
    only.

    Args:
        in_channels: widths of the maps, of the lowest stage first (PSA: 512, 1024 and 4096, of ResNet38's last three).
        widths: what they are reduced to. The features are as wide as these together, 448.

    Raises:
        ValueError: not as many widths as maps.
    """

    def __init__(self, in_channels: Sequence[int], widths: Sequence[int] = (64, 128, 256)) -> None:
        super().__init__()
        if len(in_channels) != len(widths):
            raise ValueError(f"`in_channels` must have {len(widths)} widths, got {tuple(in_channels)}")
        self.in_channels, self.out_channels = tuple(in_channels), sum(widths)
        reduce = [nn.Conv2d(c, width, kernel_size=1, bias=False) for c, width in zip(in_channels, widths, strict=True)]
        self.reduce = nn.ModuleList(reduce)
        self.join = nn.Conv2d(self.out_channels, self.out_channels, kernel_size=1, bias=False)
        for convolution in reduce:
            nn.init.kaiming_normal_(convolution.weight)
        nn.init.xavier_uniform_(self.join.weight, gain=4)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Features (N, sum(widths), h, w), above -1, for :func:`~wsss_contrast.functional.feature_affinity`.

        Args:
            maps: (N, in_channels[i], h_i, w_i), of any sizes.
            size: h and w of the features.

        Raises:
            ValueError: other maps.
        """
        check_levels(maps, self.in_channels)
        reduced = [bring_to(F.elu(reduce(level)), size) for reduce, level in zip(self.reduce, maps, strict=True)]
        return F.elu(self.join(torch.cat(reduced, dim=1)))


class AffinityNetwork(nn.Module):
    """A backbone and an :class:`AffinityHead` on its last map and two lower ones.

    Args:
        backbone: a :class:`~wsss_contrast.nn.TimmBackbone` with two lower maps, or a module like it: it gives a last
            map and a list of lower ones, and says their widths as ``out_channels`` and ``low_channels``.

    Raises:
        ValueError: other than two lower maps.
    """

    stride = 8
    """Of the features, in pixels of the photo."""

    def __init__(self, backbone: TimmBackbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.affinity = AffinityHead([*backbone.low_channels, backbone.out_channels])

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, 448, ceil(H / 8), ceil(W / 8)) of images (N, 3, H, W)."""
        last, low = self.backbone(images)
        features: Tensor = self.affinity([*low, last], strided_size(images, self.stride))
        return features
