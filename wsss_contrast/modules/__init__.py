"""LightningModules."""

from .cam import CAM
from .optim import parameter_groups, poly_decay
from .seam import SEAM

__all__ = ["CAM", "SEAM", "parameter_groups", "poly_decay"]
