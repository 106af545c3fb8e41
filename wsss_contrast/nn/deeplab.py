"""Segmentation and representation heads of CSRM."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from wsss_contrast.functional import resize

WIDTH = 256
LOW_WIDTH = 48
ATROUS_RATES = (6, 12, 18)
NORMS: dict[str, Callable[[int], nn.Module]] = {"group": partial(nn.GroupNorm, 4), "batch": nn.BatchNorm2d}


class DeepLabV3PlusHeads(nn.Module):
    """The decoder of DeepLabV3+ (ECCV 2018) and the representation head of CSRM, on shared features.

    Atrous spatial pyramid pooling (ASPP: 1x1, 3x3 with dilations 6, 12 and 18, the pooled map; 256 wide, dropout 0.5)
    of the high map is resized to the low one, and joined with the low map's projection to 48 channels. Two 3x3
    convolutions with dropout 0.1 and a 1x1 give the segmentation; one 3x3 and a 1x1 the representation, which is not
    normalised. Convolutions before a norm have no bias. Kaiming-normal weights. Torch only.

    The ASPP and the projection are those of segmentation-models-pytorch with the norms exchanged. The rest is not its
    ``DeepLabV3PlusDecoder``: there the 3x3 convolutions are separable, one follows the ASPP, one instead of two goes
    before the segmentation, without dropout, and maps are resized by a fixed factor, not to the low map's size.

    Args:
        high_channels: width of the last map of the backbone, at stride 16 (or 8).
        low_channels: width of the low map, at stride 4.
        num_classes: C, with the background, which goes first.
        embedding_dim: D, width of the representation.
        norm: ``"group"``, 4 groups, for any batch, or ``"batch"``.

    Raises:
        ValueError: another ``norm``, or no class beside the background.
    """

    def __init__(
        self,
        high_channels: int,
        low_channels: int,
        num_classes: int,
        embedding_dim: int = 256,
        norm: Literal["group", "batch"] = "group",
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"`norm` must be 'group' or 'batch', got {norm!r}")
        if num_classes < 2:
            raise ValueError(f"`num_classes` counts the background and must be at least 2, got {num_classes}")
        self.high_channels, self.low_channels = high_channels, low_channels
        make_norm, joined = NORMS[norm], WIDTH + LOW_WIDTH
        self.aspp = _ASPP(high_channels, make_norm)
        self.project = nn.Sequential(*_layers(low_channels, LOW_WIDTH, 1, make_norm))
        self.decoder = nn.Sequential(
            *_layers(joined, WIDTH, 3, make_norm),
            nn.Dropout(0.1),
            *_layers(WIDTH, WIDTH, 3, make_norm),
            nn.Dropout(0.1),
            nn.Conv2d(WIDTH, num_classes, kernel_size=1),
        )
        self.representation = nn.Sequential(
            *_layers(joined, WIDTH, 3, make_norm), nn.Conv2d(WIDTH, embedding_dim, kernel_size=1)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Segmentation logits (N, C, h, w), background first, and representation (N, D, h, w), of any range.

        Args:
            low: (N, low_channels, h, w).
            high: (N, high_channels, h', w'), of any size.

        Raises:
            ValueError: maps of other shapes, or a batch of 1 in training with ``norm="batch"``: the pooled map has one
                value per channel then.
        """
        features = self._features(low, high)
        return self.decoder(features), self.representation(features)

    def segmentation(self, low: Tensor, high: Tensor) -> Tensor:
        """The segmentation alone, of the same maps."""
        logits: Tensor = self.decoder(self._features(low, high))
        return logits

    def _features(self, low: Tensor, high: Tensor) -> Tensor:
        for name, maps, channels in (("low", low, self.low_channels), ("high", high, self.high_channels)):
            if maps.dim() != 4 or maps.shape[1] != channels:
                raise ValueError(f"`{name}` must have the shape (N, {channels}, h, w), got {tuple(maps.shape)}")
        if len(low) != len(high):
            raise ValueError(f"the batch sizes differ: `low` has {len(low)}, `high` has {len(high)}")
        return torch.cat([resize(self.aspp(high), (low.shape[-2], low.shape[-1])), self.project(low)], dim=1)


class _ASPP(nn.Module):
    def __init__(self, in_channels: int, make_norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        pooled = [nn.AdaptiveAvgPool2d(1), *_layers(in_channels, WIDTH, 1, make_norm)]
        self.branches = nn.ModuleList(
            [
                nn.Sequential(*_layers(in_channels, WIDTH, 1, make_norm)),
                *(nn.Sequential(*_layers(in_channels, WIDTH, 3, make_norm, rate)) for rate in ATROUS_RATES),
                nn.Sequential(*pooled),
            ]
        )
        self.merge = nn.Sequential(*_layers(5 * WIDTH, WIDTH, 1, make_norm), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        norms = [m for m in self.branches[-1].modules() if isinstance(m, nn.BatchNorm2d)]
        if len(x) == 1 and any(norm.training for norm in norms):
            raise ValueError("`norm='batch'` can't train on a batch of 1; use `norm='group'` or a larger batch")
        # A single pixel resized is that pixel everywhere.
        maps = [branch(x).expand(-1, -1, *x.shape[-2:]) for branch in self.branches]
        output: Tensor = self.merge(torch.cat(maps, dim=1))
        return output


def _layers(
    in_channels: int, out_channels: int, kernel_size: int, make_norm: Callable[[int], nn.Module], dilation: int = 1
) -> list[nn.Module]:
    padding = kernel_size // 2 * dilation
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False)
    return [convolution, make_norm(out_channels), nn.ReLU(inplace=True)]
