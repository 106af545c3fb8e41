"""Weights that a module begins with, from the checkpoint of another module of this library."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn


class Start:
    """A file of weights, which are loaded where it is there.

    A checkpoint of the module has what the file gave, so the file may be gone by then: a missing file is a warning, and
    an error where a training begins.

    Args:
        argument: of the module, for messages.
        path: the checkpoint; ``None`` for none.
        parts: what takes weights, by the names in the checkpoint.

    Raises:
        ValueError: the file is no checkpoint, or of another network.
    """

    def __init__(self, argument: str, path: str | None, parts: Mapping[str, nn.Module]) -> None:
        self.argument, self.path = argument, path
        self.missing = path is not None and not Path(path).is_file()
        self.about: dict[str, Any] = {}
        """What the checkpoint says of its classes."""
        if self.missing:
            rank_zero_warn(
                f"`{argument}`: there is no file {path}; the weights must come from a checkpoint of this module"
            )
        elif path is not None:
            self._load(Path(path), parts)

    def superseded(self) -> None:
        """A checkpoint of the module has been loaded."""
        self.missing, self.about = False, {}

    def check(self) -> None:
        """Raise ValueError where the weights are missing."""
        if self.missing:
            raise ValueError(f"`{self.argument}` must be a checkpoint; there is no file {self.path}")

    def _load(self, path: Path, parts: Mapping[str, nn.Module]) -> None:
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            state = checkpoint["state_dict"]
        except (RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"`{self.argument}`: {path} can't be read as a checkpoint: {error!r}") from error
        self.about = {"class_names": checkpoint.get("class_names")}
        for name, part in parts.items():
            start = f"{name}."
            weights = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
            try:
                part.load_state_dict(weights)
            except RuntimeError as error:
                raise ValueError(f"{path}: its {name} is another: {error}") from error
