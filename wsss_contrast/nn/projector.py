"""The projector of pixel-to-prototype contrast."""

from __future__ import annotations

from torch import Tensor, nn


class Projector(nn.Sequential):
    """From feature maps to embeddings: a 1x1 convolution without bias and a ReLU, Xavier-uniform (PPC, Sec. 3).

    Torch only. Not needed at inference.

    Args:
        in_channels: width of the features.
        out_channels: D, width of the embeddings.
    """

    def __init__(self, in_channels: int, out_channels: int = 128) -> None:
        convolution = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        nn.init.xavier_uniform_(convolution.weight)
        super().__init__(convolution, nn.ReLU())
        self.in_channels = in_channels

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, h, w) to (N, out_channels, h, w), at least 0."""
        output: Tensor = super().forward(features)
        return output
