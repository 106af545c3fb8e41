"""Tiny hosts, data and trainers: two convolutions on 16-pixel images, three classes, milliseconds a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from wsss_contrast.callbacks import PrototypeContrastCallback, RegularizerCallback
from wsss_contrast.losses import PrototypeContrast

K = 3
WIDTH = 6
DIM = 8
SIZE = (16, 16)


class Photos(Dataset[Any]):
    """Seeded noise with multi-hot tags; at least one class an image. Dicts, or tuples if asked."""

    def __init__(self, length: int = 8, size: tuple[int, int] = SIZE, seed: int = 0, as_tuple: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(length, 3, *size, generator=generator)
        self.tags = torch.randint(0, 2, (length, K), generator=generator)
        self.tags[torch.arange(length), torch.arange(length) % K] = 1
        self.as_tuple = as_tuple

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        if self.as_tuple:
            return self.images[index], self.tags[index]
        return {"image": self.images[index], "tags": self.tags[index]}


def repeated(times: int) -> Photos:
    """The same two photos again and again."""
    data = Photos(2)
    data.images, data.tags = data.images.repeat(times, 1, 1, 1), data.tags.repeat(times, 1)
    return data


def loader(data: Dataset[Any] | None = None, batch_size: int = 2) -> DataLoader[Any]:
    return DataLoader(Photos() if data is None else data, batch_size=batch_size)


class OneView(L.LightningModule):
    """A classifier with a CAM layer that forwards each photo once. ``seen`` keeps its inputs."""

    def __init__(self, norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.build(norm, dropout)

    def build(self, norm: bool = False, dropout: float = 0.0) -> None:
        with seeded(7):
            self.stem = nn.Conv2d(3, WIDTH, 3, stride=2, padding=1)
            self.norm = nn.BatchNorm2d(WIDTH) if norm else nn.Identity()
            self.body = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU(), nn.Dropout(dropout))
            self.classifier = nn.Conv2d(WIDTH, K, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach())
        cams: Tensor = self.classifier(self.body(self.norm(self.stem(images))))
        return cams

    def host_loss(self, batch: Any) -> Tensor:
        return tag_loss(self(batch["image"]), batch["tags"])

    def training_step(self, batch: Any) -> Any:
        return self.host_loss(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


class TwoView(OneView):
    """Forwards the photo and a smaller copy of it."""

    def host_loss(self, batch: Any) -> Tensor:
        first, second = self(batch["image"]), self(small(batch["image"]))
        return tag_loss(first, batch["tags"]) + tag_loss(second, batch["tags"])


class Evaluated(TwoView):
    """Validates and predicts, too."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", tag_loss(self(batch["image"]), batch["tags"]))

    def predict_step(self, batch: Any) -> Tensor:
        cams: Tensor = self(batch["image"])
        return cams


class Groups(TwoView):
    """Lists its parameter groups, as SEAM does: a projector is not among them."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.groups(), lr=0.02, momentum=0.9)

    def groups(self) -> list[dict[str, Any]]:
        return [
            {"params": [*self.stem.parameters(), *self.body.parameters()], "lr": 0.02},
            {"params": list(self.classifier.parameters()), "lr": 0.2, "weight_decay": 1e-3},
        ]


class FeatureNorm(RegularizerCallback):
    """A second regularizer: the mean square of a learned projection of the features. Needs one view."""

    views = 1

    def __init__(self, name: str = "feature_norm", **kwargs: Any) -> None:
        super().__init__({"features": "body", "cams": "classifier"}, name=name, **kwargs)

    def build(self, in_channels: int) -> nn.Module:
        return nn.Conv2d(in_channels, 2, 1)

    def regularize(
        self, views: Sequence[Mapping[str, Tensor]], tags: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        assert self.parts is not None
        assert len(views) == 1
        projected = self.parts(views[0]["features"])
        noise = torch.rand((), generator=generator)
        return {"norm": projected.square().sum() / max(projected.numel(), 1) * noise}


class Spy(L.Callback):
    """Keeps each step's loss, and what ``look(trainer, host)`` gives after it."""

    def __init__(self, look: Any = None) -> None:
        self.losses: list[Tensor] = []
        self.looks: list[Any] = []
        self.look = look

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if outputs:
            self.losses.append(outputs["loss"].detach().clone())
        if self.look:
            self.looks.append(self.look(trainer, pl_module))


class AtStart(L.Callback):
    """Calls ``look(trainer, host)`` before the first step and keeps what it gives."""

    def __init__(self, look: Any) -> None:
        self.look = look
        self.value: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.value = self.look(trainer, pl_module)


def ppc(**kwargs: Any) -> PrototypeContrastCallback:
    """Contrast on the tiny hosts' own submodules. A low background score, so that all classes have pixels."""
    given = {
        "features": "body",
        "cams": "classifier",
        "embedding_dim": DIM,
        "view_size": 8,
        "loss": contrast(),
    }
    return PrototypeContrastCallback(**{**given, **kwargs})


def contrast(**kwargs: Any) -> PrototypeContrast:
    """Weights of 1, so that the terms are a good part of the loss."""
    weights = {"cross_prototype_weight": 1.0, "cross_cam_weight": 1.0, "intra_view_weight": 1.0}
    return PrototypeContrast(**{**weights, "top_k": 4, **kwargs})


def trainer(callbacks: Sequence[L.Callback] = (), steps: int = 2, epochs: int = 1, **kwargs: Any) -> L.Trainer:
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": epochs,
        "limit_train_batches": steps,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(callbacks=list(callbacks), **{**options, **kwargs})


def fit(host: L.LightningModule, *callbacks: L.Callback, data: Any = None, ckpt_path: Any = None, **kwargs: Any) -> Spy:
    """Train with these callbacks from seed 0; the spy comes back."""
    spy = Spy()
    torch.manual_seed(0)
    trainer([*callbacks, spy], **kwargs).fit(host, loader(data), ckpt_path=ckpt_path)
    return spy


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws inside repeat; the global generator goes on as if there had been none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def tag_loss(cams: Tensor, tags: Tensor) -> Tensor:
    return F.multilabel_soft_margin_loss(cams.mean(dim=(2, 3)), tags.to(cams.dtype))


def small(images: Tensor) -> Tensor:
    return F.interpolate(images, size=(8, 8), mode="bilinear", align_corners=True)


def weights(*modules: nn.Module) -> list[Tensor]:
    """Copies of all parameters and buffers."""
    return [t.detach().clone() for m in modules for t in [*m.parameters(), *m.buffers()]]


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Bit for bit."""
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def hooks(module: nn.Module) -> dict[str, int]:
    """How many hooks of each kind each submodule has."""
    return {
        f"{name}:{kind}": len(found)
        for name, child in module.named_modules()
        for kind, found in child.__dict__.items()
        if "hook" in kind and hasattr(found, "__len__")
    }


def surface(host: L.LightningModule) -> dict[str, Any]:
    """All that a regularizer must leave as it was."""
    return {
        "hooks": hooks(host),
        "modules": [name for name, _ in host.named_modules()],
        "state": list(host.state_dict()),
        "attributes": sorted(set(host.__dict__) - {"_trainer", "_hparams"}),
        "methods": [host.__dict__.get(name) for name in ("training_step", "configure_model")],
    }
