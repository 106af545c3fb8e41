"""Drawn hyper-parameters and arguments, good and bad: a loss works, or its own error says what is wrong."""

from __future__ import annotations

import inspect
import re
import traceback
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import wsss_contrast
from wsss_contrast import losses
from wsss_contrast.metrics import SeedMIoU
from wsss_contrast.nn import ClassMemoryBank

Sizes = dict[str, int]
Draw = Callable[[Any], Any]
LETTERS = {
    "N": (0, 1, 2, 3),
    "K": (1, 2, 4),
    "D": (1, 3),
    **dict.fromkeys("hwHW", (1, 2, 3, 5, 6)),
    "y": (6, 5, 1),
    "x": (6, 5),
}
"""What the letters of a shape can be. C = K + 1, B are the channels with or without a background; y and x are mostly
large enough for pairs of pixels."""
OTHERS = (None, "maps", 3, 0.5, [1.0, 2.0], {}, np.zeros((2, 3, 4, 4), np.float32))
"""What is no tensor."""

OUTSIDE = (1.0, -0.5, float("nan"), 1e30, -1e30)
"""Of [0, 1)."""


class Argument(NamedTuple):
    """How an argument is drawn: well, and how a good one is spoilt. ``learns``: whether gradient flows through it."""

    good: Callable[[Draw, Sizes], Any]
    spoilt: Callable[[Draw, Sizes, Any], Any]
    learns: bool = False


def shape_of(letters: str, sizes: Sizes) -> tuple[int, ...]:
    return tuple(sizes[letter] if letter.isalpha() else int(letter) for letter in letters)


def generator(draw: Draw) -> torch.Generator:
    return torch.Generator().manual_seed(draw(st.integers(0, 2**20)))


def laid_out(draw: Draw, x: Tensor) -> Tensor:
    """The same values in another order in memory."""
    kind = draw(st.sampled_from(["as it is", "strided", "channels last"]))
    if kind == "channels last" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x.mT.contiguous().mT if kind == "strided" and x.dim() > 1 else x


def reshaped(draw: Draw, x: Tensor) -> Tensor:
    """Of another rank, or longer, shorter or empty along a dimension."""
    kind = draw(st.sampled_from(["first", "one more", "flat", "longer", "shorter", "empty"]))
    if kind == "one more" or x.dim() == 0:
        return x[None]
    if kind == "first":
        return x[0] if len(x) else x.new_zeros(x.shape[1:])
    if kind == "flat":
        return x.flatten()
    shape = list(x.shape)
    dim = draw(st.integers(0, x.dim() - 1))
    shape[dim] = {"longer": shape[dim] + 1, "shorter": max(shape[dim] - 1, 0), "empty": 0}[kind]
    return x.new_zeros(shape)


def with_value(draw: Draw, x: Tensor, value: float) -> Tensor:
    """One value replaced."""
    x = x.clone()
    if x.numel():
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = value
    return x


def spoilt_tensor(draw: Draw, x: Any, dtypes: tuple[torch.dtype, ...], values: tuple[float, ...]) -> Any:
    """Of another shape, dtype or value, or no tensor."""
    kind = draw(st.sampled_from(["shape", "dtype", "value", "other"]))
    if kind == "other" or not isinstance(x, Tensor):
        return draw(st.sampled_from(OTHERS))
    x = x.detach().contiguous()
    if kind == "shape":
        return reshaped(draw, x)
    if kind == "dtype":
        return x.to(draw(st.sampled_from(dtypes)))
    return with_value(draw, x, draw(st.sampled_from(values)))


def maps(letters: str, learns: bool = True, unit: bool = False) -> Argument:
    """Floating maps; ``unit``: in [0, 1]."""

    def good(draw: Draw, sizes: Sizes) -> Tensor:
        dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16]))
        kind = draw(st.sampled_from(["normal"] * 3 + ["constant", "zero", "huge", "tiny", "dead"]))
        of = generator(draw)
        x = torch.randn(shape_of(letters, sizes), generator=of, dtype=torch.float64)
        if unit:
            x = x.sigmoid()
        elif kind == "dead":
            x = -x.abs()
        x = x * {"zero": 0.0, "huge": 1.0 if unit else 1e30, "tiny": 1e-30}.get(kind, 1.0)
        x = torch.full_like(x, 0.7) if kind == "constant" else x
        x = laid_out(draw, x.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max).to(dtype))
        return x.requires_grad_(draw(st.booleans()))

    integers = (torch.int64, torch.int32, torch.bool, torch.complex64)
    values = (float("nan"), float("inf"), -float("inf"), *((-0.1, 1.5) if unit else ()))
    return Argument(good, lambda draw, _, x: spoilt_tensor(draw, x, integers, values), learns)


def tags(letters: str = "NK") -> Argument:
    def good(draw: Draw, sizes: Sizes) -> Tensor:
        x = torch.randint(0, 2, shape_of(letters, sizes), generator=generator(draw))
        x = x * draw(st.sampled_from([0, 1, 1]))
        return x.to(draw(st.sampled_from([torch.int64, torch.float32, torch.bool, torch.uint8, torch.bfloat16])))

    def spoilt(draw: Draw, _: Sizes, x: Any) -> Any:
        x = None if x is None else x.to(torch.float32)
        return spoilt_tensor(draw, x, (torch.complex64,), (2.0, -1.0, 0.5, float("nan"), 255.0))

    return Argument(good, spoilt)


def labels(letters: str = "NHW", classes: str = "C") -> Argument:
    def good(draw: Draw, sizes: Sizes) -> Tensor:
        of = generator(draw)
        x = torch.randint(0, sizes[classes], shape_of(letters, sizes), generator=of)
        void = torch.rand(x.shape, generator=of) < draw(st.sampled_from([0.0, 0.3, 1.0]))
        return laid_out(draw, x.masked_fill(void, 255) * draw(st.sampled_from([0, 1, 1, 1])))

    def spoilt(draw: Draw, _: Sizes, x: Tensor) -> Any:
        dtypes = (torch.int32, torch.uint8, torch.bool, torch.float32, torch.float16)
        return spoilt_tensor(draw, x, dtypes, (-1, 254, 256, 10**12, -(2**40)))

    return Argument(good, spoilt)


def soft_labels() -> Argument:
    """Distributions over the classes."""

    def good(draw: Draw, sizes: Sizes) -> Tensor:
        return torch.randn(shape_of("NCHW", sizes), generator=generator(draw)).softmax(dim=1)

    def spoilt(draw: Draw, _: Sizes, x: Any) -> Any:
        return spoilt_tensor(draw, x, (torch.int64, torch.bool), (-1.0, 1.5, float("nan"), float("inf")))

    return Argument(good, spoilt)


def size_of(letters: str, twice: bool = False) -> Argument:
    """A height and a width, or those of two views; or ``None``."""

    def good(draw: Draw, sizes: Sizes) -> Any:
        size = shape_of(letters, sizes)
        return draw(st.sampled_from([None, None, (size, size) if twice else size]))

    bad = (3, "size", (0, 2), (2,), (2, 2, 2), (2.5, 2), ((2, 2), None), ((0, 1), (1, 1)), torch.rand(2), (-1, 2))
    return Argument(good, lambda draw, *_: draw(st.sampled_from(bad)))


def mask(letters: str = "Nhw", optional: bool = True) -> Argument:
    """bool; or ``None``."""

    def good(draw: Draw, sizes: Sizes) -> Tensor | None:
        share = draw(st.sampled_from([0.0, 0.5, 1.0, None] if optional else [0.0, 0.5, 1.0]))
        return None if share is None else torch.rand(shape_of(letters, sizes), generator=generator(draw)) < share

    return Argument(good, lambda draw, _, x: spoilt_tensor(draw, x, (torch.float32, torch.int64), (1,)))


def numbers(letters: tuple[str, ...], kind: Callable[..., Any]) -> Argument:
    """A tuple of random numbers in [0, 1); or ``None``."""

    def good(draw: Draw, sizes: Sizes) -> Any:
        if draw(st.booleans()):
            return None
        of = generator(draw)
        return kind(*(torch.rand(shape_of(part, sizes), generator=of) for part in letters))

    def spoilt(draw: Draw, _: Sizes, x: Any) -> Any:
        if x is None:
            return draw(st.sampled_from([3, "draws", (torch.rand(2),), [None, None]]))
        parts, place = list(x), draw(st.integers(0, len(letters) - 1))
        parts[place] = spoilt_tensor(
            draw, parts[place], (torch.bool, torch.int64), (1.0, -0.5, float("nan"), 1e30, -1e30)
        )
        return draw(st.sampled_from([kind(*parts), tuple(parts), tuple(parts[:1]), parts[place]]))

    return Argument(good, spoilt)


def indices() -> Argument:
    def good(draw: Draw, sizes: Sizes) -> Any:
        if sizes["P"] == 0 or draw(st.booleans()):
            return None
        of = generator(draw)
        return tuple(torch.randint(0, sizes["P"], (sizes["C"], 2), generator=of) for _ in range(2))

    def spoilt(draw: Draw, _: Sizes, x: Any) -> Any:
        if x is None:
            return draw(st.sampled_from([3, "all", (torch.zeros(2, 2, dtype=torch.long),), (None, None)]))
        parts, place = list(x), draw(st.integers(0, 1))
        parts[place] = spoilt_tensor(draw, parts[place], (torch.float32, torch.bool), (-1, 10**6))
        return draw(st.sampled_from([tuple(parts), parts[place]]))

    return Argument(good, spoilt)


def joined(kind: Callable[..., Any], *parts: Argument) -> Argument:
    """A tuple of arguments."""

    def spoilt(draw: Draw, sizes: Sizes, x: Any) -> Any:
        found, place = list(x), draw(st.integers(0, len(parts) - 1))
        found[place] = parts[place].spoilt(draw, sizes, found[place])
        return draw(st.sampled_from([kind(*found), kind(*found), tuple(x), None, 3]))

    return Argument(lambda draw, sizes: kind(*(part.good(draw, sizes) for part in parts)), spoilt, learns=True)


def one_of(good: tuple[Any, ...], bad: tuple[Any, ...]) -> Argument:
    return Argument(lambda draw, _: draw(st.sampled_from(good)), lambda draw, *_: draw(st.sampled_from(bad)))


NO_NUMBERS = (float("nan"), float("inf"), -float("inf"), "0.5", None, [0.5], torch.rand(2), 1j)


def number(*good: float, bad: tuple[Any, ...] = (), optional: bool = False) -> Argument:
    others = tuple(value for value in NO_NUMBERS if value is not None or not optional)
    return one_of((*good, *((None,) if optional else ())), (*others, *bad))


def of_sizes(good: Callable[[Sizes], Any], *bad: Any) -> Argument:
    return Argument(lambda _, sizes: good(sizes), lambda draw, *_: draw(st.sampled_from((*NO_NUMBERS[:-1], *bad))))


SHARE = number(0.0, 0.2, 1.0, bad=(-0.1, 1.1))
SMOOTHING = number(0.0, 0.1, 0.9, bad=(-0.1, 1.0))
FLAG = one_of((True, False), (True, False))
CLASSES = of_sizes(lambda sizes: sizes["C"], 0, 1, -3, 1.5, 100)
WIDTH = of_sizes(lambda sizes: sizes["D"], 0, -3, 1.5, 100)
COUNT = number(1, 3, bad=(0, -3, 1.5))
GENERATOR = Argument(
    lambda draw, _: draw(st.sampled_from([None, torch.Generator()])), lambda draw, *_: draw(st.sampled_from([3, "a"]))
)
BANK = Argument(
    lambda _, sizes: ClassMemoryBank(sizes["C"], sizes["D"], 3, 4),
    lambda draw, sizes, _: draw(
        st.sampled_from([3, "bank", ClassMemoryBank(sizes["C"] + 1, sizes["D"], 2, 2), ClassMemoryBank(2, 9, 2, 2)])
    ),
)


class Subject(NamedTuple):
    """A loss, or what else takes arguments: its constructor's and those of a method."""

    make: Callable[..., Any]
    options: Mapping[str, Argument]
    arguments: Mapping[str, Argument]
    method: str = "__call__"

    @property
    def every(self) -> dict[str, Argument]:
        return {**self.options, **self.arguments}


def choice(*good: Any) -> Argument:
    return one_of(good, ("nonsense", 3, None, torch.rand(2)))


def optional(argument: Argument) -> Argument:
    return argument._replace(good=lambda draw, sizes: argument.good(draw, sizes) if draw(st.booleans()) else None)


CONTRAST = {
    "temperature": number(0.1, 0.5, bad=(0, -1)),
    "queries": COUNT,
    "negatives": COUNT,
    "low_rank": number(0, 1, 3, bad=(-1, 1.5, 100)),
    "high_rank": number(3, 6, bad=(-1, 4.5)),
    "high_rank_included": FLAG,
    "query_confidence": number(0.0, 0.3, bad=(-0.1, 1.0)),
    "negative_confidence": number(0.01, 1.0, bad=(0, 1.1)),
    "own_class": FLAG,
    "class_mean": choice("all", "present"),
    "bank": BANK,
}
PROTOTYPES = {
    "temperature": number(0.1, 0.5, bad=(0, -1)),
    "top_k": number(1, 3, 40, bad=(0, -1, 1.5), optional=True),
    "background": one_of((None, 0, -1), (1, -1.0, "first", float("nan"), [0], torch.rand(2))),
    "background_score": number(0.05, 0.2, 0.9, bad=(0, 1, -1)),
    "cross_prototype_weight": number(0.1, 1, bad=(-1,)),
    "cross_cam_weight": number(0.0, 0.1, bad=(-1,)),
    "intra_view_weight": number(0.0, 0.1, bad=(-1,)),
    "mine_prototypes": FLAG,
    "sample_pixels": FLAG,
    "hard_ratio": number(0.5, 0.6, 1.0, bad=(0, 1.1)),
}
VIEWS = {
    "source_embeddings": maps("NDHW"),
    "source_cams": maps("NBHW", learns=False),
    "target_embeddings": maps("NDhw"),
    "target_cams": maps("NBhw", learns=False),
    "tags": tags(),
    "source_valid": mask(),
    "target_valid": mask(),
    "generator": GENERATOR,
    "draws": numbers(("2P", "2PC"), losses.PixelDraws),
    "candidate_indices": indices(),
}
NONE: Mapping[str, Argument] = MappingProxyType({})
SUBJECTS = {
    "activation_consistency": Subject(
        losses.ActivationConsistency,
        {"label_smoothing": SMOOTHING},
        {"cams": maps("NKhw"), "background": maps("N1HW", learns=False), "labels": labels()},
    ),
    "attention_affinity": Subject(
        losses.AttentionAffinity,
        {"radius": number(1, 2, 8, bad=(0, -1, 1.5))},
        {"affinity": maps("NLL"), "labels": labels("Nhw")},
    ),
    "csrm": Subject(
        losses.CSRMLoss,
        {
            "num_classes": CLASSES,
            "embedding_dim": WIDTH,
            "compat": choice("paper", "official"),
            "warmup": number(0.0, 0.5, bad=(-1, 1.0)),
            "unreliable": SHARE,
            "label_smoothing": optional(SMOOTHING),
            "per_image": optional(FLAG),
            "scheduled": one_of((None, "confidence", "weight"), ("nonsense", 3)),
            "mask_by_tags": optional(FLAG),
            "mixed_tags": optional(FLAG),
            "normalizer": one_of((None, "kept", "all"), ("nonsense", 3)),
            "contrast": one_of(
                ({"queries": 3, "negatives": 2},), ({"queries": 0}, {"temperature": "a"}, [], 3, {"low_rank": 0.5})
            ),
            "bank": BANK,
            "weights": one_of(
                (None, {"contrast": 0.5}), ({"other": 1}, {"contrast": float("nan")}, {"contrast": "a"}, 3)
            ),
        },
        {
            "student": joined(losses.CSRMMaps, maps("NKhw"), maps("NChw"), maps("NDhw")),
            "teacher": joined(losses.CSRMMaps, maps("NKhw"), maps("NChw"), maps("NDhw"))._replace(learns=False),
            "plain_logits": maps("NCHW", learns=False),
            "labels": labels(),
            "tags": tags(),
            "labeled": Argument(
                lambda draw, sizes: draw(st.integers(0, sizes["N"])),
                lambda draw, *_: draw(st.sampled_from([-1, 100, 0.5, *NO_NUMBERS])),
            ),
            "progress": SHARE,
            "original_tags": optional(tags()),
            "soft_labels": optional(soft_labels()),
            "generator": GENERATOR,
            "draws": numbers(("C3", "C6"), losses.ContrastDraws),
        },
    ),
    "csrm_schedule": Subject(
        losses.CSRMSchedule,
        {
            "warmup": number(0.0, 0.5, bad=(-1, 1.0)),
            "unreliable": SHARE,
            "scheduled": choice("confidence", "weight"),
        },
        {"progress": SHARE},
        "weights",
    ),
    "equivariant": Subject(
        losses.EquivariantRegularization,
        NONE,
        {"source_cams": maps("NKhw"), "target_cams": maps("NKhw"), "tags": tags(), "valid": mask()},
    ),
    "equivariant_resized": Subject(
        losses.EquivariantRegularization,
        NONE,
        {"source_cams": maps("NKHW"), "target_cams": maps("NKhw"), "tags": tags(), "sizes": size_of("HW", twice=True)},
    ),
    "equivariant_cross": Subject(
        losses.EquivariantCrossRegularization,
        {"ratio": number(0.01, 0.2, 1.0, bad=(0, 1.1))},
        {
            "source_cams": maps("NKhw", learns=False),
            "source_refined": maps("NChw"),
            "target_cams": maps("NKhw", learns=False),
            "target_refined": maps("NChw"),
            "tags": tags(),
            "valid": mask(),
        },
    ),
    "equivariant_cross_resized": Subject(
        losses.EquivariantCrossRegularization,
        {"ratio": number(0.01, 0.2, 1.0, bad=(0, 1.1))},
        {
            "source_cams": maps("NKHW", learns=False),
            "source_refined": maps("NCHW"),
            "target_cams": maps("NKhw", learns=False),
            "target_refined": maps("NChw"),
            "tags": tags(),
            "sizes": size_of("HW", twice=True),
        },
    ),
    "inter_pixel_relations": Subject(
        losses.InterPixelRelations,
        {"radius": number(2, 3, bad=(0, 1, -1, 2.5))},
        {"edges": maps("N1yx"), "displacements": maps("N2yx"), "labels": labels("Nyx")},
    ),
    "min_pooling": Subject(losses.MinPooling, NONE, {"refined": maps("NKhw"), "tags": tags(), "valid": mask()}),
    "min_pooling_resized": Subject(
        losses.MinPooling, NONE, {"refined": maps("NKhw"), "tags": tags(), "size": size_of("HW")}
    ),
    "multilabel_soft_margin": Subject(
        losses.MultilabelSoftMargin,
        {"label_smoothing": SMOOTHING},
        {"cams": maps("NKhw"), "tags": tags(), "valid": mask()},
    ),
    "multilabel_soft_margin_resized": Subject(
        losses.MultilabelSoftMargin, NONE, {"cams": maps("NKhw"), "tags": tags(), "size": size_of("HW")}
    ),
    "patch_token_contrast": Subject(
        losses.PatchTokenContrast, NONE, {"features": maps("NDhw"), "labels": labels("Nhw")}
    ),
    "prototype_contrast": Subject(losses.PrototypeContrast, PROTOTYPES | {"bank": optional(BANK)}, VIEWS),
    "prototype_contrast_official": Subject(
        losses.PrototypeContrast, PROTOTYPES | {"compat": one_of(("official",), ("nonsense", 3, None))}, VIEWS
    ),
    "puzzle_reconstruction": Subject(
        losses.PuzzleReconstruction,
        {"reduction": choice("masking", "selection")},
        {"cams": maps("NKhw"), "merged_cams": maps("NKhw"), "tags": tags()},
    ),
    "reliable_segmentation": Subject(
        losses.ReliableSegmentation,
        {"label_smoothing": SMOOTHING, "per_image": FLAG},
        {"logits": maps("NChw"), "labels": labels()},
    ),
    "reliable_segmentation_soft": Subject(
        losses.ReliableSegmentation,
        {"label_smoothing": SMOOTHING, "per_image": FLAG},
        {"logits": maps("NChw"), "labels": soft_labels()},
    ),
    "saliency": Subject(
        losses.SaliencyLoss,
        {
            "overlap_threshold": SHARE,
            "mixing": SHARE,
            "background": one_of((0, -1), (1, None, "last", -1.0, torch.rand(2))),
        },
        {"cams": maps("NChw"), "tags": tags(), "saliency": maps("N1HW", learns=False, unit=True)},
    ),
    "semantic_affinity": Subject(
        losses.SemanticAffinity,
        {"radius": number(2, 3, bad=(0, 1, -1, 2.5))},
        {"features": maps("NDyx"), "labels": labels("Nyx")},
    ),
    "unreliable_contrast": Subject(
        losses.UnreliablePixelContrast,
        {"num_classes": CLASSES, "embedding_dim": WIDTH, **CONTRAST, "queries": number(2), "negatives": number(3)},
        {
            "embeddings": maps("NDhw"),
            "teacher_embeddings": maps("NDhw", learns=False),
            "teacher_logits": maps("NChw", learns=False),
            "labels": labels(),
            "tags": tags(),
            "labeled": mask("N", optional=False),
            "share": SHARE,
            "generator": GENERATOR,
            "draws": numbers(("C2", "C6"), losses.ContrastDraws),
        },
    ),
    "weak_to_strong": Subject(
        losses.WeakToStrong,
        {"normalizer": choice("kept", "all")},
        {"logits": maps("NChw"), "labels": labels(), "entropy": maps("NHW", learns=False), "share": SHARE},
    ),
    "memory_bank": Subject(
        ClassMemoryBank,
        {
            "num_classes": CLASSES,
            "embedding_dim": WIDTH,
            "capacity": COUNT,
            "background_capacity": COUNT,
            "dtype": one_of((torch.float32, torch.float16, "bfloat16"), (torch.int64, "nonsense", 3, None, "nn")),
        },
        {"rows": maps("PD"), "members": mask("PC", optional=False), "most": number(5, 6, bad=(-1, 1.5), optional=True)},
        "push",
    ),
    "seed_miou": Subject(
        SeedMIoU,
        {
            "num_classes": of_sizes(lambda sizes: sizes["K"], 0, -3, 1.5, 100),
            "thresholds": one_of(
                ((0.2,), (0.0, 0.5), [0.1, 0.2, 0.3]),
                ((), (0.2, 0.1), (float("nan"),), ("a",), 0.5, None, (0.1, float("inf"))),
            ),
            "count_absent": FLAG,
        },
        {"cams": maps("NKhw"), "masks": labels("Nhw")},
        "update",
    ),
}


def drawn_sizes(draw: Draw) -> Sizes:
    sizes = {name: draw(st.sampled_from(values)) for name, values in LETTERS.items()}
    area = sizes["h"] * sizes["w"]
    return sizes | {"C": sizes["K"] + 1, "L": area, "P": sizes["N"] * area}


def texts(value: Any) -> list[str]:
    """What an error can say of a value."""
    if isinstance(value, dict):
        return [str(value), *value]
    if isinstance(value, losses.CSRMMaps):  # the losses of the terms have names of their own for them
        return [f"{of}{name}" for of in ("", "teacher_") for name in (*value._fields, "logits")]
    if isinstance(value, tuple | list):
        return [str(value), *(text for part in value for text in texts(part))]
    if isinstance(value, Tensor):
        return [str(tuple(value.shape)), str(value.dtype)]
    return [str(value), type(value).__name__]


def leaves(value: Any) -> list[Tensor]:
    parts = value if isinstance(value, tuple | list) else [value]
    return [part for part in parts if isinstance(part, Tensor) and part.requires_grad]


def check_result(result: Any, given: Mapping[str, Any], arguments: Mapping[str, Argument]) -> None:
    """Each term is a finite scalar with a graph, and gradients are finite."""
    terms = [term for term in (result.values() if isinstance(result, dict) else [result]) if isinstance(term, Tensor)]
    assert all(term.shape == () and term.isfinite() for term in terms), terms
    if not terms:
        return
    inputs = [leaf for name, value in given.items() if arguments[name].learns for leaf in leaves(value)]
    total = sum(terms)
    assert total.requires_grad or not inputs
    if total.requires_grad:
        everything = [leaf for value in given.values() for leaf in leaves(value)]
        slopes = torch.autograd.grad(total, everything, allow_unused=True)
        assert all(slope.isfinite().all() for slope in slopes if slope is not None), slopes


def check_call(name: str, wrong: str | None, draw: Draw) -> None:
    """A call with drawn arguments, of which one is spoilt, works or is refused."""
    subject, sizes = SUBJECTS[name], drawn_sizes(draw)
    every = subject.every

    def drawn(argument: str) -> Any:
        good = every[argument].good(draw, sizes)
        return every[argument].spoilt(draw, sizes, good) if argument == wrong else good

    options = {argument: drawn(argument) for argument in subject.options}
    sizes["B"] = sizes["K"] + (options.get("background") is not None)
    arguments = {argument: drawn(argument) for argument in subject.arguments}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = getattr(subject.make(**options), subject.method)(**arguments)
    except ValueError as error:
        refused = error
    else:
        check_result(result, arguments, subject.arguments)
        return
    where = traceback.extract_tb(refused.__traceback__)[-1].filename
    assert where.startswith(wsss_contrast.__path__[0]), f"raised in {where}: {refused}"
    said = [*every, *(texts((options | arguments)[wrong]) if wrong else ())]
    found = [text for text in said if re.search(rf"(?<!\w){re.escape(text)}(?!\w)", str(refused))]
    assert found, f"names nothing: {refused}"
    assert wrong or "too small for the radius" in str(refused), f"all is in order: {refused}"


@pytest.mark.parametrize("name", SUBJECTS)
@given(data=st.data())
def test_good_arguments(name: str, data: st.DataObject) -> None:
    check_call(name, None, data.draw)


@pytest.mark.parametrize(("name", "wrong"), [(name, wrong) for name in SUBJECTS for wrong in SUBJECTS[name].every])
@settings(max_examples=12)
@given(data=st.data())
def test_a_spoilt_argument(name: str, wrong: str, data: st.DataObject) -> None:
    check_call(name, wrong, data.draw)


def test_every_loss_and_argument_is_here() -> None:
    public = [getattr(losses, name) for name in losses.__all__]
    modules = {thing for thing in public if isinstance(thing, type) and issubclass(thing, nn.Module)}
    assert modules <= {subject.make for subject in SUBJECTS.values()}
    for made in {subject.make for subject in SUBJECTS.values()}:
        subjects = [subject for subject in SUBJECTS.values() if subject.make is made]
        method = {"__call__": "forward"}.get(subjects[0].method, subjects[0].method)
        drawn = {argument for subject in subjects for argument in subject.every}
        taken = {*inspect.signature(made).parameters, *inspect.signature(getattr(made, method)).parameters}
        assert taken - drawn <= {"self", "args", "kwargs"}, made


# What the draws found, in single cases.


def test_one_valid_pixel_of_huge_maps_gives_finite_gradients() -> None:
    maps = torch.tensor([[[[8e29, 2e29, 1e29]]]], requires_grad=True)
    valid = torch.tensor([[[True, False, False]]])
    losses.EquivariantRegularization()(maps, maps.detach() * 0, torch.ones(1, 1), valid).backward()
    assert maps.grad.isfinite().all()


@pytest.mark.parametrize("compat", ["paper", "official"])
def test_embeddings_of_zeros_in_half_precision_give_finite_gradients(compat: str) -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(1, 3, 4, 4).half()
    embeddings[..., :2] = 0
    embeddings.requires_grad_()
    cams = torch.randn(1, 2, 4, 4)
    contrast = losses.PrototypeContrast(compat=compat)
    sum(contrast(embeddings, cams, embeddings, cams, torch.ones(1, 2)).values()).backward()
    assert embeddings.grad.isfinite().all()


def test_views_of_two_floating_types_are_one_loss() -> None:
    torch.manual_seed(0)
    source, target = torch.randn(1, 3, 4, 4, dtype=torch.float64), torch.randn(1, 3, 4, 4, requires_grad=True)
    cams = torch.randn(1, 2, 4, 4)
    contrast = losses.PrototypeContrast(sample_pixels=False, mine_prototypes=False)
    mixed, plain = (contrast(of, cams, target, cams, torch.ones(1, 2)) for of in (source, source.float()))
    torch.testing.assert_close(mixed, plain, check_dtype=False)
