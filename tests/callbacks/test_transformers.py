"""Regularizers of patch tokens on a vision transformer of timm, and PPC with a memory on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.literal import token_pairs as literal
from tests.modules.tiny import CLASSES, OPTIONS, loader, trainer
from wsss_contrast.callbacks import (
    AttentionAffinityCallback,
    PatchTokenContrastCallback,
    PrototypeContrastCallback,
    timm_attention,
)
from wsss_contrast.losses import PrototypeContrast
from wsss_contrast.modules import CAM
from wsss_contrast.nn import ClassMemoryBank
from wsss_contrast.refine import PixelAdaptiveRefinement

VIT: dict[str, Any] = {"backbone": "test_vit", "output_stride": None, "dropout": 0.0}


def vit() -> CAM:
    torch.manual_seed(0)
    return CAM(CLASSES, **OPTIONS | VIT)


def token_contrast(**options: Any) -> PatchTokenContrastCallback:
    width = vit().backbone.out_channels
    return PatchTokenContrastCallback("dropout", "backbone.net.blocks.2", CLASSES, width, **options)


def affinity(**options: Any) -> AttentionAffinityCallback:
    blocks = [f"backbone.net.blocks.{index}" for index in (4, 5)]
    heads = sum(vit().get_submodule(name).attn.num_heads for name in blocks)
    return AttentionAffinityCallback(timm_attention(*blocks), "classifier", heads, **options)


class Logged:
    """What was logged at each step."""

    def __init__(self, host: Any) -> None:
        self.values: list[dict[str, float]] = []
        real = host.log_dict
        host.log_dict = lambda values, **options: (self.values.append(values), real(values, **options))


def run(folder: Path, *callbacks: Any, steps: int = 1) -> tuple[CAM, list[dict[str, float]]]:
    host = vit()
    logged = Logged(host)
    trainer(folder, max_steps=steps, callbacks=[*callbacks]).fit(host, loader())
    return host, logged.values


def test_patch_token_contrast(tmp_path: Path) -> None:
    """Its value is the loss of the last tokens under the labels of the middle ones; both networks learn."""
    callback, seen = token_contrast(weight=1.0), []
    real = callback.loss.forward
    callback.loss.forward = lambda features, labels: (seen.append((features, labels)), real(features, labels))[1]
    host, (terms,) = run(tmp_path, callback)
    ((features, labels),) = seen
    assert features.shape[1] == host.backbone.out_channels
    assert labels.shape[1:] == features.shape[2:]
    assert set(labels.unique().tolist()) >= {0, 255}
    expected = literal.patch_token_contrast(features.double(), labels)
    prefix = "train/patch_token_contrast"
    assert float(terms[f"{prefix}/positive"] + terms[f"{prefix}/negative"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(terms[f"{prefix}/auxiliary"]) > 0
    plain, _ = run(tmp_path)
    assert moved(host, plain, "backbone.net.blocks.5")


def test_attention_affinity(tmp_path: Path) -> None:
    callback, seen = affinity(weight=1.0, refine=PixelAdaptiveRefinement()), []
    real = callback.loss.forward
    callback.loss.forward = lambda logits, labels: (seen.append((logits, labels)), real(logits, labels))[1]
    host, (terms,) = run(tmp_path, callback)
    ((logits, labels),) = seen
    tokens = labels.shape[1] * labels.shape[2]
    assert logits.shape == (2, tokens, tokens)
    expected = literal.attention_affinity(logits.double(), labels, 8)
    prefix = "train/attention_affinity"
    assert float(terms[f"{prefix}/positive"] + terms[f"{prefix}/negative"]) == pytest.approx(float(expected), rel=1e-5)
    plain, _ = run(tmp_path)
    assert moved(host, plain, "backbone.net.blocks.5.attn.qkv")


def test_the_tap_gives_what_the_transformer_attends_by() -> None:
    host = vit().eval()
    block = host.get_submodule("backbone.net.blocks.1")
    outputs: dict[str, Tensor] = {}
    for name in ("attn.q_norm", "attn.k_norm"):
        block.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: outputs.update({f"block.{name}": output})
        )
    block.attn.fused_attn = False
    block.attn.attn_drop.register_forward_hook(lambda _, __, output: outputs.update(attention=output))
    host(torch.randn(1, 3, 64, 64))
    torch.testing.assert_close(timm_attention("block")(outputs).softmax(dim=-1), outputs["attention"])


def moved(host: Any, plain: Any, part: str) -> bool:
    pairs = zip(host.get_submodule(part).parameters(), plain.get_submodule(part).parameters(), strict=True)
    return any(not torch.equal(one, other) for one, other in pairs)


def test_prototype_contrast_with_a_memory(tmp_path: Path) -> None:
    bank = ClassMemoryBank(CLASSES + 1, 8, capacity=32, background_capacity=32)
    callback = PrototypeContrastCallback(embedding_dim=8, view_size=48, loss=PrototypeContrast(top_k=4, bank=bank))
    _, logged = run(tmp_path, callback, steps=2)
    assert all(torch.isfinite(torch.as_tensor(value)) for values in logged for value in values.values())
    assert int(callback.parts.loss.bank.counts.sum()) > 0


def test_all_at_once_in_any_order(tmp_path: Path) -> None:
    found = []
    for order in (1, -1):
        callbacks = [token_contrast(), affinity(), PrototypeContrastCallback(embedding_dim=8, view_size=48)][::order]
        host, _ = run(tmp_path, *callbacks, steps=2)
        found.append(host.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("make", [token_contrast, affinity])
def test_a_rank_that_skips_the_step(make: Any, tmp_path: Path) -> None:
    callback = make()
    run(tmp_path, callback)
    callback._images = torch.zeros(2, 3, 64, 64)
    tags = torch.zeros(0, CLASSES)
    terms = callback.regularize([callback._empty(tags)], tags, torch.Generator())
    assert all(float(term.detach()) == 0 for term in terms.values())


@pytest.mark.parametrize("make", [token_contrast, affinity])
def test_thresholds_out_of_order(make: Any) -> None:
    with pytest.raises(ValueError, match=r"0 <= background <= foreground < 1, got 0.8 and 0.5"):
        make(background_threshold=0.8, foreground_threshold=0.5)
