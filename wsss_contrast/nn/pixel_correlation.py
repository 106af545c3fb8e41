"""SEAM's pixel correlation module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsss_contrast.functional import correlation_input, pixel_correlation, resize


class PixelCorrelationModule(nn.Module):
    """Refines activation maps by the similarity of pixels in colour and low-level features: PCM, Eq. 4 of SEAM.

    The features are detached, so that only the module's own convolutions learn from the refined maps.

    Args:
        in_channels: widths of the two feature maps (SEAM: 512 and 1024, of ResNet38's stages 4 and 5).
        widths: what they are reduced to.
    """

    def __init__(self, in_channels: Sequence[int], widths: Sequence[int] = (64, 128)) -> None:
        super().__init__()
        reduce = [nn.Conv2d(c, width, kernel_size=1, bias=False) for c, width in zip(in_channels, widths, strict=True)]
        self.reduce = nn.ModuleList(reduce)
        self.embed = nn.Conv2d(3 + sum(widths), sum(widths), kernel_size=1, bias=False)
        for convolution in reduce:
            nn.init.kaiming_normal_(convolution.weight)
        nn.init.xavier_uniform_(self.embed.weight, gain=4)

    def forward(self, cams: Tensor, images: Tensor, features: Sequence[Tensor], valid: Tensor | None = None) -> Tensor:
        """Refined maps (N, 1 + K, h, w) in [0, 1], background first.

        Args:
            cams: (N, K, h, w) raw foreground maps; they are constants here.
            images: (N, 3, H, W) normalised.
            features: two maps (N, in_channels[i], h_i, w_i).
            valid: (N, h, w) bool, the pixels whose maps are spread; all by default.
        """
        size = (cams.shape[-2], cams.shape[-1])
        reduced = [reduce(resize(f.detach(), size)).relu() for reduce, f in zip(self.reduce, features, strict=True)]
        features_of_all = torch.cat([resize(images, size), *reduced], dim=1)
        return pixel_correlation(correlation_input(cams, valid), self.embed(features_of_all), valid)
