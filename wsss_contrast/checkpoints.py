"""Checkpoints: written whole, read with errors that name the file, and brought to the format of this release."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from wsss_contrast.files import whole_file

Migration = Callable[[dict[str, Any]], dict[str, Any]]
"""Brings a state from the format of one version to that of the next."""


class CheckpointError(ValueError):
    """A checkpoint that can't be read, or is of something else; the message names it."""


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoint files, whole or not there: ``Trainer(plugins=[WholeCheckpoints()])``.

    Lightning writes to the machine's folder for temporary files and moves from there. Where that is another file
    system, the move is a copy, and a process that is killed in it leaves half a file under the checkpoint's name. Here
    the temporary file lies beside the checkpoint. The command line uses this plugin.

    Raises:
        CheckpointError: on reading, a file that is cut off, or is no checkpoint of Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with whole_file(Path(path)) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        try:  # Lightning would trust what comes from an address
            checkpoint = super().load_checkpoint(path, map_location, weights_only is not False)
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: no such checkpoint") from error
        except Exception as error:  # torch raises what its unpickler stumbles on
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            raise CheckpointError(f"{path}: cannot be read as a checkpoint ({said})") from error
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
            raise CheckpointError(f"{path}: is no checkpoint of Lightning")
        return checkpoint


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU, tensors and plain values only.

    Raises:
        CheckpointError: it is not there, cut off, or no checkpoint of Lightning.
    """
    return WholeCheckpoints().load_checkpoint(path)


def up_to_date(state: dict[str, Any], migrations: Sequence[Migration], of: str) -> dict[str, Any]:
    """A state in the format of this release, whose version is one more than there are migrations.

    Args:
        state: with its ``version``; without one it is of version 1.
        migrations: the first brings version 1 to version 2, and so on.
        of: whose state it is, for the error.

    Raises:
        CheckpointError: the state is of a version that this release does not know.
    """
    version, newest = state.get("version", 1), len(migrations) + 1
    if version not in range(1, newest + 1):
        raise CheckpointError(
            f"the state of {of} has version {version}, this release reads versions up to {newest}: "
            "it was written by a newer one"
        )
    for migrate in migrations[version - 1 :]:
        state = migrate(dict(state))
    return state | {"version": newest}
