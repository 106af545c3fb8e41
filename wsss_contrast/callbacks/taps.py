"""Reading a host's inner outputs: named taps, and the recorder that fills them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Tap = str | tuple[str, int] | Callable[[Mapping[str, Any]], Tensor]
"""A submodule's name, a name and an index into its output, or a function of the captured outputs by name."""

Layout = Literal["NCHW", "NHWC", "NLC"]


class TapError(ValueError):
    """A tap that the host can't serve: a wrong name, an output of the wrong kind, a module that did not run."""


def tapped_name(tap: Tap) -> str | None:
    """The submodule that a tap names; ``None`` for a function."""
    if isinstance(tap, str):
        return tap
    return tap[0] if isinstance(tap, tuple) else None


def named_submodule(host: nn.Module, name: str) -> nn.Module:
    """The submodule of that name.

    Raises:
        TapError: there is none, or a compiled module would not run the hook.
    """
    found: nn.Module = host
    path = ""
    for part in name.split("."):
        child = getattr(found, part, None) if part else None
        if not isinstance(child, nn.Module):
            raise TapError(f"there is no submodule `{name}`; there are: {_names(host)}")
        found, path = child, f"{path}.{part}".lstrip(".")
        if _compiled(found):
            raise TapError(
                f"submodule `{path}` is compiled and would not fire a tap; compile it after `fit` has attached"
            )
    return found


def _compiled(module: nn.Module) -> bool:
    """Whether the module was compiled and so ignores hooks that are added later."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def _names(host: nn.Module, most: int = 60) -> str:
    names = [name for name, _ in host.named_modules() if name]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class Recorder:
    """Forward hooks on a host's submodules that keep their outputs while it is open.

    A function tap may read any submodule. So all are hooked until :meth:`keep_read`, from then on only those it has
    read.

    Args:
        host: the module that owns the submodules.
        taps: what will be read.
    """

    def __init__(self, host: nn.Module, taps: Mapping[str, Tap]) -> None:
        self.host = host
        self.calls: dict[str, list[Any]] = {}
        self.read: set[str] = set()
        self._open = False
        self._handles: dict[str, Any] = {}
        self._trimmed = False
        named = {name for tap in taps.values() if (name := tapped_name(tap)) is not None}
        # All are looked up before the first is hooked: an unknown name leaves no hook behind.
        for name, module in [(name, named_submodule(host, name)) for name in sorted(named)]:
            self._hook(name, module)
        if any(tapped_name(tap) is None for tap in taps.values()):
            for name, module in host.named_modules():
                if name and name not in self._handles and not _compiled(module):
                    self._hook(name, module)

    def _hook(self, name: str, target: nn.Module) -> None:

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            # A deep copy of the host carries the hook along; only the original is recorded.
            if self._open and module is target:
                self.calls.setdefault(name, []).append(output)

        self._handles[name] = target.register_forward_hook(keep)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep the outputs of what runs inside; what was kept before is dropped."""
        self.calls.clear()
        self._open = True
        try:
            yield
        finally:
            self._open = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep nothing of what runs inside, and what was kept before."""
        before, self._open = self._open, False
        try:
            yield
        finally:
            self._open = before

    def view(self, index: int) -> Captured:
        """The outputs of the ``index``-th forward pass."""
        return Captured(self, index)

    def keep_read(self) -> None:
        """Unhook the submodules that no tap has read."""
        for name in self._handles.keys() - self.read:
            self._handles.pop(name).remove()
        self._trimmed = True

    def output(self, name: str, index: int) -> Any:
        """A submodule's output of the ``index``-th pass."""
        if name not in self._handles:
            if self._trimmed:
                raise TapError(
                    f"a tap read `{name}` at this step but not at the first; it must read the same names each time"
                )
            named_submodule(self.host, name)  # says what names there are
        self.read.add(name)
        outputs = self.calls.get(name, [])
        if index >= len(outputs):
            fired = sorted(self.calls)
            raise TapError(f"tap `{name}` never fired in the training step; taps that did: {fired or 'none'}")
        return outputs[index]

    def passes(self) -> int:
        """How many forward passes the taps that were read saw: 1 or 2."""
        counts = {name: len(self.calls.get(name, [])) for name in sorted(self.read)}
        if len(set(counts.values())) > 1 or set(counts.values()) - {1, 2}:
            raise TapError(
                f"each tapped module must run once or twice in a training step (one or two views), got {counts}"
            )
        return next(iter(counts.values()), 1)

    def close(self) -> None:
        """Remove all hooks and drop what was kept."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        self.calls.clear()


class Captured(Mapping[str, Any]):
    """The outputs of a host's submodules in one forward pass, by name."""

    def __init__(self, recorder: Recorder, index: int) -> None:
        self._recorder = recorder
        self._index = index

    def __getitem__(self, name: str) -> Any:
        return self._recorder.output(name, self._index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._recorder.calls)

    def __len__(self) -> int:
        return len(self._recorder.calls)

    def tensor(self, label: str, tap: Tap) -> Tensor:
        """The tensor that a tap stands for."""
        if isinstance(tap, str):
            value, shown = self[tap], f"`{tap}`"
            if not isinstance(value, Tensor):
                parts = len(value) if hasattr(value, "__len__") else "?"
                raise TapError(
                    f"`{label}`: the output of {shown} is a {type(value).__name__} of {parts}, no tensor; "
                    f"tap one of its parts: ({tap!r}, index)"
                )
        elif isinstance(tap, tuple):
            name, index = tap
            shown = f"`{name}`[{index!r}]"
            if isinstance(self[name], Tensor):
                raise TapError(
                    f"`{label}`: the output of `{name}` is a tensor and has no parts; tap it by its name: {name!r}"
                )
            try:
                value = self[name][index]
            except (IndexError, KeyError, TypeError) as error:
                raise TapError(f"`{label}`: the output of `{name}` has no part {index!r}: {error}") from error
        else:
            value, shown = tap(self), f"the function for `{label}`"
        if not isinstance(value, Tensor):
            raise TapError(f"`{label}`: {shown} gave a {type(value).__name__}, not a tensor")
        return value

    def prefix_tokens(self, tap: Tap) -> int | None:
        """How many tokens stand before the patches in the timm transformer that a tap names a part of, if it does."""
        name = tapped_name(tap)
        while name:
            count = getattr(self._recorder.host.get_submodule(name), "num_prefix_tokens", None)
            if isinstance(count, int):
                return count
            name = name.rpartition(".")[0]
        return None


def as_maps(
    label: str, value: Tensor, layout: Layout, image_size: tuple[int, int], prefix: int | None = None
) -> Tensor:
    """Bring an output to (N, C, h, w).

    Args:
        label: what it is, for errors.
        value: ``NCHW`` or ``NHWC``: 4-D. ``NLC``: (N, L, C) tokens, of which the last h w are the grid in row order,
            see :func:`token_grid`. 4-D outputs of an ``NLC`` host are NCHW.
        layout: order of the dimensions.
        image_size: height and width of the image, for the token grid.
        prefix: how many tokens stand before the grid, if that is known.
    """
    if layout == "NLC" and value.dim() == 3:
        height, width = token_grid(value.shape[1], image_size, prefix)
        return value[:, -height * width :].transpose(1, 2).reshape(value.shape[0], -1, height, width)
    if value.dim() != 4:
        hint = "; is it a token map (layout='NLC')?" if value.dim() == 3 else ""
        raise TapError(f"`{label}` must be a 4-D map ({layout}), got shape {tuple(value.shape)}{hint}")
    return value.permute(0, 3, 1, 2) if layout == "NHWC" else value


def token_grid(tokens: int, image_size: tuple[int, int], prefix: int | None = None) -> tuple[int, int]:
    """Height and width of the grid of square patches of an image among ``tokens`` tokens, of which a few lead.

    With ``prefix`` of them in front, the image may have been resized to whole patches before, each side to the nearest
    number. Where that is unknown, or no grid is left (a module before the prefix is put there), it is the grid with the
    image's own aspect ratio that leaves the fewest in front: of 9 tokens of a square image 3 x 3, though 2 x 2 patches
    and five more may be meant.
    """
    height, width = image_size
    guesses = [(count, 0.0) for count in range(17)]
    if prefix is not None:
        guesses.insert(0, (prefix, 0.49))
    for count, off in guesses:
        patches = tokens - count
        for rows in range(1, patches + 1):
            columns, left = divmod(patches, rows)
            # Some size of a patch fits both sides, which are so many patches or off by a part of one.
            if (
                not left
                and height * (columns - off) <= width * (rows + off)
                and width * (rows - off) <= height * (columns + off)
            ):
                return rows, columns
    raise TapError(
        f"{tokens} tokens are no grid of square patches of a {height} x {width} image (with at most 16 more in front)"
    )


@contextmanager
def frozen_batch_norm_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norm layers in training mode normalise as ever, but keep their running statistics."""
    layers = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    kept = [(m, m.momentum, None if m.num_batches_tracked is None else m.num_batches_tracked.clone()) for m in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum, count in kept:
            layer.momentum = momentum
            if count is not None and layer.num_batches_tracked is not None:
                with torch.no_grad():
                    layer.num_batches_tracked.copy_(count)
