"""IRN's IRNet (CVPR 2019)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from wsss_contrast.distributed import all_gather
from wsss_contrast.losses import InterPixelRelations
from wsss_contrast.nn import InterPixelNetwork, TimmBackbone

from .base import PairModule


class IRNet(PairModule):
    """IRNet over any timm backbone: boundaries between classes, and displacements to objects' centres (CVPR 2019).

    The loss is :class:`~wsss_contrast.losses.InterPixelRelations` on labels of
    :func:`~wsss_contrast.refine.irn_labels`. The network is :class:`~wsss_contrast.nn.InterPixelNetwork`; its backbone
    is constant. After the last epoch the mean displacement over the training crops is taken off
    (:meth:`center`). For inference, see :class:`~wsss_contrast.refine.IRN`.

    Logged: each term with its weight, ``train/background``, ``train/foreground``, ``train/negative``,
    ``train/displacement_background`` and ``train/displacement_foreground``; ``train/loss``.

    Args:
        backbone: a timm model, see :class:`~wsss_contrast.nn.TimmBackbone`.
        weights: its weights: ``"timm"``, ``"offline"``, ``None`` or a path. ``None`` draws weights that never learn.
        output_stride: stride of the last map; ``None`` keeps the network's own.
        low_strides: strides of the lower maps. IRN takes all stages. ``None`` takes the two before the last, for
            networks that have no such strides.
        radius: of the pairs, in pixels of what the heads give, which has the stride 4.
        lr: rate of the weights of the boundaries' head; biases get twice, the displacements' head ten times that.
            IRN's 0.1 goes with a momentum of almost 0.
        momentum: of SGD.
        weight_decay: of weights; biases have none.
    """

    def __init__(
        self,
        backbone: str = "tf_efficientnet_lite0",
        weights: str | None = "timm",
        output_stride: int | None = 16,
        low_strides: Sequence[int] | None = (2, 4, 8, 16),
        radius: int = 10,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
    ) -> None:
        super().__init__(lr, momentum, weight_decay)
        self.save_hyperparameters()
        self.hparams.pop("num_classes", None)  # the command line notes it for every module; it could not be loaded
        self.network = InterPixelNetwork(TimmBackbone(backbone, weights, output_stride, low_strides=low_strides))
        self.loss = InterPixelRelations(radius)

    @property
    def heads(self) -> list[nn.Module]:
        """The part that learns ten times as fast."""
        return [self.network.displacement]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of a boundary (N, 1, h, w) and displacements (N, 2, h, w), h = ceil(H / 4), w = ceil(W / 4)."""
        edges, displacements = self.network(images)
        return edges, displacements

    def training_step(self, batch: dict[str, Any]) -> Tensor:
        labels = self.labels_of(batch, self.network.stride)
        edges, displacements = self(batch["image"])
        return self.total(self.loss(edges, displacements, labels))

    def on_train_epoch_end(self) -> None:
        # Not when the training has ended: the last checkpoint is written before.
        if self.global_step >= self.trainer.estimated_stepping_batches:
            self.center(batch["image"] for batch in self._batches())

    def _batches(self) -> Iterator[dict[str, Any]]:
        loader: Any = self.trainer.train_dataloader
        limit = self.trainer.num_training_batches
        yield from islice(loader, limit if isinstance(limit, int) else None)  # infinite: as many as there are

    @torch.no_grad()
    def center(self, images: Iterable[Tensor]) -> None:
        """Shift displacements so that their mean over these images, (N, 3, H, W) each, is 0.

        Distributed contract: the mean is that of all ranks, which have as many pixels each.
        """
        head = self.network.displacement
        head.center(self(batch.to(head.mean_shift))[1] for batch in images)
        head.mean_shift.copy_(all_gather(head.mean_shift).mean(dim=0))
