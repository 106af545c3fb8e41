"""Refiners, and labels to learn from, by the names that the command line takes."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from wsss_contrast.functional.sepl import POLICIES

from .dense_crf import DenseCRF
from .pixel_adaptive import PixelAdaptiveRefinement
from .pseudo_labels import Refiner
from .random_walk import IRN, PSA
from .sepl import SEPL
from .sure_labels import LABELS

_WALK = re.compile(r"(psa|irn):(?:(\d+):)?(.+)")
_SEPL = re.compile(rf"(?:(.+?)\+)?sepl:(?:({'|'.join(POLICIES)}):)?(.+)")


def refiner(name: str) -> Refiner | None:
    """Make a refiner.

    Args:
        name: ``"none"``; ``"par"``, pixel-adaptive refinement; ``"crf"``, a dense CRF with the settings of PPC, or
            ``"crf:NAME"`` with those of a name in ``CRF_SETTINGS``, with the extra ``crf`` in a process for each CPU,
            which the ranks of a machine share; ``"sepl:FOLDER"`` or ``"sepl:POLICY:FOLDER"``, merging with the masks of
            a :class:`~wsss_contrast.data.SegmentFolder`, and ``"crf+sepl:FOLDER"``, merging after the dense CRF,
            likewise after any other refiner; ``"psa:CHECKPOINT"`` or ``"irn:CHECKPOINT"``, the random walk of a trained
            :class:`~wsss_contrast.modules.AffinityNet` or :class:`~wsss_contrast.modules.IRNet`, and
            ``"psa:LOGT:CHECKPOINT"``, with another number of steps than the papers' 2 to the power of 8; or
            ``"package.module.Name"``, a class or function of your own, which is
            called without arguments and gives a refiner.

    Raises:
        ValueError: an unknown name, one that can't be imported, one that gives no refiner, a folder of masks that is
            not there, or a checkpoint that is missing or another.
    """
    if name == "none":
        return None
    if name == "par":
        return PixelAdaptiveRefinement()
    sepl = _SEPL.fullmatch(name)
    if sepl is not None:
        from wsss_contrast.data import SegmentFolder  # here: data needs libraries that the other refiners do not

        before, policy, given = sepl.groups()
        folder = Path(given).expanduser()
        if policy is None and ":" in given and not folder.is_dir():
            policies = ", ".join(POLICIES)
            raise ValueError(
                f"refiner {name!r}: there is no folder {given}, nor such a policy; policies are {policies}"
            )
        return SEPL(SegmentFolder(folder), policy or "max_iou_imp2", None if before is None else refiner(before))
    walk = _WALK.fullmatch(name)
    if walk is not None:
        kind, logt, checkpoint = walk.groups()
        options = {} if logt is None else {"logt": int(logt)}
        made_by: type[PSA | IRN] = PSA if kind == "psa" else IRN
        return made_by.from_checkpoint(Path(checkpoint).expanduser(), **options)
    kind, _, settings = name.partition(":")
    if kind == "crf":
        return DenseCRF(settings or "ppc", processes=None)
    module, _, attribute = name.rpartition(".")
    if not module or module.startswith("."):
        known = (
            "none, par, crf, crf:SETTINGS, sepl:FOLDER, crf+sepl:FOLDER, psa:CHECKPOINT, psa:LOGT:CHECKPOINT, "
            "irn:CHECKPOINT, irn:LOGT:CHECKPOINT or package.module.Name"
        )
        raise ValueError(f"unknown refiner {name!r}; give {known}")
    try:
        make = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"refiner {name!r} can't be imported: {error}") from error
    try:
        made: Refiner = make()
    except TypeError as error:
        raise ValueError(f"refiner {name!r} can't be called without arguments: {error}") from error
    if not callable(made):
        raise ValueError(f"refiner {name!r} gives {made!r}, which can't be called")
    return made


def label_maker(name: str) -> Callable[..., Tensor]:
    """What makes the labels that PSA or IRN learn from.

    Args:
        name: ``"irn"`` or ``"psa"``, with the papers' thresholds or powers; or with two of your own:
            ``"irn:BACKGROUND:FOREGROUND"``, see :func:`irn_labels`, or ``"psa:LOW:HIGH"``, see :func:`psa_labels`.

    Raises:
        ValueError: another name, numbers that are none or out of order.
    """
    kind, *given = name.split(":")
    try:
        first, second = map(float, given or (1, 1))
    except ValueError:
        first, second = 1, 0
    in_range = 0 < first <= second if kind == "psa" else 0 <= first <= second < 1
    if kind not in LABELS or (given and not in_range):
        raise ValueError(
            f"unknown labels {name!r}; give irn, irn:BACKGROUND:FOREGROUND with 0 <= BACKGROUND <= FOREGROUND < 1, "
            "psa, or psa:LOW:HIGH with 0 < LOW <= HIGH"
        )
    if not given:
        return LABELS[kind]
    names = {"irn": ("background_threshold", "foreground_threshold"), "psa": ("low_alpha", "high_alpha")}[kind]
    return partial(LABELS[kind], **dict(zip(names, (first, second), strict=True)))
