"""Losses to import into a model of your own. They need torch only."""

from .activation_consistency import ActivationConsistency
from .attention_affinity import AttentionAffinity
from .csrm import CSRM_PRESETS, CSRMLoss, CSRMMaps
from .csrm_schedule import CSRMSchedule
from .equivariant import EquivariantCrossRegularization, EquivariantRegularization
from .inter_pixel_relations import InterPixelRelations
from .min_pooling import MinPooling
from .multilabel_soft_margin import MultilabelSoftMargin
from .patch_token_contrast import PatchTokenContrast
from .prototype_contrast import PixelDraws, PrototypeContrast
from .puzzle import PuzzleReconstruction
from .reliable_segmentation import ReliableSegmentation
from .saliency import SaliencyLoss
from .semantic_affinity import SemanticAffinity
from .unreliable_contrast import ContrastDraws, UnreliablePixelContrast
from .weak_to_strong import WeakToStrong

__all__ = [
    "CSRM_PRESETS",
    "ActivationConsistency",
    "AttentionAffinity",
    "CSRMLoss",
    "CSRMMaps",
    "CSRMSchedule",
    "ContrastDraws",
    "EquivariantCrossRegularization",
    "EquivariantRegularization",
    "InterPixelRelations",
    "MinPooling",
    "MultilabelSoftMargin",
    "PatchTokenContrast",
    "PixelDraws",
    "PrototypeContrast",
    "PuzzleReconstruction",
    "ReliableSegmentation",
    "SaliencyLoss",
    "SemanticAffinity",
    "UnreliablePixelContrast",
    "WeakToStrong",
]
