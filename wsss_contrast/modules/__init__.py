"""LightningModules."""

from .affinity_net import AffinityNet
from .base import PairModule, WSSSModule
from .cam import CAM
from .csrm import CSRM, CSRMNetwork
from .eps import EPS
from .irnet import IRNet
from .optim import parameter_groups, poly_decay
from .pnoc import PNOC, SecondClassifier
from .puzzle_cam import PuzzleCAM
from .seam import SEAM
from .segmenter import Segmenter

__all__ = [
    "CAM",
    "CSRM",
    "EPS",
    "PNOC",
    "SEAM",
    "AffinityNet",
    "CSRMNetwork",
    "IRNet",
    "PairModule",
    "PuzzleCAM",
    "SecondClassifier",
    "Segmenter",
    "WSSSModule",
    "parameter_groups",
    "poly_decay",
]
