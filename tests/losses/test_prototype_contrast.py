"""PrototypeContrast against the literal reading of its equations, and what it promises beyond them."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import Tensor

from tests.literal import ppc
from tests.literal.csrm import Fifo
from wsss_contrast.losses import PixelDraws, PrototypeContrast
from wsss_contrast.nn import ClassMemoryBank

from .cases import Views, draws, options, views

TERMS = ["cross_cam", "cross_prototype", "intra_view"]
COMPAT = pytest.mark.parametrize("compat", ["paper", "official"])


def assert_literal(inputs: Views, keywords: dict[str, object] | None = None, **settings: object) -> dict[str, Tensor]:
    """Each term and its gradient equal the literal reading's; returns the terms."""
    keywords = {"draws": draws(inputs), **(keywords or {})}
    terms = PrototypeContrast(**settings)(*inputs, **keywords)
    assert_close(terms, ppc.prototype_contrast(*inputs, **keywords, **settings), inputs)
    return terms


def assert_close(terms: dict[str, Tensor], expected: dict[str, Tensor], inputs: Views) -> None:
    """By value and gradient."""
    assert sorted(terms) == sorted(expected)
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name], rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
        gradients = torch.autograd.grad(term, inputs.embeddings, retain_graph=True)
        literal = torch.autograd.grad(expected[name], inputs.embeddings, retain_graph=True)
        for got, want in zip(gradients, literal, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"d {n}: {m}")


@pytest.mark.parametrize("seed", range(30))
def test_equals_the_literal_reading(seed: int) -> None:
    """Sizes, hyper-parameters and masks of valid pixels drawn at random."""
    generator = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    settings = options(seed)
    inputs = views(
        seed,
        images=pick(1, 3),
        classes=pick(1, 5),
        width=pick(3, 6),
        source=(pick(1, 7), pick(1, 7)),
        target=(pick(3, 5), pick(4, 6)),
        background=settings["background"],
    )
    shape = (len(inputs.tags), *inputs.target_embeddings.shape[2:])
    keywords = {
        "draws": draws(inputs, seed),
        "source_valid": torch.rand(shape, generator=generator) < 0.9,
        "target_valid": torch.rand(shape, generator=generator) < 0.7,
    }
    terms = assert_literal(inputs, keywords, **settings)
    assert any(term > 0 for term in terms.values())


@COMPAT
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((1, 1), (1, 1)),
        ((3, 2), (1, 1)),
        ((1, 1), (3, 2)),
        ((4, 3), (4, 3)),
        ((2, 9), (5, 3)),
        ((1, 6), (4, 1)),
    ],
)
def test_sizes(source: tuple[int, int], target: tuple[int, int], compat: str) -> None:
    inputs = views(3, source=source, target=target)._replace(tags=torch.tensor([[1, 0, 1], [0, 1, 0]]))
    assert_literal(inputs, compat=compat)


@COMPAT
def test_maps_of_another_size_than_the_embeddings(compat: str) -> None:
    inputs, other = views(4), views(5, source=(3, 7), target=(8, 2))
    assert_literal(inputs._replace(source_cams=other.source_cams, target_cams=other.target_cams), compat=compat)


@COMPAT
@pytest.mark.parametrize("background", [None, 0, -1])
@pytest.mark.parametrize(
    "tags",
    [
        [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
        [[0, 0, 0, 0, 1], [0, 0, 0, 0, 0]],
        [[0, 0, 0, 0, 1], [0, 0, 0, 0, 1]],
        [[0, 0, 1, 0, 0], [0, 0, 1, 0, 1]],
        [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
    ],
    ids=["none", "late-once", "late", "gaps", "all"],
)
def test_tags(tags: list[list[int]], background: int | None, compat: str) -> None:
    """Classes go by their id, also where the earlier ones are absent."""
    inputs = views(6, classes=5, background=background)._replace(tags=torch.tensor(tags))
    assert_literal(inputs, compat=compat, background=background)


@COMPAT
@pytest.mark.parametrize("tag", [0, 1])
def test_one_class(tag: int, compat: str) -> None:
    inputs = views(7, classes=1)._replace(tags=torch.full((2, 1), tag))
    assert_literal(inputs, compat=compat)


@COMPAT
@pytest.mark.parametrize("ignored", ["source", "target", "both", "an image"])
def test_ignored_pixels(ignored: str, compat: str) -> None:
    inputs = views(8)
    source, target = torch.ones(2, 2, 4, 3, dtype=torch.bool)
    if ignored == "an image":
        source[1], target[0] = False, False
    source &= ignored not in ("source", "both")
    target &= ignored not in ("target", "both")
    terms = assert_literal(inputs, {"source_valid": source, "target_valid": target}, compat=compat)
    if ignored in ("source", "target", "both"):
        assert terms["cross_prototype"] == 0
        assert terms["cross_cam"] == 0
    assert (terms["intra_view"] == 0) == (ignored == "both")


@COMPAT
@pytest.mark.parametrize("top_k", [1, 7, 24, 25, 1000])
def test_fewer_candidates_than_top_k(top_k: int, compat: str) -> None:
    assert_literal(views(9), compat=compat, top_k=top_k)


def test_official_takes_an_eighth_of_the_target_pixels_as_candidates() -> None:
    inputs = views(10, target=(4, 6))
    keywords = {"draws": draws(inputs)}
    by_default = PrototypeContrast(compat="official")(*inputs, **keywords)
    explicit = PrototypeContrast(compat="official", top_k=3)(*inputs, **keywords)
    assert by_default == explicit
    assert by_default != PrototypeContrast(compat="official", top_k=4)(*inputs, **keywords)


@COMPAT
@pytest.mark.parametrize("mine", [True, False])
@pytest.mark.parametrize("sample", [True, False])
def test_mining_and_sampling_can_be_left_out(mine: bool, sample: bool, compat: str) -> None:
    assert_literal(views(11, classes=6), compat=compat, mine_prototypes=mine, sample_pixels=sample)


@COMPAT
def test_weights_scale_their_term_and_zero_leaves_it_out(compat: str) -> None:
    inputs = views(12)
    assert sorted(assert_literal(inputs, compat=compat)) == TERMS
    names = {"cross_prototype_weight": "cross_prototype", "cross_cam_weight": "cross_cam"}
    names["intra_view_weight"] = "intra_view"
    usual = PrototypeContrast(compat=compat)(*inputs, draws=draws(inputs))
    for argument, term in names.items():
        without = assert_literal(inputs, compat=compat, **{argument: 0})
        assert sorted(without) == sorted(set(TERMS) - {term})
        double = PrototypeContrast(compat=compat, **{argument: 0.2})(*inputs, draws=draws(inputs))
        torch.testing.assert_close(double[term], 2 * usual[term])
    with pytest.raises(ValueError, match="at least one weight"):
        PrototypeContrast(0.1, None, None, 0.2, 0, 0, 0, compat=compat)


@COMPAT
@pytest.mark.parametrize("background", [0, -1])
def test_background_values_are_not_read(background: int, compat: str) -> None:
    inputs = views(13, background=background)
    channel = 0 if background == 0 else 3
    changed = [maps.clone() for maps in (inputs.source_cams, inputs.target_cams)]
    for maps in changed:
        maps[:, channel] = torch.rand_like(maps[:, channel]) * 1e3 - 500
    contrast = PrototypeContrast(background=background, compat=compat)
    other = inputs._replace(source_cams=changed[0], target_cams=changed[1])
    assert contrast(*inputs, draws=draws(inputs)) == contrast(*other, draws=draws(inputs))
    if background == 0:
        bare = inputs._replace(source_cams=inputs.source_cams[:, 1:], target_cams=inputs.target_cams[:, 1:])
        assert contrast(*inputs, draws=draws(inputs)) == PrototypeContrast(compat=compat)(*bare, draws=draws(inputs))


@COMPAT
def test_candidate_indices_replace_the_top_k(compat: str) -> None:
    inputs = views(14)
    generator = torch.Generator().manual_seed(0)
    indices = tuple(torch.randint(0, 24, (4, 5), generator=generator) for _ in range(2))
    assert_literal(inputs, {"candidate_indices": indices}, compat=compat)


@COMPAT
def test_constant_maps_break_ties_by_the_lowest_index(compat: str) -> None:
    """Every pixel of every map is tied: labels, candidates, hard pixels and negatives go by index."""
    inputs = views(15, source=(4, 3))
    inputs = inputs._replace(source_cams=torch.ones(2, 3, 4, 3), target_cams=torch.full((2, 3, 4, 3), -2.0))
    assert_literal(inputs, compat=compat, top_k=5)
    one_draw = PixelDraws(torch.zeros(2, 24), torch.zeros(2, 24, 4))
    assert_literal(inputs, {"draws": one_draw}, compat=compat, top_k=5)
    indices = torch.arange(5).expand(4, 5)
    contrast = PrototypeContrast(top_k=5, compat=compat)
    injected = contrast(*inputs, draws=one_draw, candidate_indices=(indices, indices))
    assert contrast(*inputs, draws=one_draw) == injected


def test_equal_draws_keep_the_lowest_ids() -> None:
    inputs = views(16, classes=6)._replace(tags=torch.ones(2, 6))
    equal = PixelDraws(torch.full((2, 24), 0.5), torch.full((2, 24, 7), 0.5))
    rising = PixelDraws(torch.arange(24.0).expand(2, 24), torch.arange(7.0).expand(2, 24, 7))
    contrast = PrototypeContrast()
    assert contrast(*inputs, draws=equal) == contrast(*inputs, draws=rising)


@COMPAT
def test_draws_decide_the_samples(compat: str) -> None:
    inputs = views(17, classes=6)
    contrast = PrototypeContrast(compat=compat)
    first, second = (contrast(*inputs, draws=draws(inputs, seed)) for seed in (1, 2))
    assert first["intra_view"] != second["intra_view"]
    assert first["cross_prototype"] == second["cross_prototype"]
    assert first["cross_cam"] == second["cross_cam"]
    unchanged = draws(inputs, 1)._replace(prototypes=draws(inputs, 2).prototypes)
    same = contrast(*inputs, draws=unchanged)["intra_view"] == first["intra_view"]
    assert same == (compat == "official"), "only the paper's mining of prototypes is random"


@COMPAT
def test_runs_with_the_same_generator_are_bit_identical(compat: str) -> None:
    inputs = views(18, classes=6)
    contrast = PrototypeContrast(compat=compat)
    runs = []
    for seed in (3, 3, 4):
        terms = contrast(*inputs, generator=torch.Generator().manual_seed(seed))
        runs.append((terms, torch.autograd.grad(sum(terms.values()), inputs.embeddings)))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))
    assert runs[0][0]["intra_view"] != runs[2][0]["intra_view"]


@COMPAT
def test_the_global_generator_serves_by_default(compat: str) -> None:
    inputs = views(19, classes=6)
    torch.manual_seed(5)
    first = PrototypeContrast(compat=compat)(*inputs)
    assert first == PrototypeContrast(compat=compat)(*inputs, generator=torch.Generator().manual_seed(5))


@COMPAT
def test_order_of_the_images_does_not_matter(compat: str) -> None:
    inputs = views(20, images=3)._replace(tags=torch.ones(3, 3))
    order = [2, 0, 1]
    if compat == "official":  # the background's candidates are tied, and go by index
        indices = tuple(torch.randint(0, 36, (4, 4), generator=torch.Generator().manual_seed(i)) for i in (0, 1))
        new_place = torch.tensor([order.index(image) for image in range(3)])
        moved = tuple(new_place[index // 12] * 12 + index % 12 for index in indices)
    else:
        indices = moved = None
    own = draws(inputs)
    permuted = PixelDraws(*(x.unflatten(1, (3, 12))[:, order].flatten(1, 2) for x in own))
    contrast = PrototypeContrast(compat=compat)
    first = contrast(*inputs, draws=own, candidate_indices=indices)
    second = contrast(*(x[order] for x in inputs), draws=permuted, candidate_indices=moved)
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12)


def test_scale_of_the_embeddings_does_not_matter() -> None:
    inputs = views(21, source=(4, 3))
    scale = torch.rand(2, 1, 4, 3, dtype=torch.float64) * 100 + 0.01
    scaled = inputs._replace(
        source_embeddings=inputs.source_embeddings * scale, target_embeddings=inputs.target_embeddings * 3
    )
    contrast = PrototypeContrast()
    torch.testing.assert_close(contrast(*inputs, draws=draws(inputs)), contrast(*scaled, draws=draws(inputs)))


@COMPAT
@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32])
def test_tags_of_any_dtype(kind: torch.dtype, compat: str) -> None:
    inputs = views(22)
    contrast = PrototypeContrast(compat=compat)
    expected = contrast(*inputs, draws=draws(inputs))
    assert contrast(*inputs._replace(tags=inputs.tags.to(kind)), draws=draws(inputs)) == expected


@COMPAT
def test_no_gradient_reaches_the_maps(compat: str) -> None:
    inputs = views(23)
    maps = [inputs.source_cams.requires_grad_(), inputs.target_cams.requires_grad_()]
    total = sum(PrototypeContrast(compat=compat)(*inputs, draws=draws(inputs)).values())
    gradients = torch.autograd.grad(total, [*inputs.embeddings, *maps], allow_unused=True)
    assert all(gradient.abs().sum() > 0 for gradient in gradients[:2])
    assert gradients[2:] == (None, None)


@COMPAT
def test_gradient_reaches_only_the_pixels_that_are_compared(compat: str) -> None:
    """Prototypes are constants: pixels that only build one get no gradient."""
    inputs = views(24, source=(4, 3))
    target_valid = torch.zeros(2, 4, 3, dtype=torch.bool)
    target_valid[0, 0, 0] = True
    terms = PrototypeContrast(compat=compat)(*inputs, target_valid=target_valid, draws=draws(inputs))
    (gradient,) = torch.autograd.grad(terms["cross_prototype"], inputs.target_embeddings)
    assert (gradient.abs().sum(dim=1) > 0).nonzero().tolist() == [[0, 0, 0]]


@COMPAT
@pytest.mark.parametrize(
    "case",
    ["no images", "no valid pixel", "dead maps", "no tags", "zero embeddings", "huge", "tiny", "one channel"],
)
def test_never_nan_and_always_a_graph(case: str, compat: str) -> None:
    inputs = views(25, images=0 if case == "no images" else 2)
    valid = torch.full((len(inputs.tags), 4, 3), case != "no valid pixel")
    if case == "dead maps":
        inputs = inputs._replace(source_cams=-inputs.source_cams.abs(), target_cams=inputs.target_cams * 0)
    if case == "no tags":
        inputs = inputs._replace(tags=torch.zeros_like(inputs.tags))
    if case == "one channel":
        inputs = views(25, width=1)
    scale = {"zero embeddings": 0.0, "huge": 1e30, "tiny": 1e-30}.get(case, 1.0)
    leaves = [(x.detach().float() * scale).requires_grad_() for x in inputs.embeddings]
    inputs = inputs._replace(
        source_embeddings=leaves[0],
        target_embeddings=leaves[1],
        source_cams=inputs.source_cams.float() * (scale or 1),
        target_cams=inputs.target_cams.float() * (scale or 1),
    )
    terms = PrototypeContrast(compat=compat)(*inputs, source_valid=valid, target_valid=valid)
    assert sorted(terms) == TERMS
    for term in terms.values():
        assert term.isfinite()
        assert term.shape == ()
        assert term.requires_grad
        for gradient in torch.autograd.grad(term, leaves, retain_graph=True):
            assert gradient.isfinite().all()
            if case in ("no images", "no valid pixel"):
                assert term == 0
                assert (gradient == 0).all()


@COMPAT
@pytest.mark.parametrize("embedding", [torch.float32, torch.float64])
@pytest.mark.parametrize("cam", [torch.bfloat16, torch.float32, torch.float64])
def test_precision_is_that_of_the_embeddings(embedding: torch.dtype, cam: torch.dtype, compat: str) -> None:
    """Maps and draws of another precision go with them."""
    inputs = views(26)
    mixed = inputs._replace(
        source_embeddings=inputs.source_embeddings.to(embedding),
        target_embeddings=inputs.target_embeddings.to(embedding),
        source_cams=inputs.source_cams.to(cam),
        target_cams=inputs.target_cams.to(cam),
    )
    terms = PrototypeContrast(compat=compat)(*mixed, draws=draws(inputs))
    assert {term.dtype for term in terms.values()} == {embedding}
    assert all(term.isfinite() for term in terms.values())


@COMPAT
def test_embeddings_that_are_all_alike(compat: str) -> None:
    """Every similarity is 1, so a pixel's loss is the log of how many prototypes there are."""
    inputs = views(27)._replace(tags=torch.tensor([[1, 1, 1], [1, 1, 1]]))
    same = [torch.ones_like(x).requires_grad_() for x in inputs.embeddings]
    inputs = inputs._replace(source_embeddings=same[0], target_embeddings=same[1])
    terms = PrototypeContrast(compat=compat, cross_cam_weight=1)(*inputs, draws=draws(inputs))
    views_added = 1 if compat == "official" else 2
    torch.testing.assert_close(terms["cross_cam"].item(), views_added * math.log(4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, r"`temperature` must be positive, got 0"),
        ({"temperature": -0.5}, r"`temperature` must be positive, got -0.5"),
        ({"temperature": math.nan}, r"`temperature`.*nan"),
        ({"top_k": 0}, r"`top_k` must be at least 1, got 0"),
        ({"background": 1}, r"`background` must be None, 0 or -1, got 1"),
        ({"background_score": 0}, r"`background_score` must be in \(0, 1\), got 0"),
        ({"background_score": 1.0}, r"`background_score` must be in \(0, 1\), got 1.0"),
        ({"intra_view_weight": -1}, r"weights must not be negative, got \(0.1, 0.1, -1\)"),
        ({"cross_cam_weight": math.nan}, r"weight.*nan"),
        ({"hard_ratio": 0}, r"`hard_ratio` must be in \(0, 1\], got 0"),
        ({"hard_ratio": 1.2}, r"`hard_ratio` must be in \(0, 1\], got 1.2"),
        ({"hard_ratio": 0.3, "compat": "official"}, r"`hard_ratio`.*0.3"),
        ({"compat": "offical"}, r"`compat` must be 'paper' or 'official', got 'offical'"),
    ],
)
def test_hyper_parameters_out_of_range(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrototypeContrast(**settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source_embeddings": torch.zeros(2, 4, 6)}, r"`source_embeddings`.*\(N, C, h, w\).*\(2, 4, 6\)"),
        (
            {"target_embeddings": torch.zeros(2, 4, 4, 3, dtype=torch.long)},
            r"`target_embeddings`.*torch.int64",
        ),
        ({"target_embeddings": [1.0]}, r"`target_embeddings`.*list"),
        ({"source_embeddings": torch.zeros(2, 5, 6, 5)}, r"channels differ.*'source_embeddings': 5.*: 4"),
        ({"source_cams": torch.zeros(2, 7, 6, 5)}, r"channels differ.*'source_cams': 7.*'target_cams': 3"),
        ({"source_cams": torch.zeros(3, 3, 6, 5)}, r"batch sizes differ.*'source_cams': 3"),
        ({"target_cams": torch.zeros(2, 3, 0, 3)}, r"`target_cams`.*pixels.*\(2, 3, 0, 3\)"),
        ({"target_cams": torch.full((2, 3, 4, 3), math.nan)}, r"`target_cams` has NaN or infinite values"),
        (
            {"source_embeddings": torch.full((2, 4, 6, 5), math.inf)},
            r"`source_embeddings` has NaN or infinite",
        ),
        ({"tags": torch.zeros(2, 4)}, r"`tags`.*\(2, 3\), got \(2, 4\)"),
        ({"tags": torch.zeros(2, 3, 1)}, r"`tags`.*\(2, 3\), got \(2, 3, 1\)"),
        ({"tags": [[1, 0, 0], [0, 0, 0]]}, r"`tags`.*list"),
        (
            {"tags": torch.tensor([[0, 1, 2], [0, 0, 1]])},
            r"`tags` must be 0 or 1, got values in \[0.0, 2.0\]",
        ),
        ({"tags": torch.tensor([[0, 0.5, 1], [0, 0, 1]])}, r"`tags` must be 0 or 1"),
        ({"tags": torch.tensor([[0, math.nan, 1], [0, 0, 1]])}, r"`tags` must be 0 or 1"),
    ],
)
def test_tensors_that_do_not_go_together(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrototypeContrast()(**{**views(28)._asdict(), **change})


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"source_valid": torch.ones(2, 6, 5, dtype=torch.bool)}, r"valid.*\(2, 4, 3\).*\(2, 6, 5\)"),
        ({"target_valid": torch.ones(2, 4, 3)}, r"valid.*bool.*torch.float32"),
        ({"draws": PixelDraws(torch.rand(2, 23), torch.rand(2, 24, 4))}, r"draws.*23"),
        ({"draws": PixelDraws(torch.rand(2, 24), torch.rand(2, 24, 1))}, r"draws.*\(2, 24, 1\)"),
        ({"candidate_indices": (torch.zeros(3, 2).long(), torch.zeros(4, 2).long())}, r"candidate.*\(3, 2\)"),
    ],
)
def test_optional_tensors_that_do_not_fit(keywords: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrototypeContrast()(*views(28), **keywords)


def test_maps_with_nothing_but_a_background() -> None:
    inputs = views(29, classes=0, background=0)
    with pytest.raises(ValueError, match="channel"):
        PrototypeContrast(background=0)(*inputs)


def test_has_no_state_and_shows_its_settings() -> None:
    contrast = PrototypeContrast(temperature=0.07, top_k=5, compat="official")
    assert not contrast.state_dict()
    assert not list(contrast.parameters())
    assert "temperature=0.07" in repr(contrast)
    assert "compat='official'" in repr(contrast)
    inputs = views(30)
    copy = pickle.loads(pickle.dumps(contrast))
    assert copy(*inputs, draws=draws(inputs)) == contrast(*inputs, draws=draws(inputs))


# With a memory.


def memory(filled: int = 0, capacity: int = 3, background: int = 4, dtype: torch.dtype = torch.float64):
    """A memory of four classes and four columns, with some rows of each."""
    bank = ClassMemoryBank(4, 4, capacity, background, dtype)
    rows = torch.randn(filled * 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bank.push(rows, torch.eye(4, dtype=torch.bool).repeat(filled, 1))
    return bank


def lists(bank: ClassMemoryBank) -> Fifo:
    """The same rows for the literal reading."""
    fifo = Fifo(bank.capacities)
    fifo.rows = [list(bank.rows(index)) for index in range(bank.num_classes)]
    return fifo


def assert_holds(bank: ClassMemoryBank, rows: list[list[Tensor]]) -> None:
    assert bank.counts.tolist() == [len(of_class) for of_class in rows]
    for index, of_class in enumerate(rows):
        if of_class:
            torch.testing.assert_close(bank.rows(index), torch.stack(of_class), rtol=1e-9, atol=1e-12)


def tagged(inputs: Views, *tags: int) -> Views:
    return inputs._replace(tags=torch.tensor([tags] * len(inputs.tags)))


@pytest.mark.parametrize("background", [None, 0, -1])
@pytest.mark.parametrize("mined", [True, False])
def test_memory_equals_the_literal_reading(background: int | None, mined: bool) -> None:
    """Steps with classes that come and go; the rings fill up and turn round. The last step is in evaluation."""
    settings = {"background": background, "mine_prototypes": mined, "sample_pixels": mined, "top_k": 5}
    contrast = PrototypeContrast(**settings, bank=memory())
    fifo = Fifo(contrast.bank.capacities)
    read = 0
    for step, tags in enumerate([(1, 1, 0), (1, 0, 0), (0, 1, 1), (0, 1, 0), (1, 0, 0), (0, 0, 1), (1, 0, 0)]):
        contrast.train(step < 6)
        inputs = tagged(views(40 + step, background=background), *tags)
        keywords = {"draws": draws(inputs, step)}
        terms = contrast(*inputs, **keywords)
        expected = ppc.prototype_contrast(*inputs, **keywords, **settings, memory=fifo, train=step < 6)
        assert_close(terms, expected, inputs)
        assert_holds(contrast.bank, fifo.rows)
        bare = PrototypeContrast(**settings)(*inputs, **keywords)
        read += terms["cross_cam"] > bare["cross_cam"]
    assert read == 6, "all steps but the first"
    assert tuple(contrast.bank.counts.tolist()) == contrast.bank.capacities


def test_classes_that_the_batch_has_not_are_more_negatives() -> None:
    """With a full memory each pixel has a negative for each class, by the literal reading."""
    inputs = tagged(views(50), 1, 0, 0)
    keywords, settings = {"draws": draws(inputs)}, {"mine_prototypes": False, "sample_pixels": False}
    bank = memory(5)
    bare = PrototypeContrast(**settings)(*inputs, **keywords)
    expected = ppc.prototype_contrast(*inputs, **keywords, **settings, memory=lists(bank))
    terms = PrototypeContrast(**settings, bank=bank)(*inputs, **keywords)
    assert_close(terms, expected, inputs)
    assert all(terms[name] > bare[name] for name in TERMS)


def test_embeddings_that_are_all_alike_count_the_stored_classes() -> None:
    inputs = tagged(views(51), 1, 0, 0)
    same = [torch.ones_like(x).requires_grad_() for x in inputs.embeddings]
    inputs = inputs._replace(source_embeddings=same[0], target_embeddings=same[1])
    bank = memory()
    bank.push(torch.ones(1, 4), torch.tensor([[False, True, False, True]]))  # class 1 is in the batch
    terms = PrototypeContrast(cross_cam_weight=1, bank=bank)(*inputs, draws=draws(inputs))
    torch.testing.assert_close(terms["cross_cam"].item(), 2 * math.log(3))


def test_the_batchs_own_prototype_comes_first() -> None:
    """The memory of a class that both views have is not read."""
    inputs = tagged(views(52), 1, 1, 0)
    rows, both = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.eye(4, dtype=torch.bool)
    results = []
    for first in rows:
        bank = memory(1)
        bank.push(first, both & torch.tensor([True, True, True, False]))
        results.append(PrototypeContrast(bank=bank)(*inputs, draws=draws(inputs)))
    assert results[0] == results[1]


@pytest.mark.parametrize("without", ["source", "target"])
def test_a_stored_prototype_may_be_the_positive(without: str) -> None:
    """One view has no pixel, so that the other's meet stored prototypes."""
    inputs, bank = views(53), memory(2)
    seen = {f"{view}_valid": torch.full((2, 4, 3), view != without) for view in ("source", "target")}
    keywords = {"draws": draws(inputs), **seen}
    assert PrototypeContrast()(*inputs, **keywords)["cross_prototype"] == 0
    expected = ppc.prototype_contrast(*inputs, **keywords, memory=lists(bank))
    terms = PrototypeContrast(bank=bank)(*inputs, **keywords)
    assert terms["cross_prototype"] > 0
    assert_close(terms, expected, inputs)


def test_an_empty_memory_changes_nothing() -> None:
    inputs = tagged(views(54), 1, 0, 1)
    bare, with_memory = (PrototypeContrast(bank=bank)(*inputs, draws=draws(inputs)) for bank in (None, memory()))
    for name in TERMS:
        assert torch.equal(bare[name], with_memory[name])
        slopes = [torch.autograd.grad(x[name], inputs.embeddings, retain_graph=True) for x in (bare, with_memory)]
        assert all(torch.equal(a, b) for a, b in zip(*slopes, strict=True))


def test_the_memory_takes_the_prototypes_of_both_views() -> None:
    """The source view's before the target view's, of unit length, without a graph."""
    inputs, bank = tagged(views(55, source=(4, 3)), 0, 0, 0), memory()
    chosen = (torch.full((4, 1), 3), torch.full((4, 1), 7))
    PrototypeContrast(bank=bank)(*inputs, draws=draws(inputs), candidate_indices=chosen)
    assert bank.counts.tolist() == [2, 0, 0, 0]
    assert not bank.storage.requires_grad
    pixels = [x.detach().movedim(1, -1).flatten(0, 2)[i] for x, i in zip(inputs.embeddings, (3, 7), strict=True)]
    torch.testing.assert_close(bank.rows(0), torch.nn.functional.normalize(torch.stack(pixels), dim=1))


def test_in_evaluation_the_memory_is_read_not_written() -> None:
    inputs = tagged(views(56), 0, 1, 0)
    training, evaluation = (PrototypeContrast(bank=memory(2)).train(mode) for mode in (True, False))
    before = [evaluation.bank.rows(index) for index in range(4)]
    assert training(*inputs, draws=draws(inputs)) == evaluation(*inputs, draws=draws(inputs))
    assert all(torch.equal(evaluation.bank.rows(index), before[index]) for index in range(4))
    assert not torch.equal(training.bank.rows(0), before[0])


def test_a_batch_without_pixels_leaves_the_memory() -> None:
    inputs, contrast = views(57, images=0), PrototypeContrast(bank=memory(2))
    before = contrast.bank.storage.clone()
    terms = contrast(*inputs)
    assert all(term == 0 and term.requires_grad for term in terms.values())
    assert torch.equal(contrast.bank.storage[:-1], before[:-1])  # the last row is no class's
    assert contrast.bank.counts.tolist() == [2] * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_memory_may_be_of_less_precision(dtype: torch.dtype) -> None:
    inputs = tagged(views(58), 0, 1, 0)
    terms = PrototypeContrast(bank=memory(2, dtype=dtype))(*inputs, draws=draws(inputs))
    expected = PrototypeContrast(bank=memory(2))(*inputs, draws=draws(inputs))
    assert {term.dtype for term in terms.values()} == {torch.float64}
    torch.testing.assert_close(terms, expected, rtol=2e-2, atol=1e-4)


def test_the_memory_is_state() -> None:
    inputs, contrast = tagged(views(59), 0, 1, 0), PrototypeContrast(bank=memory())
    contrast(*views(60)._replace(tags=torch.ones(2, 3)), draws=draws(inputs))
    other = PrototypeContrast(bank=memory(4))
    other.load_state_dict(contrast.state_dict())
    assert other(*inputs, draws=draws(inputs)) == contrast(*inputs, draws=draws(inputs))
    assert contrast.to("meta").bank.storage.device.type == "meta"


def test_memories_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"`bank` must be None with compat='official'.*never be read"):
        PrototypeContrast(compat="official", bank=memory())
    for classes, width in ((3, 4), (4, 5)):
        with pytest.raises(
            ValueError, match=f"of {classes} classes and {width} columns; the maps are of 4 classes.*of 4 channels"
        ):
            PrototypeContrast(bank=ClassMemoryBank(classes, width))(*views(61))
