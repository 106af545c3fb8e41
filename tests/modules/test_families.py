"""Families of timm backbones through the `CAM` module with PPC: one training step each, and those that can't serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from wsss_contrast.callbacks import PrototypeContrastCallback
from wsss_contrast.modules import CAM
from wsss_contrast.nn import TimmBackbone

from .tiny import CLASSES, loader, trainer

# backbone, output stride asked for, side of the photos, stride of the maps
CNNS = [
    ("resnet10t", 16, 64, 16),
    ("resnest14d", 16, 64, 16),
    ("convnext_atto", 16, 64, 16),
    ("convnextv2_atto", 16, 64, 16),
    ("regnety_002", 16, 64, 16),
    ("densenet121", None, 128, 32),
    ("efficientnet_lite0", 16, 64, 16),
    ("mobilenetv3_small_050", None, 128, 32),
    ("mobilenetv4_conv_small_035", None, 128, 32),
    ("poolformer_s12", None, 128, 32),
]
TRANSFORMERS = [  # their features are tokens, or maps in NHWC
    ("vit_tiny_patch16_224", None, 64, 16),
    ("deit_tiny_distilled_patch16_224", None, 64, 16),
    ("eva02_tiny_patch14_224", None, 70, 14),
    ("vit_small_patch14_dinov2", None, 56, 14),
    ("vit_tiny_patch16_dinov3_qkvb", None, 64, 16),
    ("swin_tiny_patch4_window7_224", None, 128, 32),
    ("pvt_v2_b0", None, 128, 32),
    ("xcit_nano_12_p16_224", None, 64, 16),
]
FAMILIES = CNNS + TRANSFORMERS

UNFIT = [
    ("mixer_s32_224", "it takes photos of 224 x 224, but not of 168 x 113"),  # mixes a fixed number of tokens
    ("cait_xxs24_224", "it takes photos of 224 x 224, but not of 168 x 113"),  # fixed position embedding
    ("vit_relpos_small_patch16_224", "it takes photos of 224 x 224, but not of 168 x 113"),  # fixed relative positions
    ("test_maxvit", "it takes photos of 160 x 160, but not of 120 x 81"),  # windows that must divide the map
    ("halonet26t", "it takes photos of 256 x 256, but not of 192 x 129"),  # blocks that must divide the map
    ("crossvit_tiny_240", "it gives no maps of photos of 240 x 240"),  # two branches of tokens
    ("pit_ti_224", "it gives no maps of photos of 224 x 224"),  # its last features are class tokens
]


@pytest.mark.parametrize(("name", "output_stride", "side", "stride"), FAMILIES, ids=[f[0] for f in FAMILIES])
def test_one_step_with_contrast(name: str, output_stride: int | None, side: int, stride: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = CAM(CLASSES, name, weights=None, output_stride=output_stride, scales=(1.0,), flip=False)
    contrast = PrototypeContrastCallback(view_size=side * 3 // 4)
    maps: list[tuple[int, ...]] = []
    gradients: dict[str, list[Tensor | None]] = {}

    def keep_gradients(*_: Any) -> None:
        for part, trained in (("backbone", module.backbone), ("projector", contrast.parts.projector)):
            gradients[part] = [p.grad for p in trained.parameters() if p.requires_grad]

    module.on_before_optimizer_step = keep_gradients
    handle = module.classifier.register_forward_hook(lambda _, inputs, output: maps.append(tuple(output.shape)))
    run = trainer(tmp_path, max_steps=1, callbacks=[contrast])
    run.fit(module, loader(side=side))
    handle.remove()

    assert maps[0] == (2, CLASSES, side // stride, side // stride)
    assert len(maps) == 2
    assert maps[1][2] < maps[0][2]
    logged = {key.split("/")[-1]: value for key, value in run.callback_metrics.items()}
    assert {"loss", "cross_prototype", "cross_cam", "intra_view"} <= set(logged)
    assert all(bool(value.isfinite()) for value in logged.values())
    assert logged["cross_prototype"] > 0
    for part, found in gradients.items():
        assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in found), part
        assert any(bool(gradient.any()) for gradient in found), part


@pytest.mark.parametrize(("name", "output_stride", "side", "stride"), TRANSFORMERS, ids=[f[0] for f in TRANSFORMERS])
@torch.no_grad()
def test_maps_lie_where_the_photo_has_them(name: str, output_stride: int | None, side: int, stride: int) -> None:
    """A change in one corner of a photo that is wider than high moves the map most in that corner."""
    torch.manual_seed(0)
    backbone = TimmBackbone(name, None, output_stride).eval()
    height, width = 4 * stride, 6 * stride
    photos = torch.randn(1, 3, height, width).repeat(3, 1, 1, 1)
    photos[1, :, :stride, -stride:] += 3  # upper right
    photos[2, :, -stride:, :stride] += 3  # lower left
    maps, _ = backbone(photos)
    assert maps.shape[2:] == (4, 6)
    places = [divmod(int((moved - maps[0]).norm(dim=0).argmax()), 6) for moved in maps[1:]]
    assert [(row < 2, column < 3) for row, column in places] == [(True, False), (False, True)]


@pytest.mark.parametrize(("name", "reason"), UNFIT, ids=[u[0] for u in UNFIT])
def test_unfit_is_refused_by_name(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^timm model `{name}` can't serve as a backbone: {reason} "):
        CAM(CLASSES, name, weights=None, output_stride=None)


def test_model_without_intermediate_maps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare(torch.nn.Module):
        pass

    monkeypatch.setattr(timm, "create_model", lambda *_, **__: Bare())
    with pytest.raises(ValueError, match="`resnet18` can't serve as a backbone: it has no `forward_intermediates`"):
        CAM(CLASSES, "resnet18", weights=None)
