"""Losses to import into a model of your own. They need torch only."""

from .equivariant import EquivariantCrossRegularization, EquivariantRegularization
from .min_pooling import MinPooling
from .multilabel_soft_margin import MultilabelSoftMargin
from .prototype_contrast import PixelDraws, PrototypeContrast

__all__ = [
    "EquivariantCrossRegularization",
    "EquivariantRegularization",
    "MinPooling",
    "MultilabelSoftMargin",
    "PixelDraws",
    "PrototypeContrast",
]
