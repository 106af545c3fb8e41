"""Weights that a module begins with, from the checkpoint of another module of this library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from wsss_contrast.checkpoints import CheckpointError, read_checkpoint


class Start:
    """Weights of parts of a module, loaded where the file is there.

    A checkpoint of the module has what the file gave, so by then the file may be gone, or be another. So one that can't
    be loaded is a warning, and an error where a training begins (:meth:`check`).

    Args:
        argument: of the module, for messages.
        path: the checkpoint; ``None`` for none.
        module: the module. Weights that are loaded into all of it take the file's place.
        parts: what takes weights, by the names in the checkpoint.
    """

    def __init__(self, argument: str, path: str | None, module: nn.Module, parts: Mapping[str, nn.Module]) -> None:
        self.argument, self.path = argument, path
        self.problem: str | None = None
        self.about: dict[str, Any] = {}
        """What the checkpoint says of its classes."""
        module.register_load_state_dict_post_hook(self._superseded)
        if path is None:
            return
        try:
            self._load(Path(path), parts)
        except CheckpointError as error:
            self.problem = str(error)
            rank_zero_warn(f"{error}. The weights must come from a checkpoint of this module")

    def check(self) -> None:
        """Raise CheckpointError where the weights are missing."""
        if self.problem is not None:
            raise CheckpointError(self.problem)

    def _superseded(self, module: nn.Module, keys: Any) -> None:
        if not keys.missing_keys:
            self.problem, self.about = None, {}

    def _load(self, path: Path, parts: Mapping[str, nn.Module]) -> None:
        try:
            checkpoint = read_checkpoint(path)
        except CheckpointError as error:
            raise CheckpointError(f"`{self.argument}`: {error}") from error
        state = checkpoint["state_dict"]
        self.about = {"class_names": checkpoint.get("class_names")}
        for name, part in parts.items():
            start = f"{name}."
            weights = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
            try:
                part.load_state_dict(weights)
            except RuntimeError as error:
                raise CheckpointError(f"`{self.argument}`: the {name} of {path} is another: {error}") from error
