"""Puzzle-CAM (ICIP 2021)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from wsss_contrast.functional import merge_tiles, puzzle_alpha, tile
from wsss_contrast.losses import PuzzleReconstruction

from .cam import CAM


class PuzzleCAM(CAM):
    """Puzzle-CAM over any timm backbone: the maps of an image's four tiles, merged, agree with those of the image.

    The loss is classification of the image + classification of the merged maps + alpha times the reconstruction loss.
    alpha grows from 0 to its last value in the first half of the training. Seeds are made of the whole image alone.
    Arguments, batches and validation are those of :class:`~wsss_contrast.modules.CAM`.

    The sides of training images must be multiples of twice the maps' stride (32 px at ``output_stride`` 16), else the
    tiles' maps do not lie on the image's and the step raises an error.

    Logged: ``train/classification``, ``train/tiled_classification``, ``train/reconstruction`` (without its weight),
    ``train/alpha`` and ``train/loss``.

    Args:
        num_classes: K, foreground classes.
        alpha: last weight of the reconstruction loss, at least 0.
        dropout: see :class:`~wsss_contrast.modules.CAM`. None by default: channels that are dropped in one of the two
            passes make a difference of the maps that is none of the image's.
        kwargs: see :class:`~wsss_contrast.modules.CAM`.
    """

    regularizer_views = 1
    """The pass over the tiles is no second view of the images, for regularizer callbacks."""

    def __init__(self, num_classes: int, alpha: float = 4.0, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(num_classes, dropout=dropout, **kwargs)
        self.save_hyperparameters()
        if alpha < 0:
            raise ValueError(f"`alpha` must not be negative, got {alpha}")
        self.alpha = alpha
        self.reconstruction = PuzzleReconstruction()

    @property
    def current_alpha(self) -> float:
        """The weight of the reconstruction loss at this step; 0 without a trainer."""
        steps = self.trainer.estimated_stepping_batches if self._trainer is not None else 1
        return puzzle_alpha(self.global_step, max(steps, 1), self.alpha)

    def whole_and_merged(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The maps of images and those of their tiles, merged.

        Raises:
            ValueError: a side is no multiple of twice the maps' stride.
        """
        (height, width), side = images.shape[-2:], 2 * self.backbone.net.feature_info[-1]["reduction"]
        if height % side or width % side:
            raise ValueError(
                f"the sides of training images must be multiples of twice the stride of the maps, {side} px, got "
                f"{height} x {width}"
            )
        return self(images), merge_tiles(self(tile(images)))

    def training_step(self, batch: dict[str, Any]) -> Tensor:
        images, tags = batch["image"], batch["tags"]
        cams, merged = self.whole_and_merged(images)
        losses = {
            "classification": self.classification(cams, tags),
            "tiled_classification": self.classification(merged, tags),
            "reconstruction": self.reconstruction(cams, merged, tags),
        }
        alpha = self.current_alpha
        self.log_dict({f"train/{name}": value for name, value in losses.items()} | {"train/alpha": alpha})
        losses["reconstruction"] = losses["reconstruction"] * alpha
        loss = sum(losses.values())
        assert isinstance(loss, Tensor)
        self.log("train/loss", loss, prog_bar=True)
        return loss
