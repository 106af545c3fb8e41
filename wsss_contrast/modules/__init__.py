"""LightningModules."""

from .affinity_net import AffinityNet
from .base import PairModule, WSSSModule
from .cam import CAM
from .csrm import CSRM, CSRMNetwork
from .eps import EPS
from .irnet import IRNet
from .optim import parameter_groups, poly_decay
from .puzzle_cam import PuzzleCAM
from .seam import SEAM

__all__ = [
    "CAM",
    "CSRM",
    "EPS",
    "SEAM",
    "AffinityNet",
    "CSRMNetwork",
    "IRNet",
    "PairModule",
    "PuzzleCAM",
    "WSSSModule",
    "parameter_groups",
    "poly_decay",
]
