"""PSA's AffinityNet (CVPR 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from wsss_contrast.losses import SemanticAffinity
from wsss_contrast.nn import AffinityNetwork, TimmBackbone

from .base import PairModule


class AffinityNet(PairModule):
    """AffinityNet over any timm backbone: features that are alike where pixels belong together (PSA, CVPR 2018).

    The loss is :class:`~wsss_contrast.losses.SemanticAffinity` on labels of
    :func:`~wsss_contrast.refine.psa_labels`. The network is :class:`~wsss_contrast.nn.AffinityNetwork`; all of it
    learns. For inference, see :class:`~wsss_contrast.refine.PSA`.

    Logged: each term with its weight, ``train/background``, ``train/foreground`` and ``train/negative``;
    ``train/loss``.

    Args:
        backbone: a timm model, see :class:`~wsss_contrast.nn.TimmBackbone`.
        weights: its weights: ``"timm"``, ``"offline"``, ``None`` or a path.
        output_stride: stride of the last map; ``None`` keeps the network's own. PSA has 8.
        low_strides: strides of the two lower maps. ``None`` takes the two before the last, which is PSA's choice with
            an ``output_stride`` of 8, and serves networks that have no such strides.
        frozen_norm: batch norm of the backbone is constant.
        radius: of the pairs, in pixels of the features, which have the stride 8.
        lr: rate of the backbone's weights; biases get twice, the head ten times that.
        momentum: of SGD.
        weight_decay: of weights; biases have none.
    """

    def __init__(
        self,
        backbone: str = "tf_efficientnet_lite0",
        weights: str | None = "timm",
        output_stride: int | None = 16,
        low_strides: Sequence[int] | None = (8, 16),
        frozen_norm: bool = True,
        radius: int = 5,
        lr: float = 0.002,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
    ) -> None:
        super().__init__(lr, momentum, weight_decay)
        self.save_hyperparameters()
        self.hparams.pop("num_classes", None)  # the command line notes it for every module; it could not be loaded
        self.network = AffinityNetwork(TimmBackbone(backbone, weights, output_stride, frozen_norm, low_strides))
        self.loss = SemanticAffinity(radius)

    @property
    def heads(self) -> list[nn.Module]:
        return [self.network.affinity]

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, 448, ceil(H / 8), ceil(W / 8)) of images (N, 3, H, W)."""
        features: Tensor = self.network(images)
        return features

    def training_step(self, batch: dict[str, Any]) -> Tensor:
        labels = self.labels_of(batch, self.network.stride)
        return self.total(self.loss(self(batch["image"]), labels))
