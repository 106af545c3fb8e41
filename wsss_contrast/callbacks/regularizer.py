"""The base of callbacks that add a loss to a host which does not know of it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn

from wsss_contrast.checkpoints import Migration, up_to_date
from wsss_contrast.data import ViewTransform
from wsss_contrast.training import refuse_sharding, step_generator, steps_done

from .host import Host
from .optimizers import join_optimizer
from .taps import (
    Layout,
    Recorder,
    Tap,
    TapError,
    as_maps,
    frozen_batch_norm_statistics,
    named_submodule,
    tapped_name,
)


class _Place(NamedTuple):
    """Where a regularizer taps its host."""

    taps: Mapping[str, Tap]
    background: int | None
    in_channels: int | None


class RegularizerCallback(L.Callback):
    """Adds a loss to any LightningModule that makes class activation maps, without a change to it.

    During ``fit`` the host's submodules are tapped, its ``training_step`` is wrapped on the instance, and the parts
    that the loss trains (a projector) are a submodule of the host, so that any strategy moves and synchronises them.
    After ``fit``, or an exception, the host is as it was; the callback keeps the parts for the next ``fit`` and in
    checkpoints. The host's ``state_dict`` never shows them. Nothing is added at validation or inference.

    A host that forwards twice is taken to forward two views of a photo. If its second pass is none (the tiles of
    Puzzle-CAM), it says so by an attribute ``regularizer_views = 1``.

    A subclass implements :meth:`build` and :meth:`regularize`.

    Args:
        taps: what is read at each forward pass, by label. A tap is a submodule's name, ``(name, index)`` where its
            output is a tuple or dict, or a function of the captured outputs, a mapping from submodule names. ``cams``
            may name an ``nn.Linear`` classifier after pooling: its weights make maps of ``features``. Empty: the
            host's own ``regularizer_taps``.
        labels: key of the (N, K) multi-hot tags in the batch (an index where the batch is a tuple).
        images: key of the images.
        background: whether and where the tapped ``cams`` carry a background channel: ``None``, 0 (first) or -1 (last).
        layout: order of the tapped maps' dimensions: ``"NCHW"``, ``"NHWC"``, or ``"NLC"`` for tokens.
        in_channels: width of ``features``; by default that of the CAM layer's input.
        lr_factor: learning rate of the parts over that of the tapped CAM layer, for a host whose optimizer lists its
            parameters and so does not know them.
        view_size: side in pixels of the second view that is made for a host which forwards one.
        view_flip: mirror that view, every other time. Refused where the host forwards two views.
        view_degrees: rotate it by up to that many degrees.
        view_translate: shift it by up to that many pixels of the first view.
        warmup_steps: the terms are multiplied by 0 before that many optimiser steps, with manual optimisation batches
            (they are logged as they are).
        backward: for a host with manual optimisation, the ``manual_backward`` of its step whose loss the terms join, 0
            for the first; by default the host's ``regularizer_backward``. Views are what the host has forwarded since
            its step began.
        name: names the parts, the logged terms and the checkpoint entry; unique among a trainer's regularizers.
        seed: of the random draws, which depend on the step and the rank, not on what was drawn before.

    Raises:
        TapError: a name that does not exist or a tap that can't be used; names what there is.
    """

    views = 2
    """How many views of a photo :meth:`regularize` needs, 1 or 2."""

    migrations: Sequence[Migration] = ()
    """What brings a state of an older format up to date. The first takes version 1 to version 2."""

    def __init__(
        self,
        taps: Mapping[str, Tap | None],
        labels: str | int = "tags",
        images: str | int = "image",
        background: int | None = None,
        layout: Layout = "NCHW",
        in_channels: int | None = None,
        lr_factor: float = 1.0,
        view_size: int = 128,
        view_flip: bool = False,
        view_degrees: float = 0.0,
        view_translate: float = 0.0,
        warmup_steps: int = 0,
        backward: int | None = None,
        name: str = "regularizer",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if layout not in ("NCHW", "NHWC", "NLC"):
            raise ValueError(f"`layout` must be 'NCHW', 'NHWC' or 'NLC', got {layout!r}")
        if background not in (None, 0, -1):
            raise ValueError(f"`background` must be None, 0 or -1, got {background}")
        if lr_factor <= 0:
            raise ValueError(f"`lr_factor` must be positive, got {lr_factor}")
        if warmup_steps < 0:
            raise ValueError(f"`warmup_steps` must not be negative, got {warmup_steps}")
        if backward is not None and backward < 0:
            raise ValueError(f"`backward` must not be negative, got {backward}")
        if not name.isidentifier():
            raise ValueError(f"`name` must be a Python identifier, got {name!r}")
        given = {label: tap for label, tap in taps.items() if tap is not None}
        if given and len(given) < len(taps):
            raise ValueError(f"give all of the taps {sorted(taps)} or none, got {sorted(given)}")
        self.taps: dict[str, Tap] = given
        self._labels = tuple(taps)
        self.labels = labels
        self.images = images
        self.background = background
        self.layout = layout
        self.in_channels = in_channels
        self.lr_factor = lr_factor
        self.view = ViewTransform(view_size, view_flip, view_degrees, view_translate)
        self.warmup_steps = warmup_steps
        self.backward = backward
        self.generator: torch.Generator
        self.name = name
        self.seed = seed
        self.parts: nn.Module | None = None
        self.recorder: Recorder
        self._at: _Place
        self._width = 0
        self._linear: nn.Linear | None = None
        self._loaded: dict[str, Any] | None = None
        self._handles: list[Any] = []

    # What a subclass gives.

    def build(self, in_channels: int) -> nn.Module:
        """The trained parts, for features of that width. Made once and kept over several ``fit``."""
        raise NotImplementedError

    def regularize(
        self, views: Sequence[Mapping[str, Tensor]], tags: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Named scalar terms to add to the host's loss.

        Args:
            views: what the taps gave, by label, as (N, C, h, w), for each view. Where the second is more than a
                resize, it has ``matrix`` (N, 2, 3) as well, for :func:`~wsss_contrast.functional.warp`.
            tags: (N, K) multi-hot. N is 0 on a rank that skips the step.
            generator: for random draws.
        """
        raise NotImplementedError

    def second_view(self, module: L.LightningModule, batch: Any) -> Tensor | None:
        """Run the host on another view of the batch's images; override to change the view.

        By default the image is resized to ``view_size`` pixels (PPC, Sec. 3.2), and moved if that is asked for. Random
        draws are taken from ``self.generator``. A host that forwards two views and moves the second leaves the matrix
        in its attribute ``view_matrix``.

        Returns:
            The matrix (N, 2, 3) of the view, ``None`` where it is a resize only.
        """
        images, matrix = self.view(batch[self.images], self.generator)
        module(images)
        return matrix

    # Lightning's hooks.

    @property
    def state_key(self) -> str:
        return f"{type(self).__qualname__}[{self.name}]"

    def state_dict(self) -> dict[str, Any]:
        parts = self._loaded if self.parts is None else self.parts.state_dict()
        return {} if parts is None else {"version": len(self.migrations) + 1, "parts": parts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = up_to_date(state_dict, self.migrations, self.state_key).get("parts")
        self._load()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            self.check_backward(pl_module)
        refuse_sharding(trainer, self.state_key, "its parts would not be sharded with the host")
        if getattr(pl_module, "_compiler_ctx", None) is not None:
            raise TapError(
                f"{self.state_key}: the host is compiled and would not fire taps; compile submodules instead"
            )
        Host.join(pl_module, self)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The first to be called brings in all, by name: checkpoints rely on the groups' order.
        for member in Host.of(pl_module).sorted_members():
            member._join_optimizer(trainer, pl_module)

    def _join_optimizer(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self.parts is not None
        join_optimizer(
            self.parts.parameters(),
            self._anchors(pl_module),
            trainer.optimizers,
            [config.scheduler for config in trainer.lr_scheduler_configs],
            self.lr_factor,
            remedy=(
                "Add to the parameter groups in `configure_optimizers`: "
                f'{{"params": self.{self._attribute}.parameters(), "lr": ...}}'
            ),
        )

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        known = self.state_key in checkpoint.get("callbacks", {})
        if trainer.state.fn == "fit" and not known and checkpoint.get("optimizer_states"):
            raise ValueError(
                f"the checkpoint was written without {self.state_key}, so its optimizer state does not fit this run. "
                'Load its weights (`module.load_state_dict(torch.load(path)["state_dict"])`), '
                "then fit without `ckpt_path`."
            )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        Host.leave(pl_module, self)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        Host.leave(pl_module, self)

    def joins(self, module: L.LightningModule) -> int | None:
        """Which ``manual_backward`` of a host's step the terms join."""
        declared: int | None = getattr(module, "regularizer_backward", None)
        return declared if self.backward is None else self.backward

    def check_backward(self, module: L.LightningModule) -> None:
        """Raise where a host with manual optimisation does not say what the terms join."""
        if self.joins(module) is None:
            raise ValueError(
                f"{self.state_key}: {type(module).__name__} has manual optimization; say which of its "
                "`manual_backward` the terms join, `backward=0` for the first"
            )

    # Attaching and leaving.

    @property
    def _attribute(self) -> str:
        return f"regularizer_{self.name}"

    def attach(self, module: L.LightningModule) -> None:
        """Tap the built host and give it the parts. Called by ``Host``."""
        self._at = self._place(module)
        self._linear = self._linear_classifier(module)
        hooked = {label: tap for label, tap in self._at.taps.items() if not (label == "cams" and self._linear)}
        self.recorder = Recorder(module, hooked)
        if self.parts is None:
            self._width = self._at.in_channels or self._cam_layer_width(module)
            self.parts = self._built()
            self._load()
        if hasattr(module, self._attribute):
            raise ValueError(f"the host already has an attribute `{self._attribute}`; give the callback another `name`")
        module.add_module(self._attribute, self.parts)
        self.parts.train()
        prefix = f"{self._attribute}."

        def hide(_: nn.Module, state: dict[str, Any], start: str, metadata: Any) -> None:
            for key in [key for key in state if key.startswith(start + prefix)]:
                del state[key]

        def not_missing(_: nn.Module, keys: Any) -> None:
            keys.missing_keys[:] = [key for key in keys.missing_keys if prefix not in key]

        self._handles = [
            module.register_state_dict_post_hook(hide),
            module.register_load_state_dict_post_hook(not_missing),
        ]

    def _built(self) -> nn.Module:
        """New parts. Their draws follow the global seed and the name; the host's random numbers stay as they were."""
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            seed = int(torch.randint(2**31, ())) + zlib.crc32(self.name.encode())
            torch.default_generator.manual_seed(seed)  # not `torch.manual_seed`, which seeds the GPUs as well
            return self.build(self._width)

    def detach(self, module: L.LightningModule) -> None:
        """Take everything off the host again. Called by ``Host``."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if hasattr(self, "recorder"):
            self.recorder.close()
            del self.recorder  # it holds the host
        if self.parts is not None and module._modules.get(self._attribute) is self.parts:
            delattr(module, self._attribute)

    def _load(self) -> None:
        if self.parts is not None and self._loaded is not None:
            self.parts.load_state_dict(self._loaded)
            self._loaded = None

    def _place(self, module: L.LightningModule) -> _Place:
        if self.taps:
            return _Place(self.taps, self.background, self.in_channels)
        declared = getattr(module, "regularizer_taps", None)
        if declared is None:
            raise TapError(f"{self.state_key}: say what to tap; {type(module).__name__} declares no `regularizer_taps`")
        taps = {label: declared[label] for label in self._labels}
        return _Place(taps, declared["background"], self.in_channels or declared["in_channels"])

    def _linear_classifier(self, module: nn.Module) -> nn.Linear | None:
        name = tapped_name(self._at.taps["cams"]) if "cams" in self._at.taps else None
        layer = named_submodule(module, name) if name is not None else None
        return layer if isinstance(layer, nn.Linear) else None

    def _cam_layer_width(self, module: nn.Module) -> int:
        name = tapped_name(self._at.taps["cams"]) if "cams" in self._at.taps else None
        layer = named_submodule(module, name) if name is not None else None
        width = getattr(layer, "in_channels", 0) or getattr(layer, "in_features", 0)
        if not isinstance(layer, nn.Conv2d | nn.Linear) or not width:
            raise TapError(
                f"{self.state_key}: `cams` taps {f'`{name}`' if name else 'a function'}, "
                "no convolution or linear layer; pass `in_channels`, the width of `features`"
            )
        return int(width)

    def _anchors(self, module: L.LightningModule) -> list[nn.Parameter]:
        """Parameters of the host whose optimizer the parts join: those of the CAM layer, of the features, then any."""
        found: list[nn.Parameter] = []
        for label in ("cams", "features"):
            name = tapped_name(self._at.taps[label]) if label in self._at.taps else None
            if name is not None:
                found += named_submodule(module, name).parameters()
        others = [member.parts for member in Host.of(module).sorted_members() if member.parts is not None]
        theirs = {id(p) for parts in others for p in parts.parameters()}  # they have rates of their own
        return found + [p for p in module.parameters() if id(p) not in theirs][::-1]

    # The step.

    def before_step(self, module: L.LightningModule, batch: Any) -> None:
        """Called by ``Host`` before the host's own step."""

    def step(self, module: L.LightningModule, batch: Any, skipped: bool) -> Tensor:
        """The sum of the terms after the host's own step. Called by ``Host``."""
        assert self.parts is not None
        tags, image_size = self._tags(batch), self._image_size(batch)
        self.generator = step_generator(module.trainer, self.seed, tags.device)
        if skipped:
            views, tags = [self._empty(tags)] * self.views, tags[:0]
        else:
            views = self._views(module, batch, image_size)
        terms = self.regularize(views, tags, self.generator)
        module.log_dict(
            {f"train/{self.name}/{term}": value.detach() for term, value in terms.items()}, batch_size=max(len(tags), 1)
        )
        if not terms:
            return tags.new_zeros((), dtype=torch.float32)
        # Multiplied and not left out: every rank meets the others in the loss, and the parts are used in each step.
        return torch.stack(list(terms.values())).sum() * float(steps_done(module.trainer) >= self.warmup_steps)

    def _views(self, module: L.LightningModule, batch: Any, image_size: tuple[int, int]) -> list[dict[str, Tensor]]:
        views = [self._view(0, image_size)]
        passes = min(self.recorder.passes(), getattr(module, "regularizer_views", 2))
        self.recorder.keep_read()
        matrix = None
        if self.views == 2 and passes == 2:
            if self.view.moves:
                raise ValueError(
                    f"{self.state_key}: {type(module).__name__} forwards two views itself; move the second there, not "
                    "by the callback's `view_flip`, `view_degrees` and `view_translate`"
                )
            views.append(self._view(1, image_size))
            matrix = getattr(module, "view_matrix", None)
        elif self.views == 2:
            # Batch norm has seen this batch already.
            with frozen_batch_norm_statistics(module), self.recorder.recording():
                matrix = self.second_view(module, batch)
            views.append(self._view(0, image_size))
        self.recorder.calls.clear()
        if matrix is not None:
            views[1]["matrix"] = matrix
        return views

    def _view(self, index: int, image_size: tuple[int, int]) -> dict[str, Tensor]:
        captured = self.recorder.view(index)
        view = {}
        for label, tap in self._at.taps.items():
            if label == "cams" and self._linear is not None:
                continue
            value = captured.tensor(label, tap)
            view[label] = as_maps(label, value, self.layout, image_size, captured.prefix_tokens(tap))
        if self._linear is not None:
            view["cams"] = self._linear_cams(view["features"])
        return view

    def _linear_cams(self, features: Tensor) -> Tensor:
        """The maps that pooling and a linear layer weigh: its weights over the feature maps."""
        assert self._linear is not None
        if features.shape[1] != self._linear.in_features:
            raise TapError(
                f"the linear classifier takes {self._linear.in_features} features, but `features` has shape "
                f"{tuple(features.shape)}; tap the map that is pooled before it"
            )
        return torch.einsum("nchw,kc->nkhw", features.detach(), self._linear.weight.detach().to(features.dtype))

    def _empty(self, tags: Tensor) -> dict[str, Tensor]:
        """Maps of no images, for a rank that skips the step but must meet the others in the collectives."""
        widths = dict.fromkeys(self._at.taps, self._width)
        widths["cams"] = tags.shape[1] + (self._at.background is not None)
        assert self.parts is not None
        # The other ranks' type: a collective of another size would crash or hang.
        dtype = next((p.dtype for p in self.parts.parameters()), torch.float32)
        return {label: tags.new_zeros((0, width, 1, 1), dtype=dtype) for label, width in widths.items()}

    def _tags(self, batch: Any) -> Tensor:
        value = entry(batch, self.labels, "labels")
        if not isinstance(value, Tensor) or value.dim() != 2:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"the batch's `{self.labels}` must be multi-hot tags (N, K), got {shape}")
        return value

    def _image_size(self, batch: Any) -> tuple[int, int]:
        shape = entry(batch, self.images, "images").shape
        return int(shape[-2]), int(shape[-1])


def entry(batch: Any, key: str | int, argument: str) -> Any:
    """A part of a batch; ``argument`` says in an error who asked for it."""
    try:
        if isinstance(batch, Tensor):
            raise TypeError("a tensor has no parts")
        return batch[key]
    except (KeyError, IndexError, TypeError) as error:
        there = sorted(map(str, batch)) if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        if isinstance(batch, list | tuple):
            there = f"a {type(batch).__name__} of {len(batch)}"
        raise ValueError(f"the batch has no {key!r} (`{argument}`); it has: {there}") from error
