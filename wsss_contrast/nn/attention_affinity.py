"""AFA's affinity head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsss_contrast.functional import full_precision

MOST_PREFIX_TOKENS = 16
"""Class and register tokens that a transformer may have."""


class AttentionAffinityHead(nn.Module):
    """Affinity of patch tokens from attention: A = MLP(S + S^T) over the heads, AFA (CVPR 2022), Sec. 3.2. Torch only.

    Args:
        heads: number of attention maps, of all layers together.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(heads, 1, kernel_size=1)

    def forward(self, scores: Sequence[Tensor], tokens: int) -> Tensor:
        """Logits (N, L, L), symmetric.

        Args:
            scores: of each layer (N, heads_i, T, T), before the softmax
                (:func:`~wsss_contrast.functional.attention_scores`).
            tokens: L, the patch tokens; the T - L before them (class, registers; at most 16) are left out.

        Raises:
            ValueError: T and L that do not go together.
        """
        wrong = [tuple(layer.shape) for layer in scores if not 0 <= layer.shape[-1] - tokens <= MOST_PREFIX_TOKENS]
        if wrong:
            raise ValueError(f"attention of shape {wrong[0]} is not of {tokens} patch tokens and a few before them")
        joined = full_precision(torch.cat([layer[..., -tokens:, -tokens:] for layer in scores], dim=1))
        with torch.autocast(joined.device.type, enabled=False):
            mixed: Tensor = self.mix(joined + joined.transpose(-2, -1))
        return mixed[:, 0]
