"""Datasets of tagged images, their augmentation, and Lightning data modules."""

import os

# Albumentations asks PyPI for its newest version when it is imported. Training must not depend on that.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from wsss_contrast.data.base import DataError, Sample, TaggedImageDataset
from wsss_contrast.data.batches import SameSizeBatches
from wsss_contrast.data.class_mix import ClassMix, Mix, Mixed
from wsss_contrast.data.coco import COCODataset
from wsss_contrast.data.datamodule import COCODataModule, ShapesDataModule, VOCDataModule, WSSSDataModule
from wsss_contrast.data.folder import FolderDataModule, FolderDataset
from wsss_contrast.data.samplers import EpochSampler, EvalSampler
from wsss_contrast.data.segments import SegmentFolder
from wsss_contrast.data.shapes import SHAPES_CLASSES, ShapesDataset
from wsss_contrast.data.targets import LabelFolder, SaliencyFolder
from wsss_contrast.data.transforms import as_photos, denormalize, eval_transform, train_transform, weak_transform
from wsss_contrast.data.views import View, ViewTransform
from wsss_contrast.data.voc import VOC_CLASSES, VOCDataset

__all__ = [
    "SHAPES_CLASSES",
    "VOC_CLASSES",
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
    "SaliencyFolder",
    "SameSizeBatches",
    "Sample",
    "SegmentFolder",
    "ShapesDataModule",
    "ShapesDataset",
    "TaggedImageDataset",
    "VOCDataModule",
    "VOCDataset",
    "View",
    "ViewTransform",
    "WSSSDataModule",
    "as_photos",
    "denormalize",
    "eval_transform",
    "train_transform",
    "weak_transform",
]
