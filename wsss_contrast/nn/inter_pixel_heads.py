"""The network of IRN: boundaries between classes, and displacements to the centres of objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .affinity_head import bring_to, check_levels, strided_size

if TYPE_CHECKING:
    from .backbone import TimmBackbone

EDGE_WIDTH = 32
DISPLACEMENT_WIDTH = 256
GROUPS = 4


class EdgeHead(nn.Module):
    """From maps of all stages to logits of a class boundary (IRN, CVPR 2019, Sec. 4.1).

    Each map goes through a 1x1 convolution to 32 channels, a group norm and a ReLU; all are brought to one size and
    joined, and a 1x1 convolution gives the logits. Torch only.

    Args:
        in_channels: widths of the maps (IRN: of ResNet50's five stages).
    """

    def __init__(self, in_channels: Sequence[int]) -> None:
        super().__init__()
        self.in_channels = tuple(in_channels)
        self.reduce = nn.ModuleList(_layer(channels, EDGE_WIDTH) for channels in in_channels)
        self.join = nn.Conv2d(EDGE_WIDTH * len(in_channels), 1, kernel_size=1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Logits (N, 1, h, w), for :func:`~wsss_contrast.functional.edge_affinity`.

        Args:
            maps: (N, in_channels[i], h_i, w_i), of any sizes.
            size: h and w of the logits.

        Raises:
            ValueError: other maps.
        """
        check_levels(maps, self.in_channels)
        reduced = [bring_to(reduce(level), size) for reduce, level in zip(self.reduce, maps, strict=True)]
        edges: Tensor = self.join(torch.cat(reduced, dim=1))
        return edges


class DisplacementHead(nn.Module):
    """From maps of all stages to displacements that point at the centres of objects (IRN, CVPR 2019, Sec. 4.1).

    Each map goes through a 1x1 convolution to 256 channels, or as many as it has. From the last one down, a map is
    brought to the size of the one below, joined with it and merged by a 1x1 convolution to 256; two more 1x1
    convolutions and a last one to two channels follow. A group norm and a ReLU come after all but the last. Torch only.

    The loss knows differences of displacements alone, so that their mean is arbitrary: :meth:`center` makes it 0.

    Args:
        in_channels: widths of the maps, of the lowest stage first; at least two.

    Attributes:
        mean_shift: (2,), what is taken off the displacements. A buffer, 0 at first.

    Raises:
        ValueError: fewer than two maps.
    """

    mean_shift: Tensor

    def __init__(self, in_channels: Sequence[int]) -> None:
        super().__init__()
        if len(in_channels) < 2:
            raise ValueError(f"`in_channels` must have at least two widths, got {tuple(in_channels)}")
        self.in_channels = tuple(in_channels)
        widths = [max(min(channels, DISPLACEMENT_WIDTH) // GROUPS, 1) * GROUPS for channels in in_channels]
        self.reduce = nn.ModuleList(_layer(*of_level) for of_level in zip(in_channels, widths, strict=True))
        above = [DISPLACEMENT_WIDTH] * (len(widths) - 2) + widths[-1:]  # what is merged with the map of each level
        self.merge = nn.ModuleList(
            _layer(width + higher, DISPLACEMENT_WIDTH) for width, higher in zip(widths[:-1], above, strict=True)
        )
        self.decode = nn.Sequential(
            _layer(DISPLACEMENT_WIDTH, DISPLACEMENT_WIDTH),
            _layer(DISPLACEMENT_WIDTH, DISPLACEMENT_WIDTH),
            nn.Conv2d(DISPLACEMENT_WIDTH, 2, kernel_size=1, bias=False),  # no difference depends on a bias
        )
        self.register_buffer("mean_shift", torch.zeros(2))

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Displacements (N, 2, h, w), down and right, in pixels of the result.

        Args:
            maps: (N, in_channels[i], h_i, w_i). Maps that are larger than the result are brought to its size first.
            size: h and w of the result.

        Raises:
            ValueError: other maps.
        """
        check_levels(maps, self.in_channels)
        levels = [reduce(level) for reduce, level in zip(self.reduce, maps, strict=True)]
        levels = [bring_to(level, size) if level.shape[-2] > size[0] else level for level in levels]
        merged = levels[-1]
        for level, merge in zip(levels[-2::-1], reversed(self.merge), strict=True):
            merged = merge(torch.cat([level, bring_to(merged, (level.shape[-2], level.shape[-1]))], dim=1))
        displacements: Tensor = self.decode(bring_to(merged, size))
        return displacements - self.mean_shift[:, None, None]

    @torch.no_grad()
    def center(self, displacements: Iterable[Tensor]) -> None:
        """Shift displacements so that the mean of those given, (N, 2, h, w) each, is 0.

        Raises:
            ValueError: none are given.
        """
        total, pixels = torch.zeros(2, dtype=torch.float64), 0
        for of_batch in displacements:
            total += of_batch[:, 0].numel() * of_batch.float().mean(dim=(0, 2, 3)).cpu()
            pixels += of_batch[:, 0].numel()
        if not pixels:
            raise ValueError("there must be displacements to take the mean of")
        self.mean_shift += (total / pixels).to(self.mean_shift)


class InterPixelNetwork(nn.Module):
    """A backbone that is constant, and the two heads of IRN on its last map and the lower ones.

    The backbone takes no gradient, and stays in evaluation mode while the heads train.

    Args:
        backbone: a :class:`~wsss_contrast.nn.TimmBackbone` with lower maps, or a module like it: it gives a last map
            and a list of lower ones, and says their widths as ``out_channels`` and ``low_channels``.
    """

    stride = 4
    """Of what the heads give, in pixels of the photo."""

    def __init__(self, backbone: TimmBackbone) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        channels = [*backbone.low_channels, backbone.out_channels]
        self.edge, self.displacement = EdgeHead(channels), DisplacementHead(channels)
        self.train()

    def train(self, mode: bool = True) -> InterPixelNetwork:
        super().train(mode)
        self.backbone.eval()
        return self

    def levels(self, images: Tensor) -> list[Tensor]:
        """The backbone's maps of images (N, 3, H, W), the lowest first, constant."""
        with torch.no_grad():
            last, low = self.backbone(images)
        return [*low, last]

    def edges(self, images: Tensor) -> Tensor:
        """The first of what :meth:`forward` gives: inference needs no more."""
        edges: Tensor = self.edge(self.levels(images), strided_size(images, self.stride))
        return edges

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of a boundary (N, 1, h, w) and displacements (N, 2, h, w), h = ceil(H / 4), w = ceil(W / 4)."""
        levels, size = self.levels(images), strided_size(images, self.stride)
        return self.edge(levels, size), self.displacement(levels, size)


def _layer(in_channels: int, out_channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(GROUPS, out_channels), nn.ReLU(inplace=True))
