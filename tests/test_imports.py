"""What may be imported, what imports drag in, and that the examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest
import torch

import wsss_contrast
from wsss_contrast import callbacks, data, functional, losses, metrics, modules, nn, refine

HEAVY = [
    "albumentations",
    "lightning",
    "pydensecrf",
    "pytorch_lightning",
    "segmentation_models_pytorch",
    "timm",
    "torchmetrics",
    "torchvision",
]
PUBLIC = {
    functional: [
        "IGNORE",
        "NO_LABEL",
        "PairLabels",
        "PermutohedralLattice",
        "SaliencyEstimate",
        "TokenPairs",
        "affinity_nll",
        "affinity_offsets",
        "affinity_seeds",
        "all_negatives",
        "among_highest",
        "assign_pixels",
        "attention_scores",
        "best_class",
        "candidate_scores",
        "candidate_scores_official",
        "choose",
        "class_masks",
        "commonest_labels",
        "confident_labels",
        "correlation_input",
        "dense_crf",
        "displacement_errors",
        "draw_tag",
        "edge_affinity",
        "entropy",
        "equivariant_cross_regularization",
        "equivariant_regularization",
        "erase",
        "erasing_masks",
        "estimate_prototypes",
        "estimate_saliency",
        "feature_affinity",
        "full_precision",
        "global_average_pool",
        "hard_unaries",
        "has_foreground",
        "info_nce",
        "mask_by_tags",
        "max_normalize",
        "merge_candidates",
        "merge_segments",
        "merge_tiles",
        "min_pooling",
        "multilabel_soft_margin",
        "nearest_labels",
        "negative_candidates",
        "neighbour_offsets",
        "normalize_cams",
        "pair_labels",
        "pixel_affinity",
        "pixel_correlation",
        "pixel_to_prototype_nll",
        "pooled_labels",
        "power_background",
        "present_classes",
        "propagate",
        "puzzle_alpha",
        "puzzle_reconstruction",
        "quantile",
        "random_walk",
        "resize",
        "saliency_loss",
        "sample_pixels",
        "sample_pixels_official",
        "segment_pixels",
        "segmentation_nll",
        "semi_hard_negatives",
        "semi_hard_negatives_official",
        "soft_unaries",
        "split_background",
        "suppress_non_maximum",
        "tag_probabilities",
        "tagged_channels",
        "tile",
        "token_pairs",
        "token_similarity",
        "top_candidates",
        "valid_pixels",
        "view_matrix",
        "warp",
        "with_background",
    ],
    losses: [
        "ActivationConsistency",
        "AttentionAffinity",
        "CSRMLoss",
        "CSRMMaps",
        "CSRMSchedule",
        "CSRM_PRESETS",
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
    ],
    callbacks: [
        "ActivationConsistencyCallback",
        "AttentionAffinityCallback",
        "EMATeacherCallback",
        "MaskWriter",
        "OptimizerError",
        "PatchTokenContrastCallback",
        "PrototypeContrastCallback",
        "RegularizerCallback",
        "SaliencyCallback",
        "TapError",
        "TaughtRegularizer",
        "UnreliablePixelContrastCallback",
        "WeakToStrongCallback",
        "timm_attention",
    ],
    data: [
        "COCODataModule",
        "COCODataset",
        "ClassMix",
        "DataError",
        "EpochSampler",
        "EvalSampler",
        "FolderDataModule",
        "FolderDataset",
        "LabelFolder",
        "Mix",
        "Mixed",
        "SHAPES_CLASSES",
        "SaliencyFolder",
        "SameSizeBatches",
        "Sample",
        "SegmentFolder",
        "ShapesDataModule",
        "ShapesDataset",
        "TaggedImageDataset",
        "VOCDataModule",
        "VOCDataset",
        "VOC_CLASSES",
        "View",
        "ViewTransform",
        "WSSSDataModule",
        "as_photos",
        "denormalize",
        "eval_transform",
        "train_transform",
        "weak_transform",
    ],
    metrics: ["SeedCurve", "SeedMIoU", "SegmentationScores", "THRESHOLDS", "segmentation_scores"],
    modules: [
        "AffinityNet",
        "CAM",
        "CSRM",
        "CSRMNetwork",
        "EPS",
        "IRNet",
        "PNOC",
        "PairModule",
        "PuzzleCAM",
        "SEAM",
        "SecondClassifier",
        "Segmenter",
        "WSSSModule",
        "parameter_groups",
        "poly_decay",
    ],
    nn: [
        "AffinityHead",
        "AffinityNetwork",
        "AttentionAffinityHead",
        "ClassMemoryBank",
        "DeepLab",
        "DeepLabV3Plus",
        "DeepLabV3PlusHeads",
        "DisplacementHead",
        "EMATeacher",
        "EdgeHead",
        "InterPixelNetwork",
        "LargeFOVHead",
        "PixelCorrelationModule",
        "Projector",
        "ResNet38d",
        "SummedASPPHead",
        "TimmBackbone",
        "convert_mxnet_weights",
    ],
    refine: [
        "CRFSettings",
        "CRF_SETTINGS",
        "DenseCRF",
        "IRN",
        "LABELS",
        "PSA",
        "PixelAdaptiveRefinement",
        "Refiner",
        "SEPL",
        "WorkerError",
        "hard_unaries",
        "irn_labels",
        "label_maker",
        "mean_field",
        "merge_scales",
        "multi_scale_cams",
        "multi_scale_logits",
        "psa_labels",
        "pseudo_labels",
        "refiner",
        "soft_unaries",
        "stream",
    ],
}
PACKAGES = list(PUBLIC)
MODULES = [module.name for module in pkgutil.walk_packages(wsss_contrast.__path__, "wsss_contrast.")]


@pytest.mark.parametrize(
    "import_",
    [
        "import wsss_contrast",
        "import wsss_contrast.functional",
        "import wsss_contrast.losses",
        "import wsss_contrast.distributed",
        "from wsss_contrast.nn import AffinityHead, DeepLabV3PlusHeads, EdgeHead, EMATeacher, Projector",
    ],
)
def test_importing_needs_torch_only(import_: str) -> None:
    code = f"import sys; {import_}; print(*(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("package", PACKAGES, ids=lambda m: m.__name__)
def test_public_names(package: object) -> None:
    assert sorted(package.__all__) == PUBLIC[package]
    assert all(hasattr(package, name) for name in package.__all__)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda m: m.__name__)
def test_public_names_are_documented(package: object) -> None:
    for name in package.__all__:
        value = getattr(package, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name} has no docstring"


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples(module: str) -> None:
    assert doctest.testmod(importlib.import_module(module), extraglobs={"torch": torch}).failed == 0


def test_some_docstrings_have_examples() -> None:
    finder = doctest.DocTestFinder()
    found = [test for module in MODULES for test in finder.find(importlib.import_module(module))]
    assert sum(len(test.examples) for test in found) >= 7
