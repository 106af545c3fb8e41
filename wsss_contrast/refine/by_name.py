"""Refiners by the names that the command line takes."""

from __future__ import annotations

import importlib

from .dense_crf import DenseCRF
from .pixel_adaptive import PixelAdaptiveRefinement
from .pseudo_labels import Refiner


def refiner(name: str) -> Refiner | None:
    """Make a refiner.

    Args:
        name: ``"none"``; ``"par"``, pixel-adaptive refinement; ``"crf"``, a dense CRF with the settings of PPC, or
            ``"crf:NAME"`` with those of a name in ``CRF_SETTINGS``, with the extra ``crf`` in a process for each CPU,
            which the ranks of a machine share; or ``"package.module.Name"``, a class or function of your own, which is
            called without arguments and gives a refiner.

    Raises:
        ValueError: an unknown name, one that can't be imported, or one that gives no refiner.
    """
    if name == "none":
        return None
    if name == "par":
        return PixelAdaptiveRefinement()
    kind, _, settings = name.partition(":")
    if kind == "crf":
        return DenseCRF(settings or "ppc", processes=None)
    module, _, attribute = name.rpartition(".")
    if not module or module.startswith("."):
        raise ValueError(f"unknown refiner {name!r}; give none, par, crf, crf:SETTINGS or package.module.Name")
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
