"""Regularizers of patch tokens on a vision transformer of timm, and contrasts with a memory on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.literal import token_pairs as literal
from tests.modules.tiny import CLASSES, OPTIONS, loader, trainer
from wsss_contrast.callbacks import (
    AttentionAffinityCallback,
    EMATeacherCallback,
    PatchTokenContrastCallback,
    PrototypeContrastCallback,
    TapError,
    UnreliablePixelContrastCallback,
    timm_attention,
)
from wsss_contrast.data import as_photos
from wsss_contrast.functional import attention_scores
from wsss_contrast.losses import CSRMSchedule, PrototypeContrast, UnreliablePixelContrast
from wsss_contrast.modules import CAM
from wsss_contrast.nn import AttentionAffinityHead, ClassMemoryBank

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


def literal_labels(cams: Tensor, tags: Tensor, low: float, high: float) -> Tensor:
    """A pixel's class where its normalised map exceeds ``high``, background where none exceeds ``low``."""
    count, classes, height, width = cams.shape
    labels = torch.zeros(count, height, width, dtype=torch.int64)
    for n in range(count):
        maps = []
        for k in range(classes):
            values = cams[n, k].clamp(min=0)
            normalised = (values - values.min() - 1e-5) / (values.max() - values.min() + 1e-5)
            maps.append(normalised.clamp(min=0) * tags[n, k])
        score, best = torch.stack(maps).max(dim=0)
        labels[n] = torch.where(score > high, best + 1, torch.where(score > low, 255, 0))
    return labels


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
    callback, seen, middle = token_contrast(weight=1.0), [], []
    real, build = callback.loss.forward, callback.build
    callback.loss.forward = lambda features, labels: (seen.append((features, labels)), real(features, labels))[1]

    def watched(width: int) -> torch.nn.Module:
        parts = build(width)
        parts.classifier.register_forward_hook(lambda _, inputs, output: middle.append((inputs[0], output.detach())))
        return parts

    callback.build = watched
    host, (terms,) = run(tmp_path, callback)
    ((features, labels),) = seen
    ((tokens, cams),) = middle
    data = next(iter(loader()))
    outputs: list[Tensor] = []
    start = vit()
    start.get_submodule("backbone.net.blocks.2").register_forward_hook(lambda _, __, output: outputs.append(output))
    with torch.no_grad():
        start.train()(data["image"])
    grid = tuple(labels.shape[1:])
    torch.testing.assert_close(tokens, outputs[0][:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid))
    assert torch.equal(labels, literal_labels(cams, data["tags"], 0.25, 0.7))
    assert set(labels.unique().tolist()) >= {0, 255}
    assert features.shape[1] == host.backbone.out_channels
    expected = literal.patch_token_contrast(features.detach().double(), labels)
    prefix = "train/patch_token_contrast"
    assert float(terms[f"{prefix}/positive"] + terms[f"{prefix}/negative"]) == pytest.approx(float(expected), rel=1e-5)
    auxiliary = torch.nn.functional.multilabel_soft_margin_loss(cams.amax(dim=(2, 3)), data["tags"])
    assert float(terms[f"{prefix}/auxiliary"]) == pytest.approx(float(auxiliary), rel=1e-5)
    plain, _ = run(tmp_path)
    assert moved(host, plain, "backbone.net.blocks.5")


def test_photos_that_are_resized_to_whole_patches(tmp_path: Path) -> None:
    """100 x 70 px are 6 x 4 patches, which are not square on the photo."""
    generator, shapes = torch.Generator().manual_seed(0), []
    photos = [{"image": torch.randn(3, 100, 70, generator=generator), "tags": torch.ones(CLASSES)} for _ in range(2)]
    callback = token_contrast()
    real = callback.loss.forward
    callback.loss.forward = lambda features, labels: (shapes.append(features.shape[2:]), real(features, labels))[1]
    trainer(tmp_path, max_steps=1, callbacks=[callback]).fit(vit(), DataLoader(photos, batch_size=2))
    assert shapes == [(6, 4)]


def test_attention_affinity(tmp_path: Path) -> None:
    refined, cams = [], []

    def refine(photos: Tensor, scores: Tensor, present: Tensor) -> Tensor:
        refined.append((photos, scores, present))
        return scores

    callback, seen = affinity(weight=1.0, refine=refine), []
    real, compare = callback.loss.forward, callback.regularize
    callback.loss.forward = lambda logits, labels: (seen.append((logits, labels)), real(logits, labels))[1]
    callback.regularize = lambda views, *more: (cams.append(views[0]["cams"].detach()), compare(views, *more))[1]
    host, (terms,) = run(tmp_path, callback)
    ((logits, labels),) = seen
    data = next(iter(loader()))
    assert torch.equal(refined[0][0][:2], as_photos(data["image"]))
    large = torch.nn.functional.interpolate(cams[0], (64, 64), mode="bilinear", align_corners=True)
    step = 64 // labels.shape[1]
    assert torch.equal(labels, literal_labels(large, data["tags"], 0.35, 0.55)[:, ::step, ::step])
    tokens = labels.shape[1] * labels.shape[2]
    assert logits.shape == (2, tokens, tokens)
    expected = literal.attention_affinity(logits.detach().double(), labels, 8)
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


class Segmenting(CAM):
    """Segments by its features as well."""

    def __init__(self) -> None:
        super().__init__(CLASSES, **OPTIONS | VIT)
        self.segmenter = nn.Conv2d(self.backbone.out_channels, CLASSES + 1, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        features, _ = self.backbone(images)
        self.segmenter(features)
        return self.classifier(features)


def test_contrast_of_unreliable_pixels(tmp_path: Path) -> None:
    """Of the last tokens with a memory of them: positive in each step, and the transformer gets a gradient of it."""
    torch.manual_seed(0)
    host, slopes = Segmenting(), []
    logged = Logged(host)
    loss = UnreliablePixelContrast(
        CLASSES + 1, 8, queries=4, negatives=5, query_confidence=0.0, negative_confidence=1.0
    )
    callback = UnreliablePixelContrastCallback(
        loss,
        "backbone.net.blocks.5",
        "classifier",
        "segmenter",
        in_channels=host.backbone.out_channels,
        schedule=CSRMSchedule(warmup=0.0),
        layout="NLC",
    )
    real = callback.compare

    def watched(*args: Any) -> Tensor:
        term = real(*args)
        (slope,) = torch.autograd.grad(
            term, host.get_parameter("backbone.net.blocks.5.attn.qkv.weight"), retain_graph=True
        )
        slopes.append(slope)
        return term

    callback.compare = watched
    batches = [{**data, "labeled": 1} for data in loader()] * 2
    teacher = EMATeacherCallback("backbone", copy_steps=1)
    trainer(tmp_path, max_steps=3, callbacks=[teacher, callback]).fit(host, DataLoader(batches, batch_size=None))
    values = torch.stack([torch.as_tensor(row["train/unreliable_contrast/contrast"]) for row in logged.values])
    assert len(values) == len(slopes) == 3
    assert bool(((values > 0) & values.isfinite()).all())
    assert all(bool(slope.isfinite().all()) and slope.abs().max() > 0 for slope in slopes)
    assert bool((loss.bank.counts > 0).any())


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


def test_attention_of_other_tokens_and_linear_classifiers_are_refused(tmp_path: Path) -> None:
    head = AttentionAffinityHead(2)
    with pytest.raises(ValueError, match=r"attention of shape \(1, 2, 40, 40\) is not of 16 patch tokens"):
        head([torch.zeros(1, 2, 40, 40)], 16)
    host = vit()
    host.linear = torch.nn.Linear(4, CLASSES)
    callback = AttentionAffinityCallback(timm_attention("backbone.net.blocks.1"), "linear", 4)
    with pytest.raises(TapError, match="`cams` taps a linear layer; tap or compute its maps"):
        trainer(tmp_path, callbacks=[callback]).fit(host, loader())


def test_scores_stay_in_float32_under_autocast() -> None:
    queries, head = torch.full((1, 2, 4, 4), 300.0), AttentionAffinityHead(2)
    with torch.autocast("cpu", torch.bfloat16):
        scores = attention_scores(queries.bfloat16(), queries.bfloat16())
        assert scores.dtype == head([scores], 4).dtype == torch.float32
    assert float(scores[0, 0, 0, 0]) == 300.0**2 * 4 / 2


@pytest.mark.parametrize("make", [token_contrast, affinity])
def test_thresholds_out_of_order(make: Any) -> None:
    with pytest.raises(ValueError, match=r"0 <= background <= foreground < 1, got 0.8 and 0.5"):
        make(background_threshold=0.8, foreground_threshold=0.5)
