"""The drawn example set."""

import hashlib

import numpy as np
import pytest
import torch

from wsss_contrast.data import SHAPES_CLASSES, ShapesDataset, shapes
from wsss_contrast.data.drawing import PATTERNS, Canvas, Draws, Piece

# (seed, split, index, size) -> start of the SHA-256 of picture, mask and heads. The set was frozen before SEAM and PPC
# were first run on it, so that it cannot have been made to suit them, and results stay comparable. If one of these
# fails, mend the drawing: never change a hash. Another set would need another name.
FROZEN = {
    (0, "train", 0, 128): "0755a564b25b048c",
    (0, "train", 1, 128): "dd263883c8f8b02d",
    (0, "train", 511, 128): "2cdd61b97d2839d9",
    (0, "val", 0, 128): "f60e2902d8035ca7",
    (0, "val", 63, 128): "7178f58ebddf38e5",
    (1, "train", 7, 128): "cdb65c396cb92767",
    (2, "val", 3, 128): "9156d637824ba077",
    (0, "train", 9, 65): "12f20be38dc1c5de",
    (0, "val", 5, 224): "d4afa21ae7d9c3f0",
}


@pytest.fixture(scope="module")
def drawn():
    data = ShapesDataset("train", 64, 200)
    return [data.draw(i) for i in range(200)]


@pytest.mark.parametrize("key", FROZEN)
def test_the_pictures_are_frozen(key):
    seed, split, index, size = key
    drawn = ShapesDataset(split, size, seed=seed).draw(index)
    content = b"".join(np.ascontiguousarray(array).tobytes() for array in drawn)
    assert hashlib.sha256(content).hexdigest()[:16] == FROZEN[key]


def test_the_first_pictures_of_both_splits_are_frozen():
    """All forms, patterns and counts at once."""
    content = hashlib.sha256()
    for split in ("train", "val"):
        data = ShapesDataset(split)
        for index in range(40):
            for array in data.draw(index):
                content.update(np.ascontiguousarray(array).tobytes())
    assert content.hexdigest()[:16] == "e90bd85df2780d0b"


def test_sample_contract():
    sample = ShapesDataset("train", length=2, with_mask=True)[1]
    assert sample["image"].dtype == torch.float32
    assert sample["image"].shape == (3, 128, 128)
    assert sample["mask"].dtype == torch.int64
    assert sample["mask"].shape == (128, 128)
    assert sample["tags"].dtype == torch.float32
    assert sample["tags"].shape == (len(SHAPES_CLASSES),)
    assert sample["name"] == "train_00001"
    assert "mask" not in ShapesDataset("train", length=2)[1]
    assert ShapesDataset("val", size=65, length=1, with_mask=True)[0]["mask"].shape == (65, 65)


def test_a_picture_depends_on_seed_split_and_index_only():
    def picture(split="train", index=3, length=10, seed=0):
        return ShapesDataset(split, 32, length, seed).read(index)[0]

    np.testing.assert_array_equal(picture(), picture())
    np.testing.assert_array_equal(picture(), picture(length=20))
    for other in (picture(split="val"), picture(index=4), picture(seed=1)):
        assert (picture() != other).any()


def test_train_and_val_share_no_picture():
    pictures = [ShapesDataset(split, 32, 60).read(i)[0].tobytes() for split in ("train", "val") for i in range(60)]
    assert len(set(pictures)) == 120


def test_the_size_changes_the_sharpness_not_the_scene():
    small, large = (ShapesDataset("train", size, 3).draw(2) for size in (64, 192))
    assert (small[1] == large[1][1::3, 1::3]).mean() > 0.99
    coarse = large[0].reshape(64, 3, 64, 3, 3).mean((1, 3))
    assert np.abs(coarse - small[0]).mean() < 4  # the grain differs


def test_tags_say_what_is_in_the_mask():
    data = ShapesDataset("train", 64, 100, with_mask=True)
    tags = torch.stack([data[i]["tags"] for i in range(100)])
    masks = torch.stack([data[i]["mask"] for i in range(100)])
    for label in range(1, len(SHAPES_CLASSES) + 1):
        assert torch.equal((masks == label).flatten(1).any(1).float(), tags[:, label - 1])
    assert masks.max() == len(SHAPES_CLASSES)
    assert set(tags.sum(1).tolist()) == {0, 1, 2, 3}  # also pictures without any creature
    assert (tags.mean(0) > 0.12).all()


def test_each_tag_can_be_told_by_a_head(drawn):
    for _, mask, part in drawn:
        for label in set(mask[mask > 0].tolist()):
            assert (part & (mask == label)).sum() >= 30  # of 64 x 64 pixels
        assert not part[mask == 0].any()


def test_bodies_are_much_larger_than_heads(drawn):
    """The known failing of class activation maps needs a small telling part on a large object."""
    shares = [part.sum() / (mask > 0).sum() for _, mask, part in drawn if mask.any()]
    assert min(shares) > 0.1
    assert np.mean(shares) < 0.25
    covered = [(mask > 0).mean() for _, mask, _ in drawn if mask.any()]
    assert min(covered) > 0.1
    assert max(covered) < 0.45


def body(kind, seed=0):
    canvas = Canvas(64)
    creature = shapes._Creature(kind, x=2048, y=2048, length=1000, turn=3, head=(3000, 2300), radius=400)
    shapes._draw_body(Draws(seed), canvas, creature)
    return canvas.picture(), canvas.masks()


def test_bodies_tell_no_class_but_for_their_pattern(monkeypatch):
    monkeypatch.setattr(shapes, "_LEAN", 0)
    for seed in range(5):
        pictures, masks = zip(*(body(kind, seed) for kind in range(len(SHAPES_CLASSES))), strict=True)
        for kind, (picture, (ids, parts)) in enumerate(zip(pictures, masks, strict=True)):
            np.testing.assert_array_equal(picture, pictures[0])
            np.testing.assert_array_equal(ids > 0, masks[0][0] > 0)
            assert set(ids.ravel().tolist()) == {0, kind + 1}
            assert not parts.any()


def test_the_pattern_leans_weakly_towards_the_class(monkeypatch):
    found = []
    monkeypatch.setattr(shapes, "_texture", lambda draws, pattern: found.append(pattern) or (0, 0, 0))
    monkeypatch.setattr(Canvas, "paint", lambda *args, **kwargs: None)
    for kind, own in enumerate(PATTERNS):
        found.clear()
        for seed in range(400):
            body(kind, seed)
        shares = {pattern: found.count(pattern) / 400 for pattern in PATTERNS}
        assert 0.3 < shares.pop(own) < 0.45  # expected 0.25 + 0.75 / 6
        assert min(shares.values()) > 0.06
        assert max(shares.values()) < 0.2


def test_what_lies_in_the_background_has_no_tag():
    for seed in range(5):
        canvas = Canvas(64)
        shapes._background(Draws(seed), canvas)
        ids, parts = canvas.masks()
        assert not ids.any()
        assert not parts.any()
        assert canvas.picture().std() > 5


def test_a_creature_in_front_hides_another_ones_body():
    hidden = 0
    for index in range(40):
        draws = Draws(index)
        creatures = shapes._creatures(draws)
        alone = 0
        canvas = Canvas(64)
        for creature in creatures:
            single = Canvas(64)
            for target in (single, canvas):
                shapes._draw_body(Draws(0), target, creature)
            alone += int((single.masks()[0] > 0).sum())
            assert (canvas.masks()[0][single.masks()[0] > 0] == creature.kind + 1).all()  # the last is in front
        hidden += alone > (canvas.masks()[0] > 0).sum()
    assert hidden > 3


@pytest.mark.parametrize("name", SHAPES_CLASSES)
def test_a_face_stays_within_its_head(name):
    """Else a face would be drawn without a rim."""
    outer, face = shapes._HEADS[name]
    creature = shapes._Creature(0, 0, 0, 1000, 0, head=(2048, 2048), radius=1000)
    axis = np.arange(0, 4096, 16, dtype=np.int64)

    def covered(rows):
        pieces: list[Piece] = [shapes._on_head(creature, 3, *row[:-1]) for row in rows]
        return np.any([piece.covers(axis[None], axis[:, None]) for piece in pieces], axis=0)

    assert not (covered(face) & ~covered(outer)).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"split": "test"}, "'test'"), ({"size": 8}, "got 8"), ({"length": 0}, "got 0")],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ShapesDataset(**{"split": "train", **arguments})
