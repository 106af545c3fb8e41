"""What DeepLabV3+ of segmentation-models-pytorch can't do. The rest is tested with the segmenter."""

from __future__ import annotations

import pytest
import torch

from wsss_contrast.nn import DeepLabV3Plus

pytest.importorskip("segmentation_models_pytorch")


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("backbone", ["resnet38d", "vgg11", "densenet121"])
def test_backbones_that_can_not_be_its_encoder(backbone: str, output_stride: int) -> None:
    """ResNet38d, of whose maps two share a stride, and networks without an output stride."""
    older = "serve as a backbone: it has no `forward_intermediates`"  # timm 1.0.15, of two of them
    match = f"`{backbone}` can't (be the encoder of DeepLabV3. with output stride {output_stride}: |{older})"
    with torch.device("meta"), pytest.raises(ValueError, match=match):
        DeepLabV3Plus(backbone, None, 3, output_stride)


def test_a_batch_of_one() -> None:
    torch.manual_seed(0)
    network, images = DeepLabV3Plus("test_resnet", None, 3), torch.randn(2, 3, 64, 64)
    assert network(images).shape == (2, 3, 64, 64)
    with pytest.raises(ValueError, match=r"DeepLabV3\+ can't train on a batch of 1.*; use a larger batch"):
        network(images[:1])
    assert network.eval()(images[:1]).shape == (1, 3, 64, 64)
