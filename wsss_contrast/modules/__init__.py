"""LightningModules."""

from .cam import CAM
from .csrm import CSRM, CSRMNetwork
from .optim import parameter_groups, poly_decay
from .puzzle_cam import PuzzleCAM
from .seam import SEAM

__all__ = ["CAM", "CSRM", "SEAM", "CSRMNetwork", "PuzzleCAM", "parameter_groups", "poly_decay"]
