"""Drawing in integers."""

import colorsys
import math

import numpy as np
import pytest

from wsss_contrast.data.drawing import PATTERNS, TURN, UNITS, Canvas, Draws, Piece, Texture, hsv, rotate

PIECES = [
    Piece(form, 2000, 2100, turn, 900, 400) for form in ("ellipse", "bar", "cone") for turn in (0, 5, 16, 27, 40, 61)
]
FIRST = [271, 617, 24, 533]
AXIS = np.arange(0, UNITS, 8, dtype=np.int64)


def covered(piece: Piece) -> np.ndarray:
    return piece.covers(AXIS[None], AXIS[:, None])


def test_draws_are_the_raw_stream():
    """NumPy promises this stream; the numbers were taken once and must never change."""
    draws = Draws(0)
    assert [draws.between(0, 999) for _ in range(4)] == FIRST
    np.testing.assert_array_equal(Draws(0).array(0, 999, 2, 2).ravel(), FIRST)


def test_draws_reach_both_ends():
    draws = Draws(1)
    assert {draws.between(-1, 2) for _ in range(100)} == {-1, 0, 1, 2}
    assert set(draws.array(3, 5, 10, 10).ravel().tolist()) == {3, 4, 5}
    assert {draws.pick("abc") for _ in range(100)} == set("abc")
    assert 0.2 < np.mean([draws.chance(25) for _ in range(2000)]) < 0.3


def test_rotate_by_quarters():
    vectors = [rotate(100, 30, TURN // 4 * quarter) for quarter in range(4)]
    assert vectors == [(100, 30), (-30, 100), (-100, -30), (30, -100)]


@pytest.mark.parametrize("hue", range(0, 1536, 97))
def test_hsv(hue):
    expected = colorsys.hsv_to_rgb(hue / 1536, 180 / 255, 200 / 255)
    assert np.abs(np.array(hsv(hue, 180, 200)) - 255 * np.array(expected)).max() < 2


@pytest.mark.parametrize("piece", PIECES)
def test_areas(piece):
    area = {
        "ellipse": math.pi * piece.long * piece.short,
        "bar": 2 * piece.long * piece.short + math.pi * piece.short**2,
        "cone": piece.long * piece.short,
    }[piece.form]
    assert covered(piece).sum() * 8**2 == pytest.approx(area, rel=0.01)


@pytest.mark.parametrize("piece", PIECES)
def test_a_piece_points_where_it_should(piece):
    rows, columns = covered(piece).nonzero()
    centre = np.array((AXIS[columns].mean(), AXIS[rows].mean()))
    ahead = {"ellipse": 0, "bar": piece.long / 2, "cone": piece.long / 3}[piece.form]
    angle = 2 * math.pi * piece.turn / TURN
    np.testing.assert_allclose(centre, (2000 + ahead * math.cos(angle), 2100 + ahead * math.sin(angle)), atol=8)


@pytest.mark.parametrize("piece", PIECES)
def test_the_box_holds_the_piece(piece):
    rows, columns = covered(piece).nonzero()
    left, right, top, bottom = piece.box()
    assert left <= AXIS[columns].min() <= AXIS[columns].max() < right
    assert top <= AXIS[rows].min() <= AXIS[rows].max() < bottom


@pytest.mark.parametrize("piece", PIECES)
def test_a_rim_is_on_all_sides(piece):
    inner, outer = covered(piece), covered(piece.grown(64))
    for shift in ((0, 7), (0, -7), (7, 0), (-7, 0), (5, 5), (-5, -5)):  # 7 steps of 8 units, and their diagonals
        assert not (np.roll(inner, shift, (0, 1)) & ~outer).any()


def test_unknown_names():
    with pytest.raises(ValueError, match="star"):
        covered(Piece("star", 0, 0, 0, 1, 1))
    with pytest.raises(ValueError, match="lace"):
        Texture("lace", ((0, 0, 0), (1, 1, 1)), 0, 300).colours(AXIS, AXIS)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_have_both_tones(pattern):
    texture = Texture(pattern, ((10, 20, 30), (200, 210, 220)), 7, 300)
    colours = texture.colours(np.broadcast_to(AXIS, (512, 512)), np.broadcast_to(AXIS[:, None], (512, 512)))
    assert set(map(tuple, colours.reshape(-1, 3).tolist())) == {(10, 20, 30), (200, 210, 220)}
    assert 0.15 < (colours[..., 0] == 200).mean() < 0.6


def test_patterns_differ():
    axes = np.broadcast_to(AXIS, (512, 512)), np.broadcast_to(AXIS[:, None], (512, 512))
    pictures = {Texture(p, ((0, 0, 0), (1, 1, 1)), 7, 300).colours(*axes).tobytes() for p in PATTERNS}
    assert len(pictures) == len(PATTERNS)


def test_the_last_paint_is_seen():
    canvas = Canvas(32)
    canvas.paint(Piece("ellipse", 2048, 2048, 0, 1600, 1600), (90, 0, 0), label=1)
    canvas.paint(Piece("ellipse", 2048, 2048, 0, 800, 800), (0, 90, 0), label=2, part=True)
    ids, parts = canvas.masks()
    picture = canvas.picture()
    distance = np.hypot(*(np.mgrid[:32, :32] * 128 + 64 - 2048))
    np.testing.assert_array_equal(ids, np.where(distance <= 800, 2, np.where(distance <= 1600, 1, 0)))
    np.testing.assert_array_equal(parts, distance <= 800)
    assert (picture[distance < 700] == (0, 90, 0)).all()
    assert (picture[(distance > 900) & (distance < 1500)] == (90, 0, 0)).all()
    assert (picture[distance > 1700] == 0).all()


def test_a_pixel_is_the_mean_of_what_lies_in_it():
    canvas = Canvas(32)
    canvas.fill(np.full((2, 2, 3), 90))
    canvas.paint(Piece("bar", 0, 0, 0, UNITS, 128 + 43), (0, 0, 0))  # all of the first row, a third of the second
    assert set(canvas.picture()[:4, 3, 0].tolist()) == {0, 60, 90}


def test_fill_blends_between_the_nodes():
    canvas = Canvas(33)
    canvas.fill(np.array([[[0, 0, 0], [200, 0, 0]], [[0, 100, 0], [200, 100, 0]]]))
    picture = canvas.picture().astype(int)
    assert np.abs(picture[16, 16] - (100, 50, 0)).max() <= 1
    assert (np.diff(picture[0, :, 0]) >= 0).all()
    assert picture[0, 0, 0] < 5
    assert picture[0, -1, 0] > 195
    assert picture[0, 5, 1] < 5
    assert picture[-1, 5, 1] > 95
