"""CSRM's losses but the contrast, and their total, against their literal readings; and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.literal import csrm as literal
from wsss_contrast import losses
from wsss_contrast.losses import (
    ActivationConsistency,
    CSRMLoss,
    CSRMMaps,
    CSRMSchedule,
    MultilabelSoftMargin,
    ReliableSegmentation,
    WeakToStrong,
)
from wsss_contrast.nn import ClassMemoryBank

from .cases import contrast_draws, unreliable_pixels

SMOOTHING = pytest.mark.parametrize("smoothing", [0.0, 0.1])
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()


def some_labels(seed: int, *shape: int, classes: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, shape, generator=generator)
    return labels.masked_fill(torch.rand(shape, generator=generator) < 0.3, 255)


def assert_same(got: Tensor, want: Tensor, *leaves: Tensor) -> None:
    """Value and gradient."""
    torch.testing.assert_close(got, want, **CLOSE)
    slopes = [torch.autograd.grad(x, leaves, allow_unused=True, retain_graph=True) for x in (got, want)]
    for ours, theirs in zip(*slopes, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, **CLOSE)


def assert_zero_with_a_graph(loss: Tensor, *leaves: Tensor) -> None:
    assert loss == 0
    for slope in torch.autograd.grad(loss, leaves):
        assert (slope == 0).all()


@SMOOTHING
def test_soft_margin(smoothing: float) -> None:
    cams, tags = normal(0, 3, 4, 2, 3), torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    assert_same(MultilabelSoftMargin(smoothing)(cams, tags), literal.soft_margin(cams, tags, smoothing), cams)


# Reliable-pixel segmentation.


@SMOOTHING
@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("size", [(3, 4), (6, 5)], ids=str)
def test_reliable_segmentation(size: tuple[int, int], per_image: bool, smoothing: float) -> None:
    """Of four images one has no label, one no foreground."""
    logits, labels = normal(1, 4, 4, 3, 4), some_labels(2, 4, *size)
    labels[1], labels[2] = 255, 0
    loss = ReliableSegmentation(smoothing, per_image)
    assert_same(loss(logits, labels), literal.reliable_segmentation(logits, labels, smoothing, per_image), logits)
    hard = torch.nn.functional.one_hot(labels.clamp_max(3), 4).movedim(-1, 1) * (labels != 255)[:, None]
    torch.testing.assert_close(loss(logits, hard.double()), loss(logits, labels), **CLOSE)


@SMOOTHING
@pytest.mark.parametrize("per_image", [True, False])
def test_segmentation_of_soft_labels(per_image: bool, smoothing: float) -> None:
    logits, labels = normal(3, 3, 4, 3, 4), literal.tag_probabilities(normal(4, 3, 4, 3, 4).detach(), None)
    labels[0, :, 1] = 0
    labels[1, 0] += 100
    labels[1] /= labels[1].sum(dim=0)
    loss = ReliableSegmentation(smoothing, per_image)(logits, labels)
    assert_same(loss, literal.reliable_segmentation(logits, labels, smoothing, per_image), logits)


def test_segmentation_means_differ() -> None:
    logits, labels = normal(5, 2, 4, 3, 4), some_labels(6, 2, 3, 4)
    labels[0, 1:] = 255
    assert ReliableSegmentation()(logits, labels) == ReliableSegmentation(0.0, True)(logits, labels)
    assert not torch.isclose(ReliableSegmentation()(logits, labels), ReliableSegmentation(0.0, False)(logits, labels))


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("label", [0, 255])
def test_segmentation_without_foreground(label: int, per_image: bool) -> None:
    logits, labels = normal(7, 2, 4, 3, 4), torch.full((2, 3, 4), label)
    assert_zero_with_a_graph(ReliableSegmentation(0.1, per_image)(logits, labels), logits)
    assert_zero_with_a_graph(ReliableSegmentation(0.1, per_image)(logits, torch.zeros(2, 4, 3, 4)), logits)


LOGITS, LABELS = torch.zeros(2, 4, 3, 4), torch.zeros(2, 3, 4, dtype=torch.long)
BAD_LABELS = [
    ((LOGITS * math.nan, LABELS), "`logits` has NaN"),
    ((LOGITS[0], LABELS), r"`logits`.*\(4, 3, 4\)"),
    ((LOGITS.long(), LABELS), "`logits`.*torch.int64"),
    ((LOGITS, LABELS[0]), r"`labels` must be an int64 \(N, H, W\) tensor of 2 images, got torch.int64 \(3, 4\)"),
    ((LOGITS, LABELS[:1]), r"`labels` must be an int64.*of 2 images, got torch.int64 \(1, 3, 4\)"),
    ((LOGITS, LABELS.int()), "`labels` must be an int64.*torch.int32"),
    ((LOGITS, LABELS + 4), r"`labels` must be ids 0 to 3 or 255, got \[4\]"),
    ((LOGITS, LABELS - 1), r"`labels` must be ids 0 to 3 or 255, got \[-1\]"),
]


@pytest.mark.parametrize(("inputs", "message"), BAD_LABELS)
def test_segmentation_refuses(inputs: tuple[Tensor, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReliableSegmentation()(*inputs)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(2, 3, 3, 4), r"soft labels \(2, 3, 3, 4\) do not go with logits \(2, 4, 3, 4\)"),
        (torch.zeros(1, 4, 3, 4), r"soft labels \(1, 4, 3, 4\) do not go"),
        (torch.zeros(2, 3, 4), r"`labels` must be a floating \(N, C, h, w\)"),
        (torch.full((2, 4, 3, 4), math.nan), "`labels` has NaN"),
    ],
)
def test_segmentation_refuses_soft_labels(labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReliableSegmentation()(LOGITS, labels)


# Segmentation to activation maps.


@SMOOTHING
@pytest.mark.parametrize("sizes", [((3, 4), (3, 4), (3, 4)), ((2, 2), (3, 2), (4, 5))], ids=str)
def test_activation_consistency(sizes: tuple[tuple[int, int], ...], smoothing: float) -> None:
    """No gradient flows through the background."""
    cams, background = normal(8, 3, 3, *sizes[0]), normal(9, 3, 1, *sizes[1])
    labels = some_labels(10, 3, *sizes[2])
    got = ActivationConsistency(smoothing)(cams, background, labels)
    assert_same(got, literal.activation_consistency(cams, background, labels, smoothing), cams, background)


def test_no_confident_pixel() -> None:
    """As with a confidence of 1, where the released code gives NaN."""
    cams, background = normal(11, 2, 3, 2, 2), normal(12, 2, 1, 4, 4)
    probabilities = literal.tag_probabilities(normal(13, 2, 4, 4, 4).detach(), torch.zeros(2, 3))
    labels = losses.csrm.functional.confident_labels(probabilities, 1.0)
    assert (labels == 255).all()
    assert_zero_with_a_graph(ActivationConsistency(0.1)(cams, background, labels), cams)


CAMS = LOGITS[:, 1:]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((CAMS * math.nan, LOGITS[:, :1], LABELS), "`cams` has NaN"),
        ((CAMS, LOGITS[:, :1] + math.inf, LABELS), "`background` has NaN or infinite"),
        ((CAMS, LOGITS[:, :2], LABELS), r"`background` must have one channel, got \(2, 2, 3, 4\)"),
        ((CAMS, LOGITS[:1, :1], LABELS), "batch sizes differ"),
        ((CAMS, LOGITS[:, :1], LABELS[:1]), "of 2 images"),
        ((CAMS, LOGITS[:, :1], LABELS.float()), "torch.float32"),
        ((CAMS, LOGITS[:, :1], LABELS + 4), r"ids 0 to 3 or 255, got \[4\]"),
    ],
)
def test_activation_consistency_refuses(inputs: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActivationConsistency()(*inputs)


# Weak to strong.


@pytest.mark.parametrize("normalizer", ["kept", "all"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("size", [(3, 4), (6, 5)], ids=str)
def test_weak_to_strong(size: tuple[int, int], share: float, normalizer: str) -> None:
    logits, labels = normal(14, 3, 4, 3, 4), some_labels(15, 3, *size)
    entropy = normal(16, 3, *size).detach().abs()
    entropy[labels == 255] = 50.0  # no part of the quantile
    got = WeakToStrong(normalizer)(logits, labels, entropy, share)
    assert_same(got, literal.weak_to_strong(logits, labels, entropy, share, normalizer), logits)
    assert got > 0


@pytest.mark.parametrize("normalizer", ["kept", "all"])
@pytest.mark.parametrize("case", ["flat", "all 255", "share 1"])
def test_nothing_kept(case: str, normalizer: str) -> None:
    logits, labels, entropy = normal(17, 2, 4, 3, 4), some_labels(18, 2, 3, 4), normal(19, 2, 3, 4).detach()
    if case == "flat":
        entropy = torch.full_like(entropy, math.log(4))
    if case == "all 255":
        labels = torch.full_like(labels, 255)
    loss = WeakToStrong(normalizer)(logits, labels, entropy, 1.0 if case == "share 1" else 0.2)
    assert_zero_with_a_graph(loss, logits)


ENTROPY = torch.rand(2, 3, 4)


@pytest.mark.parametrize(("inputs", "message"), BAD_LABELS)
def test_weak_to_strong_refuses(inputs: tuple[Tensor, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeakToStrong()(*inputs, ENTROPY, 0.2)


@pytest.mark.parametrize(
    ("entropy", "share", "message"),
    [
        (ENTROPY[:, 1:], 0.2, r"`entropy` must be floating and of shape \(2, 3, 4\).*\(2, 2, 4\)"),
        (ENTROPY.long(), 0.2, "`entropy` must be floating.*torch.int64"),
        (ENTROPY * math.nan, 0.2, "`entropy` has NaN"),
        (ENTROPY, 20.0, r"`share` must be in \[0, 1\], got 20.0"),
        (ENTROPY, math.nan, r"`share` must be in \[0, 1\], got nan"),
    ],
)
def test_weak_to_strong_refuses_entropy(entropy: Tensor, share: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeakToStrong()(LOGITS, LABELS, entropy, share)


def test_options_that_cannot_be() -> None:
    for loss in (MultilabelSoftMargin, ReliableSegmentation, ActivationConsistency):
        for smoothing in (-0.1, 1.0, math.nan):
            with pytest.raises(ValueError, match=rf"`label_smoothing` must be in \[0, 1\), got {smoothing}"):
                loss(smoothing)
    with pytest.raises(ValueError, match="'kept' or 'all', got 'mean'"):
        WeakToStrong("mean")


# Schedules.


@pytest.mark.parametrize("scheduled", ["confidence", "weight"])
@pytest.mark.parametrize("epoch", range(16))
def test_schedules(epoch: int, scheduled: str) -> None:
    schedule, progress = CSRMSchedule(scheduled=scheduled), epoch / 15
    want = literal.schedule(epoch, "paper" if scheduled == "confidence" else "official")
    assert schedule.confidence(progress) == pytest.approx(want["confidence"])
    assert schedule.unreliable_share(progress) == pytest.approx(want["unreliable"])
    weights = schedule.weights(progress)
    assert weights.pop("classification") == weights.pop("segmentation") == 1
    assert weights == {name: pytest.approx(want[name]) for name in ("seg_to_cam", "weak_to_strong", "contrast")}


def test_schedules_at_their_ends() -> None:
    assert CSRMSchedule().confidence(1.0) == 1
    assert CSRMSchedule(scheduled="weight").weights(1.0)["seg_to_cam"] == 1
    assert CSRMSchedule().unreliable_share(1.0) == 0
    assert set(CSRMSchedule(warmup=0.0).weights(0.0).values()) == {1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compat": "released"}, "`compat` must be 'paper' or 'official', got 'released'"),
        ({"warmup": 1.0}, r"`warmup` must be in \[0, 1\), got 1.0"),
        ({"unreliable": 20}, r"`unreliable` must be in \[0, 1\], got 20"),
        ({"scheduled": "sigma"}, "`scheduled` must be 'confidence' or 'weight', got 'sigma'"),
        ({"label_smoothing": 1.0}, "`label_smoothing`"),
        ({"normalizer": "mean"}, "`normalizer`"),
    ],
)
def test_totals_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CSRMLoss(5, 3, **options, bank=ClassMemoryBank(5, 3))


# The total.

CAPACITIES = (9, 7, 7, 7, 7)


def batch(seed: int = 20, images: int = 4) -> dict[str, Any]:
    """Student, teacher, their labels and tags; small maps, and labels of twice their size."""
    pixels = unreliable_pixels(seed, images)
    student = CSRMMaps(normal(seed + 1, images, 4, 2, 2), normal(seed + 2, images, 5, 4, 3), pixels.embeddings)
    teacher = CSRMMaps(student.cams.detach(), pixels.teacher_logits, pixels.teacher_embeddings)
    plain = torch.nn.functional.interpolate(pixels.teacher_logits, scale_factor=2) * 0.8
    return {
        "student": student,
        "teacher": teacher,
        "plain_logits": plain + 0.2 * normal(seed + 3, *plain.shape).detach(),
        "labels": pixels.labels,
        "tags": pixels.tags,
        "original_tags": pixels.tags.flip(0),
        "labeled": images // 2,
    }


def total(compat: str, **options: Any) -> CSRMLoss:
    bank = ClassMemoryBank(5, 3, CAPACITIES[1], CAPACITIES[0], torch.float64)
    contrast = {"queries": 4, "negatives": 3} | options.pop("contrast", {})
    return CSRMLoss(5, 3, compat, contrast=contrast, bank=bank, **options)


@pytest.mark.parametrize("compat", ["paper", "official"])
def test_total(compat: str) -> None:
    """Both presets, in the warm-up, after it and at the end, with one memory."""
    loss, memory, draws = total(compat), literal.Fifo(CAPACITIES), contrast_draws(21)
    seen = {}
    for epoch in (0, 1, 6, 15):
        inputs = batch(22 + epoch)
        got = loss(**inputs, progress=epoch / 15, draws=draws)
        want = literal.terms(*inputs.values(), epoch, compat, memory, *draws)
        assert list(got) == list(want)
        for name in got:
            assert_same(got[name], want[name], *inputs["student"])
        for index in range(5):
            rows = [literal.torch.nn.functional.normalize(row, dim=0) for row in memory.rows[index]]
            torch.testing.assert_close(loss.contrast.bank.rows(index), torch.stack(rows), **CLOSE) if rows else None
            assert len(rows) == loss.contrast.bank.counts[index]
        seen[epoch] = {name for name, term in got.items() if term > 0}
        assert all(term.requires_grad for term in got.values())
    assert seen[0] == {"classification", "segmentation"}
    assert seen[6] >= {"classification", "segmentation", "seg_to_cam", "weak_to_strong"}
    assert compat == "paper" or "contrast" in seen[6]


def test_the_presets() -> None:
    """Each of the constants where paper and released code differ."""
    found = {}
    for compat in ("paper", "official"):
        loss = CSRMLoss(5, 3, compat, bank=ClassMemoryBank(5, 3))
        contrast = loss.contrast
        found[compat] = (
            *(loss.classification.label_smoothing, loss.segmentation.label_smoothing, loss.seg_to_cam.label_smoothing),
            *(loss.segmentation.per_image, loss.schedule.scheduled, loss.mask_by_tags, loss.mixed_tags),
            *(loss.weak_to_strong.normalizer, contrast.queries, contrast.negatives, contrast.high_rank_included),
            *(contrast.negative_confidence, contrast.own_class, contrast.class_mean),
        )
        assert (contrast.temperature, contrast.low_rank, contrast.high_rank, contrast.query_confidence) == (
            0.5,
            3,
            6,
            0.3,
        )
    assert found["paper"] == (0, 0, 0, True, "confidence", False, True, "kept", 50, 256, False, 0.01, False, "all")
    assert found["official"] == (
        *(0.1, 0.1, 0.1, False, "weight", True, False, "all", 256, 50, True, 1.0, True, "present"),
    )
    assert CSRMLoss(5, 3, bank=ClassMemoryBank(5, 3)).mixed_tags


@pytest.mark.parametrize(
    ("option", "term"),
    [
        ({"label_smoothing": 0.2}, "classification"),
        ({"label_smoothing": 0.2}, "segmentation"),
        ({"label_smoothing": 0.2}, "seg_to_cam"),
        ({"per_image": False}, "segmentation"),
        ({"scheduled": "weight"}, "seg_to_cam"),
        ({"mask_by_tags": True}, "seg_to_cam"),
        ({"mask_by_tags": True}, "weak_to_strong"),
        ({"normalizer": "all"}, "weak_to_strong"),
        ({"mixed_tags": False}, "contrast"),
        ({"contrast": {"negative_confidence": 1.0, "temperature": 0.1}}, "contrast"),
        ({"unreliable": 0.5}, "weak_to_strong"),
    ],
)
def test_an_option_stands_above_the_preset(option: dict[str, Any], term: str) -> None:
    contrast = {"negative_confidence": 0.9} | option.get("contrast", {})
    numbers = {"progress": 0.4, "draws": contrast_draws(24)}
    plain = total("paper", contrast={"negative_confidence": 0.9})(**batch(25), **numbers)
    changed = total("paper", **{**option, "contrast": contrast})(**batch(25), **numbers)
    assert not torch.isclose(plain[term], changed[term])


def test_soft_labels_replace_the_hard_ones_of_the_segmentation_only() -> None:
    inputs, numbers = batch(), {"progress": 0.4, "draws": contrast_draws(26)}
    labels = inputs["labels"]
    hard = torch.nn.functional.one_hot(labels.clamp_max(4), 5).movedim(-1, 1) * (labels != 255)[:, None]
    expected = total("paper")(**inputs, **numbers)
    same = total("paper")(**inputs, **numbers, soft_labels=hard.double())
    torch.testing.assert_close(same, expected, **CLOSE)
    other = total("paper")(**inputs, **numbers, soft_labels=hard.double() * 0.5 + 0.1)
    assert [name for name in other if not torch.equal(other[name], expected[name])] == ["segmentation"]


def test_labels_of_the_unlabelled_images_count_for_nothing() -> None:
    inputs, numbers = batch(), {"progress": 0.4, "draws": contrast_draws(27)}
    changed = inputs | {"labels": inputs["labels"].clone()}
    changed["labels"][2:] = 3
    assert total("paper")(**inputs, **numbers) == total("paper")(**changed, **numbers)


@pytest.mark.parametrize("compat", ["paper", "official"])
@pytest.mark.parametrize("labeled", [0, 4])
def test_batches_of_one_kind_of_image(labeled: int, compat: str) -> None:
    terms = total(compat)(**batch() | {"labeled": labeled}, progress=0.5)
    assert all(term.isfinite() and term.requires_grad for term in terms.values())
    assert (terms["segmentation"] > 0) == (labeled == 4)
    assert (terms["weak_to_strong"] > 0) == (labeled == 0)


@pytest.mark.parametrize("compat", ["paper", "official"])
def test_images_without_tags_or_labels(compat: str) -> None:
    inputs = batch() | {"tags": torch.zeros(4, 4), "original_tags": None}
    inputs["labels"] = torch.full_like(inputs["labels"], 255)
    terms = total(compat)(**inputs, progress=0.5)
    assert all(term.isfinite() and term.requires_grad for term in terms.values())
    assert terms["segmentation"] == 0


FINE = batch()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"plain_logits": FINE["plain_logits"] * math.nan}, "`plain_logits` has NaN"),
        ({"plain_logits": FINE["plain_logits"][:, 1:]}, "numbers of channels differ"),
        ({"plain_logits": FINE["plain_logits"][:, :, 1:]}, r"`plain_logits` \(4, 5, 7, 6\) and `labels` \(4, 8, 6\)"),
        ({"plain_logits": FINE["plain_logits"][:3]}, "batch sizes differ"),
        ({"labels": FINE["labels"][:3]}, r"`plain_logits` \(4, 5, 8, 6\) and `labels` \(3, 8, 6\) differ"),
        ({"labels": FINE["labels"] + 1}, "`labels` must be ids 0 to 4 or 255"),
        ({"labels": FINE["labels"].int()}, "`labels` must be an int64"),
        ({"tags": FINE["tags"][:, 1:]}, "`tags` must be a multi-hot"),
        ({"tags": FINE["tags"] + 1}, "`tags` must be 0 or 1"),
        ({"original_tags": FINE["tags"][:, 1:]}, "`tags` must be a multi-hot"),
        ({"labeled": 5}, "`labeled` must be at most the 4 images, got 5"),
        ({"labeled": -1}, "`labeled` must be at most the 4 images, got -1"),
        ({"progress": 1.5}, r"`progress` must be in \[0, 1\], got 1.5"),
        ({"student": FINE["student"]._replace(cams=FINE["student"].cams * math.nan)}, "`cams` has NaN"),
        ({"student": FINE["student"]._replace(segmentation=FINE["student"].segmentation * math.nan)}, "has NaN"),
        ({"student": FINE["student"]._replace(embeddings=FINE["student"].embeddings * math.nan)}, "has NaN"),
        ({"teacher": FINE["teacher"]._replace(embeddings=FINE["teacher"].embeddings * math.nan)}, "has NaN"),
        ({"teacher": FINE["teacher"]._replace(segmentation=FINE["teacher"].segmentation * math.nan)}, "has NaN"),
    ],
)
def test_total_refuses(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        total("official")(**{"progress": 0.5} | FINE | changed)
