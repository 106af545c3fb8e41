"""The contrast of unreliable pixels against its literal readings; what it must never do; what it refuses."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.literal import csrm as literal
from tests.literal.csrm_contrast import contrast as class_by_class
from wsss_contrast.functional import cross_supervision
from wsss_contrast.losses import ContrastDraws, UnreliablePixelContrast, unreliable_contrast
from wsss_contrast.nn import ClassMemoryBank, memory_bank

from .cases import Pixels, contrast_draws, unreliable_pixels

CLOSE = {"rtol": 1e-9, "atol": 1e-11}
CAPACITY, BACKGROUND = 7, 9
BASE = {"queries": 4, "negatives": 3, "low_rank": 2, "high_rank": 4, "negative_confidence": 0.2}


@pytest.fixture(params=["cpu", "device"])
def branch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on a CPU, and what runs where values cannot be read."""
    if request.param == "device":
        for module in (cross_supervision, memory_bank, unreliable_contrast):
            monkeypatch.setattr(module, "readable", lambda _: False)


def contrast(classes: int = 5, capacity: int = CAPACITY, background: int = BACKGROUND, **options: Any):
    bank = ClassMemoryBank(classes, 3, capacity, background, torch.float64)
    return UnreliablePixelContrast(classes, 3, **{**BASE, **options}, bank=bank)


def literal_options(options: dict[str, Any]) -> dict[str, Any]:
    chosen = {name: value for name, value in {**BASE, **options}.items() if name not in ("queries", "negatives")}
    chosen["confidence"] = chosen.pop("negative_confidence")
    return chosen


def assert_slope(got: Tensor, want: Tensor, leaf: Tensor) -> None:
    torch.testing.assert_close(got, want, **CLOSE)
    slopes = [torch.autograd.grad(x, leaf)[0] for x in (got, want)]
    torch.testing.assert_close(*slopes, **CLOSE)


def assert_zero_with_a_graph(loss: Tensor, inputs: Pixels) -> None:
    assert loss == 0
    assert (torch.autograd.grad(loss, inputs.embeddings)[0] == 0).all()


def assert_holds(bank: ClassMemoryBank, rows: list[list[Tensor]]) -> None:
    """In order, of unit length."""
    assert bank.counts.tolist() == [len(of_class) for of_class in rows]
    for index, of_class in enumerate(rows):
        if of_class:
            torch.testing.assert_close(bank.rows(index), normalize(torch.stack(of_class), dim=1), **CLOSE)


OPTIONS = [
    {},
    {"class_mean": "present"},
    {"own_class": True},
    {"high_rank_included": True},
    {"negative_confidence": 1.0},
    {"query_confidence": 0.7},
    {"temperature": 0.07},
    {"low_rank": 0, "high_rank": 3},
    {"low_rank": 2, "high_rank": 2},
    {"low_rank": 3, "high_rank": 6},
    {"low_rank": 1, "high_rank": 20},
    {"class_mean": "present", "own_class": True, "high_rank_included": True, "negative_confidence": 1.0},
]


@pytest.mark.usefixtures("branch")
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(map(str, options.values())) or "base")
def test_value_gradient_and_memory(options: dict[str, Any]) -> None:
    """Three steps with one memory, whose rings fill up and turn round; then one in evaluation, which writes none."""
    loss, memory = contrast(**options), literal.Fifo((BACKGROUND, *[CAPACITY] * 4))
    values = []
    for step, share in enumerate((0.3, 0.1, 0.3, 0.3)):
        loss.train(step < 3)
        inputs, draws = unreliable_pixels(step), contrast_draws(step)
        got = loss(*inputs, share, draws=draws)
        want = literal.contrast(*inputs, share, memory, *draws, train=step < 3, **literal_options(options))
        assert_slope(got, want, inputs.embeddings)
        assert_holds(loss.bank, memory.rows)
        values.append(float(got.detach()))
    assert max(values) > 0.1
    assert loss.bank.counts.sum() > 0
    assert loss.bank.counts.max() == BACKGROUND or "low_rank" in options


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_shares(share: float) -> None:
    """At 0 no unlabelled pixel is reliable, and that of highest entropy is unreliable; at 1 nearly all are both."""
    loss, memory, inputs, draws = (
        contrast(),
        literal.Fifo((BACKGROUND, *[CAPACITY] * 4)),
        unreliable_pixels(4),
        contrast_draws(4),
    )
    want = literal.contrast(*inputs, share, memory, *draws, **literal_options({}))
    assert_slope(loss(*inputs, share, draws=draws), want, inputs.embeddings)
    assert_holds(loss.bank, memory.rows)


def test_labelled_images_may_stand_anywhere() -> None:
    loss, memory, draws = contrast(), literal.Fifo((BACKGROUND, *[CAPACITY] * 4)), contrast_draws(5)
    inputs = unreliable_pixels(5)._replace(labeled=torch.tensor([False, True, False, True]))
    want = literal.contrast(*inputs, 0.3, memory, *draws, **literal_options({}))
    assert_slope(loss(*inputs, 0.3, draws=draws), want, inputs.embeddings)
    assert_holds(loss.bank, memory.rows)


def test_the_class_by_class_reading_agrees() -> None:
    """The one that the benchmark measures against, with the released constants."""
    options = {"class_mean": "present", "own_class": True, "high_rank_included": True, "negative_confidence": 1.0}
    loss = contrast(**options)
    memory = [torch.zeros(0, 3, dtype=torch.float64) for _ in range(5)]
    for step in range(3):
        inputs, draws = unreliable_pixels(step + 6), contrast_draws(step)
        inputs = inputs._replace(labels=inputs.labels[:, ::2, ::2])
        sizes = {"queries": 4, "negatives": 3, "low_rank": 2, "high_rank": 4}
        want = class_by_class(*inputs, 0.3, memory, [BACKGROUND, *[CAPACITY] * 4], **sizes, draws=draws)
        assert want > 0
        assert_slope(loss(*inputs, 0.3, draws=draws), want, inputs.embeddings)
        assert_holds(loss.bank, [list(rows) for rows in memory])
    constants = {"generator": torch.Generator().manual_seed(0)}
    assert class_by_class(*unreliable_pixels(9)._replace(labels=inputs.labels), 0.3, memory, [9] * 5, **constants) > 0


def test_it_may_be_sampled() -> None:
    """With the generator's numbers, which are those that draws hold."""
    inputs, numbers = unreliable_pixels(7), torch.rand(5, 4 + 12, generator=torch.Generator().manual_seed(3))
    draws = ContrastDraws(*numbers.split([4, 12], dim=1))
    want = contrast()(*inputs, 0.3, draws=draws)
    assert contrast()(*inputs, 0.3, generator=torch.Generator().manual_seed(3)) == want
    assert contrast()(*inputs, 0.3, generator=torch.Generator().manual_seed(4)) != want
    assert contrast()(*inputs, 0.3) > 0


def test_gradient_flows_through_the_student_only() -> None:
    inputs = unreliable_pixels(8)
    inputs.teacher_embeddings.requires_grad_()
    inputs.teacher_logits.requires_grad_()
    loss = contrast()(*inputs, 0.3)
    student, *others = torch.autograd.grad(loss, inputs[:3], allow_unused=True)
    assert student.abs().sum() > 0
    assert others == [None, None]


# The released code's defects.


def test_every_image_contributes_queries() -> None:
    """Its encoder fills the first image of each half alone."""
    inputs = unreliable_pixels(10, images=6)
    loss = contrast(queries=200, negative_confidence=1.0)(*inputs, 0.6, generator=torch.Generator().manual_seed(0))
    (slope,) = torch.autograd.grad(loss, inputs.embeddings)
    assert (slope.flatten(1).abs().sum(dim=1) > 0).all()


def test_a_late_class_meets_its_own_memory() -> None:
    """Its loop counts classes by their place among the present ones. Here 1 and 4 of five are, and each memory holds
    a direction of its own."""
    classes, width = 5, 6
    bank = ClassMemoryBank(classes, width, dtype=torch.float64)
    directions = torch.eye(width, dtype=torch.float64)
    bank.push(directions[:classes], torch.eye(classes).bool())
    loss = UnreliablePixelContrast(classes, width, queries=3, negatives=2, temperature=0.5, bank=bank).eval()
    labels = torch.tensor([[[1, 4]]])
    embeddings = (directions[5] + 0.5 * directions[[1, 4]]).T[None, :, None].clone().requires_grad_()
    logits = 9.0 * torch.nn.functional.one_hot(labels, classes).movedim(-1, 1).double()
    teacher = directions[5].view(1, -1, 1, 1).expand_as(embeddings)
    inputs = (embeddings, teacher, logits, labels, torch.ones(1, 4), torch.tensor([True]))
    cosines = torch.tensor([1.0, 0.5, 0.5], dtype=torch.float64) / math.sqrt(1.25)
    of_own = -(cosines / 0.5).log_softmax(dim=0)[0]
    torch.testing.assert_close(loss(*inputs, 0.2), 2 * of_own / classes, **CLOSE)
    loss.class_mean = "present"
    torch.testing.assert_close(loss(*inputs, 0.2), of_own, **CLOSE)


@pytest.mark.parametrize("seed", range(6))
def test_no_pixel_of_a_class_enters_its_memory(seed: int) -> None:
    """Each pixel's feature tells its label. The labelled images' are checked with the released constants too."""
    for own_class in (False, True):
        inputs = unreliable_pixels(seed, images=6, sharpness=1.0)
        labels = inputs.labels[:, ::2, ::2]
        code = torch.stack([labels, inputs.labeled[:, None, None].expand_as(labels), torch.ones_like(labels)], dim=1)
        bank = ClassMemoryBank(5, 3, 500, 500, torch.float64)
        options = {**BASE, "negative_confidence": 1.0, "own_class": own_class, "high_rank_included": True}
        UnreliablePixelContrast(5, 3, **options, bank=bank)(*inputs._replace(teacher_embeddings=code.double()), 0.5)
        assert bank.counts.sum() > 50
        for index in range(5):
            rows = bank.rows(index)
            label, labeled = (rows[:, 0] / rows[:, 2]).round(), (rows[:, 1] / rows[:, 2]).round() == 1
            assert not ((label == index) & (labeled | (not own_class))).any()


# Nothing to compare.


@pytest.mark.usefixtures("branch")
@pytest.mark.parametrize("class_mean", ["all", "present"])
@pytest.mark.parametrize(
    "case", ["all 255", "one class", "share 0 without labels", "no query", "no negative", "no image"]
)
def test_nothing_to_compare(case: str, class_mean: str) -> None:
    inputs, share, options = (
        unreliable_pixels(11, images=0 if case == "no image" else 4),
        0.3,
        {"class_mean": class_mean},
    )
    if case == "all 255":
        inputs = inputs._replace(labels=torch.full_like(inputs.labels, 255))
    if case == "one class":
        inputs = inputs._replace(labels=torch.zeros_like(inputs.labels))
        options["query_confidence"] = 0.0
    if case == "share 0 without labels":
        inputs, share = inputs._replace(labeled=torch.zeros(4, dtype=torch.bool)), 0.0
    if case == "no query":
        options["query_confidence"] = 0.9999
    if case == "no negative":
        options |= {"low_rank": 0, "high_rank": 0}
    loss = contrast(**options)
    if case == "one class":  # it has queries and a memory, but nothing to be told from
        loss.bank.push(torch.eye(3, dtype=torch.float64), torch.ones(3, 5, dtype=torch.bool))
    assert_zero_with_a_graph(loss(*inputs, share), inputs)
    if case in ("one class", "no query"):  # the memory is filled all the same
        assert loss.bank.counts.sum() > 0


def test_a_class_without_memory_is_left_out() -> None:
    """It still counts in the mean over present classes."""
    inputs, draws = unreliable_pixels(12), contrast_draws(12)
    loss = contrast(class_mean="present").eval()
    full = torch.full((6, 3), 3**-0.5, dtype=torch.float64)
    loss.bank.push(full, torch.tensor([[True, True, False, True, True]]).expand(6, -1))
    memory = literal.Fifo((BACKGROUND, *[CAPACITY] * 4))
    memory.rows = [list(loss.bank.rows(index)) for index in range(5)]
    options = literal_options({"class_mean": "present"})
    want = literal.contrast(*inputs, 0.3, memory, *draws, train=False, **options)
    assert want > 0
    assert_slope(loss(*inputs, 0.3, draws=draws), want, inputs.embeddings)


# Few classes.


def test_two_classes_contrast() -> None:
    with pytest.warns(UserWarning, match="low_rank=3 leaves no rank of 2 classes above it; 1 is taken"):
        loss = contrast(2, low_rank=3, high_rank=6, negative_confidence=0.5)
    assert loss.low_rank == 1
    memory, draws = literal.Fifo((BACKGROUND, CAPACITY)), contrast_draws(13, classes=2)
    inputs = unreliable_pixels(13, classes=2)
    options = literal_options({"low_rank": 1, "high_rank": 6, "negative_confidence": 0.5})
    want = literal.contrast(*inputs, 0.4, memory, *draws, **options)
    assert want > 0
    assert_slope(loss(*inputs, 0.4, draws=draws), want, inputs.embeddings)


def test_enough_classes_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert contrast(4, low_rank=3, high_rank=6).low_rank == 3


# What it refuses.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "`num_classes` counts the background and must be at least 2, got 1"),
        ({"num_classes": 4}, "`bank` is of 5 classes, the loss of 4"),
        ({"temperature": 0.0}, "`temperature` must be positive, got 0.0"),
        ({"temperature": math.nan}, "`temperature` must be positive, got nan"),
        ({"queries": 0}, "must be at least 1, got 0 and 256"),
        ({"negatives": 0}, "must be at least 1, got 50 and 0"),
        ({"low_rank": 4, "high_rank": 3}, "got 4 and 3"),
        ({"low_rank": -1}, "got -1 and 6"),
        ({"query_confidence": 1.0}, r"in \[0, 1\).*got 1.0 and 0.01"),
        ({"negative_confidence": 0.0}, r"in \(0, 1\], got 0.3 and 0.0"),
        ({"class_mean": "valid"}, "'all' or 'present', got 'valid'"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UnreliablePixelContrast(**{"num_classes": 5, "embedding_dim": 3} | options, bank=ClassMemoryBank(5, 3))


FINE = unreliable_pixels(14)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"embeddings": FINE.embeddings.detach() * math.nan}, "`embeddings` has NaN"),
        ({"teacher_embeddings": FINE.teacher_embeddings + math.inf}, "`teacher_embeddings` has NaN or infinite"),
        ({"teacher_logits": FINE.teacher_logits * math.nan}, "`teacher_logits` has NaN"),
        ({"teacher_logits": FINE.teacher_logits[:, 1:]}, "`teacher_logits` must have 5 channels, got 4"),
        ({"teacher_logits": FINE.teacher_logits[:, :, 1:]}, r"of one size, got.*\(4, 5, 3, 3\)"),
        ({"teacher_embeddings": FINE.teacher_embeddings[:, 1:]}, r"of one size, got.*\(4, 2, 4, 3\)"),
        ({"teacher_embeddings": FINE.teacher_embeddings[1:]}, "batch sizes differ"),
        ({"embeddings": FINE.embeddings.long()}, "`embeddings`.*torch.int64"),
        ({"labels": FINE.labels + 1}, r"`labels` must be ids 0 to 4 or 255, got \[5, 256\]"),
        ({"labels": FINE.labels.int()}, "`labels` must be an int64.*torch.int32"),
        ({"labels": FINE.labels[1:]}, "of 4 images"),
        ({"tags": FINE.tags[:, 1:]}, r"`tags`.*\(4, 4\), got \(4, 3\)"),
        ({"tags": FINE.tags * 2}, r"`tags` must be 0 or 1, got values in \[0.0, 2.0\]"),
        ({"labeled": FINE.labeled[1:]}, r"`labeled` must be bool of shape \(4,\), got torch.bool \(3,\)"),
        ({"labeled": FINE.labeled.int()}, "`labeled` must be bool.*torch.int32"),
    ],
)
def test_tensors_that_do_not_go_together(changed: dict[str, Tensor], message: str) -> None:
    loss = contrast()
    with pytest.raises(ValueError, match=message):
        loss(*FINE._replace(**changed), 0.3)
    assert loss.bank.counts.sum() == 0


def test_other_arguments_that_it_refuses() -> None:
    with pytest.raises(ValueError, match=r"`share` must be in \[0, 1\], got 20"):
        contrast()(*FINE, 20)
    with pytest.raises(
        ValueError, match=r"`draws` must have the shapes \[\(5, 4\), \(5, 12\)\], got \[\(5, 4\), \(5, 8\)\]"
    ):
        contrast()(*FINE, 0.3, draws=contrast_draws(0, negatives=2))
    wide = UnreliablePixelContrast(5, 4, bank=ClassMemoryBank(5, 4))
    with pytest.raises(ValueError, match="the memory has rows of 4, the features 3"):
        wide(*FINE, 0.3)


def test_defaults_are_the_papers() -> None:
    loss = UnreliablePixelContrast(3, 2, low_rank=2)
    assert loss.bank.capacities == (50_000, 30_000, 30_000)
    assert (loss.queries, loss.negatives, loss.temperature) == (50, 256, 0.5)
    assert repr(loss).startswith("UnreliablePixelContrast(\n  temperature=0.5, queries=50, negatives=256")
