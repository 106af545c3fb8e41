"""ClassMix against its literal reading, and what it draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.literal import csrm as literal
from wsss_contrast.data import ClassMix

BOTH = pytest.mark.parametrize("policy", ["paste", "cyclic"])


def batch(seed: int = 0, images: int = 5, classes: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, tags, labels and logits; the first image has no foreground, the second one class of it."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (images, 5, 4), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    if images > 1:
        labels[0][labels[0] != 255] = 0
        labels[1][(labels[1] != 255) & (labels[1] != 0)] = 4
    tags = torch.stack([(labels == c).flatten(1).any(1) for c in range(1, classes)], dim=1).long()
    shape = (images, 3, 5, 4), (images, classes, 5, 4)
    return torch.randn(shape[0], generator=generator), tags, labels, torch.randn(shape[1], generator=generator)


def chosen(classes: Tensor) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in classes]


@BOTH
@pytest.mark.parametrize("seed", range(6))
def test_mixing(policy: str, seed: int) -> None:
    """From the images as they were: nothing is pasted twice."""
    inputs = batch(seed)
    mixer = ClassMix(policy, probability=0.7)
    mix = mixer.draw(inputs[2], 6, torch.Generator().manual_seed(seed))
    before = [x.clone() for x in inputs]
    mixed = mixer(*inputs, mix=mix)
    wanted = literal.mix(*inputs, mix.base.tolist(), mix.source.tolist(), chosen(mix.classes))
    for got, want in zip(mixed, wanted, strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    again = mixer(*inputs, generator=torch.Generator().manual_seed(seed))
    assert all(torch.equal(a, b) for a, b in zip(mixed, again, strict=True))


def test_it_pastes() -> None:
    """The released code pastes nothing."""
    inputs = batch()
    mixed = ClassMix(probability=1.0)(*inputs, generator=torch.Generator().manual_seed(0))
    for got, was in zip(mixed, inputs, strict=True):
        assert (got != was).flatten(1).any(dim=1).sum() >= 2
    assert (mixed.tags >= inputs[1]).all()


@pytest.mark.parametrize("seed", range(5))
def test_paste_policy(seed: int) -> None:
    """Half of another image's foreground classes, at least one; of an image without, none."""
    labels = batch(seed)[2]
    mix = ClassMix(probability=1.0).draw(labels, 6, torch.Generator().manual_seed(seed))
    assert mix.base.tolist() == list(range(5))
    assert (mix.source != mix.base).all()
    for source, classes in zip(mix.source.tolist(), chosen(mix.classes), strict=True):
        assert len(classes) == literal.pasted_count(labels[source])
        assert set(classes) <= set(literal.classes_of(labels[source])) - {0}


@pytest.mark.parametrize("seed", range(3))
def test_cyclic_policy(seed: int) -> None:
    """Half of an image's classes, the background too, onto the next image, in its place."""
    labels = batch(seed)[2]
    mix = ClassMix("cyclic", probability=1.0).draw(labels, 6, torch.Generator().manual_seed(seed))
    assert mix.source.tolist() == list(range(5))
    assert mix.base.tolist() == [1, 2, 3, 4, 0]
    for source, classes in zip(mix.source.tolist(), chosen(mix.classes), strict=True):
        assert len(classes) == literal.cyclic_count(labels[source])
        assert set(classes) <= set(literal.classes_of(labels[source]))


@BOTH
def test_every_partner_and_class_is_drawn(policy: str) -> None:
    labels = torch.tensor([1, 2, 3, 4, 0, 255]).repeat(3, 1)[:, None]
    sources, classes, generator = set(), set(), torch.Generator().manual_seed(0)
    for _ in range(40):
        mix = ClassMix(policy, probability=1.0).draw(labels, 5, generator)
        sources.add(int(mix.source[0]))
        classes.update(chosen(mix.classes)[0])
    assert sources == ({1, 2} if policy == "paste" else {0})
    assert classes == ({1, 2, 3, 4} if policy == "paste" else {0, 1, 2, 3, 4})


@BOTH
@pytest.mark.parametrize("per_image", [True, False])
def test_coin(policy: str, per_image: bool) -> None:
    """One for each image, or one for the batch."""
    labels = torch.tensor([[1, 2, 3, 0]]).repeat(8, 1)[:, None]
    generator, counts = torch.Generator().manual_seed(0), []
    for _ in range(50):
        mix = ClassMix(policy, 0.5, per_image).draw(labels, 4, generator)
        mixed = mix.classes.any(dim=1)
        assert (mix.base == torch.arange(8))[~mixed].all()
        counts.append(int(mixed.sum()))
    assert 0.35 < sum(counts) / 400 < 0.65
    assert (set(counts) == {0, 8}) != per_image


@BOTH
def test_probability_zero_changes_nothing(policy: str) -> None:
    inputs = batch()
    assert all(torch.equal(a, b) for a, b in zip(ClassMix(policy, 0.0)(*inputs), inputs, strict=True))


@BOTH
@pytest.mark.parametrize("images", [0, 1])
def test_there_is_nothing_to_mix_with(policy: str, images: int) -> None:
    inputs = batch(images=images)
    inputs[1].zero_()  # not even the tags of what the labels show
    assert all(torch.equal(a, b) for a, b in zip(ClassMix(policy, 1.0)(*inputs), inputs, strict=True))


@BOTH
def test_images_without_a_label(policy: str) -> None:
    images, tags, labels, logits = batch()
    inputs = (images, tags, torch.full_like(labels, 255), logits)
    mixed = ClassMix(policy, 1.0)(*inputs)
    assert torch.equal(mixed.tags.sum(), tags.sum())
    assert (mixed.labels == 255).all()


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float16], ids=str)
def test_tags_keep_their_type(dtype: torch.dtype) -> None:
    images, tags, labels, logits = batch()
    mixed = ClassMix(probability=1.0)(images, tags.to(dtype), labels, logits)
    assert mixed.tags.dtype == dtype
    assert set(mixed.tags.float().unique().tolist()) == {0, 1}


IMAGES, TAGS, LABELS, LOGITS = batch()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((IMAGES[:2], TAGS, LABELS, LOGITS), "do not go together"),
        ((IMAGES, TAGS[:, :3], LABELS, LOGITS), "do not go together"),
        ((IMAGES, TAGS, LABELS[:, 1:], LOGITS), "do not go together"),
        ((IMAGES, TAGS, LABELS, LOGITS[..., 1:]), "do not go together"),
        ((IMAGES, TAGS, LABELS.byte(), LOGITS), "`labels` must be an int64.*torch.uint8"),
        ((IMAGES, TAGS, LABELS.clamp_max(6), LOGITS), r"ids 0 to 5 or 255, got \[6\]"),
        ((IMAGES, TAGS, LABELS - 1, LOGITS), r"ids 0 to 5 or 255, got \[-1, 254\]"),
    ],
)
def test_tensors_that_do_not_go_together(inputs: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassMix()(*inputs)


def test_options_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="'paste' or 'cyclic', got 'random'"):
        ClassMix("random")
    with pytest.raises(ValueError, match=r"`probability` must be in \[0, 1\], got 1.5"):
        ClassMix(probability=1.5)
