"""One clear error for each mistake, which names what there is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from wsss_contrast.callbacks import PrototypeContrastCallback, TapError
from wsss_contrast.losses import PrototypeContrast

from .hosts import WIDTH, FeatureNorm, K, OneView, Photos, TwoView, fit, ppc, tag_loss


class Branched(TwoView):
    """With outputs of several kinds, and a branch that never runs."""

    def build(self, *args: Any) -> None:
        super().build(*args)
        self.pair, self.flat, self.unused = Pair(), Flat(), nn.Conv2d(WIDTH, K, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(self.stem(images))
        self.pair(features)
        self.flat(features)
        cams: Tensor = self.classifier(features)
        return cams


class Pair(nn.Module):
    def forward(self, features: Tensor) -> tuple[Tensor, None]:
        return features, None


class Flat(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.flatten(2).transpose(1, 2)


TAPS: list[tuple[dict[str, Any], str]] = [
    (
        {"features": "backbone.layer4"},
        r"no submodule `backbone.layer4`; there are: stem, norm, body, body.0, .*classifier",
    ),
    ({"features": "body.9"}, r"no submodule `body.9`; there are: stem"),
    ({"features": ""}, "no submodule ``; there are: stem"),
    ({"features": "training_step"}, "no submodule `training_step`"),
    ({"cams": lambda out: out["nowhere"], "in_channels": 6}, "no submodule `nowhere`; there are: stem"),
    ({"cams": "unused"}, r"tap `unused` never fired in the training step; taps that did: \['body'\]"),
    (
        {"features": "pair"},
        r"`features`: the output of `pair` is a tuple of 2, no tensor; .*\('pair', index\)",
    ),
    ({"features": ("pair", 1)}, r"`features`: `pair`\[1\] gave a NoneType, not a tensor"),
    ({"features": ("pair", 7)}, r"`features`: the output of `pair` has no part 7"),
    ({"features": ("pair", "deep")}, r"`features`: the output of `pair` has no part 'deep'"),
    ({"features": ("body", 0)}, r"`features`: the output of `body` is a tensor and has no parts; .*'body'"),
    ({"cams": lambda out: None, "in_channels": 6}, "the function for `cams` gave a NoneType, not a tensor"),
    ({"features": "flat"}, r"`features` must be a 4-D map \(NCHW\), got shape \(2, 64, 6\); .*layout='NLC'"),
    (
        {"cams": lambda out: out["classifier"].sum(), "in_channels": 6},
        r"`cams` must be a 4-D map \(NCHW\), got shape \(\)$",
    ),
]


@pytest.mark.parametrize(("taps", "message"), TAPS)
def test_taps_that_the_host_cannot_serve(taps: dict[str, Any], message: str) -> None:
    with pytest.raises(TapError, match=message):
        fit(Branched(), ppc(**taps))


def test_tokens_that_are_no_grid() -> None:
    with pytest.raises(TapError, match="tokens are no grid of square patches of a 10 x 22 image"):
        fit(Branched(), ppc(features="flat", layout="NLC"), data=Photos(size=(10, 22)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cams": "body"}, "pass `in_channels`"),
        ({"cams": "body", "in_channels": WIDTH}, "`cams` has 6 channels for 3 tags with background=None"),
        ({"background": 0}, "`cams` has 3 channels for 3 tags with background=0"),
        ({"background": -1}, "`cams` has 3 channels for 3 tags with background=-1"),
        ({"in_channels": 5}, "`features` has 6 channels, the projector was made for 5; pass `in_channels`"),
        ({"layout": "NHWC"}, "`features` has 8 channels, the projector was made for 6"),
    ],
)
def test_channels_that_do_not_match(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(TwoView(), ppc(**given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": "label"}, r"the batch has no 'label' \(`labels`\); it has: \['image', 'tags'\]"),
        ({"images": "img"}, r"the batch has no 'img' \(`images`\); it has: \['image', 'tags'\]"),
        ({"labels": "image"}, r"batch's `image` must be multi-hot tags \(N, K\), got \(2, 3, 16, 16\)"),
        ({"labels": 1}, r"the batch has no 1 \(`labels`\); it has: \['image', 'tags'\]"),
    ],
)
def test_batches_without_what_is_needed(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(TwoView(), ppc(**given))


class Tuples(OneView):
    def host_loss(self, batch: Any) -> Tensor:
        return tag_loss(self(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": 2, "images": 0}, r"the batch has no 2 \(`labels`\); it has: a list of 2"),
        ({}, r"the batch has no 'tags' \(`labels`\); it has: a list of 2"),
    ],
)
def test_tuple_batches_with_keys_they_lack(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Tuples(), ppc(**given), data=Photos(as_tuple=True))


class Images(Photos):
    def __getitem__(self, index: int) -> Any:
        return self.images[index]


def test_a_batch_that_holds_nothing_by_key() -> None:
    class Bare(OneView):
        def host_loss(self, batch: Any) -> Tensor:
            return self(batch).mean()

    with pytest.raises(ValueError, match=r"the batch has no 'tags' \(`labels`\); it has: a Tensor"):
        fit(Bare(), ppc(), data=Images())


def test_tags_that_are_no_tensor() -> None:
    class Worded(Photos):
        def __getitem__(self, index: int) -> Any:
            return {"image": self.images[index], "tags": "cat"}

    class Host(OneView):
        def host_loss(self, batch: Any) -> Tensor:
            return self(batch["image"]).mean()

    with pytest.raises(ValueError, match=r"batch's `tags` must be multi-hot tags \(N, K\), got list"):
        fit(Host(), ppc(), data=Worded())


@pytest.mark.parametrize("name", ["stem", "body", "body.0"])
def test_a_compiled_submodule(name: str) -> None:
    """In place, or as a wrapper; the tapped module or one around it."""
    for wrap in (False, True):
        host = TwoView()
        if wrap:
            host.body = torch.compile(host.body)
            host.stem = torch.compile(host.stem)
        else:
            host.body.compile()
            host.stem.compile()
        with pytest.raises(TapError, match=rf"submodule `{name.split('.')[0]}` is compiled and would not fire a tap"):
            fit(host, ppc(features=name))


def test_a_compiled_host() -> None:
    host = TwoView()
    with pytest.raises(TapError, match=r"PrototypeContrastCallback\[prototype_contrast\]: the host is compiled"):
        fit(torch.compile(host), ppc())


def test_manual_optimization() -> None:
    host = TwoView()
    host.automatic_optimization = False
    with pytest.raises(ValueError, match=r"PrototypeContrastCallback\[mine\]: .*manual optimization"):
        fit(host, ppc(name="mine"))


@pytest.mark.parametrize("name", ["FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"])
@pytest.mark.parametrize("derived", [False, True])
def test_strategies_that_shard(name: str, derived: bool) -> None:
    """A strategy of the name, or a class of the user's own that derives from it."""
    strategy: Any = type(name, (SingleDeviceStrategy,), {})
    if derived:
        strategy = type("Mine", (strategy,), {})
    with pytest.raises(
        ValueError, match=rf"PrototypeContrastCallback\[prototype_contrast\]: {'Mine' if derived else name}"
    ):
        fit(TwoView(), ppc(), strategy=strategy(device=torch.device("cpu")), devices="auto")


@pytest.mark.parametrize(
    ("callback", "said"),
    [
        ("none", "trained"),
        ("contrast", "PrototypeContrastCallback[prototype_contrast]: ModelParallelStrategy is not supported"),
        ("teacher", "EMATeacherCallback[teacher]: ModelParallelStrategy is not supported"),
    ],
)
def test_a_host_that_is_sharded(callback: str, said: str) -> None:
    """Two processes of Lightning's own strategy: neither attaches, neither waits for the other."""
    command = [sys.executable, "-m", "tests.callbacks.sharded_case", callback]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout.count(said) == 2, done.stdout + done.stderr[-6000:]


class Iterates(TwoView):
    def training_step(self, dataloader_iter: Any) -> Any:
        batch, _, _ = next(dataloader_iter)
        return self.host_loss(batch)


class NoBatch(TwoView):
    def training_step(self) -> Any:
        return torch.zeros(())


@pytest.mark.parametrize("host", [Iterates, NoBatch])
def test_steps_without_a_batch(host: type[TwoView]) -> None:
    with pytest.raises(ValueError, match="a `training_step` whose first argument is the batch"):
        fit(host(), ppc())


class Three(OneView):
    def host_loss(self, batch: Any) -> Tensor:
        return sum(tag_loss(self(batch["image"]), batch["tags"]) for _ in range(3))


class Uneven(OneView):
    """Runs its CAM layer twice on features that it makes once."""

    def host_loss(self, batch: Any) -> Tensor:
        features = self.body(self.stem(batch["image"]))
        return tag_loss(self.classifier(features), batch["tags"]) + self.classifier(features).mean()


@pytest.mark.parametrize(
    ("host", "counts"), [(Three, "'body': 3, 'classifier': 3"), (Uneven, "'body': 1, 'classifier': 2")]
)
def test_modules_that_run_too_often(host: type[OneView], counts: str) -> None:
    with pytest.raises(TapError, match=rf"must run once or twice in a training step .*\{{{counts}\}}"):
        fit(host(), ppc())


def test_a_host_without_taps_of_its_own() -> None:
    with pytest.raises(
        TapError,
        match=r"PrototypeContrastCallback\[prototype_contrast\]: say what to tap; TwoView declares no",
    ):
        fit(TwoView(), PrototypeContrastCallback())


def test_a_regularizer_of_features_alone_needs_their_width() -> None:
    class Alone(FeatureNorm):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            del self.taps["cams"]

    with pytest.raises(TapError, match="pass `in_channels`, the width of `features`"):
        fit(TwoView(), Alone())
    assert len(fit(TwoView(), Alone(in_channels=WIDTH)).losses) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"loss": PrototypeContrast(background=0)},
            r"`loss.background` must be None, got 0: .*callback's `background`",
        ),
        ({"background": 1}, "`background` must be None, 0 or -1, got 1"),
        ({"layout": "CHW"}, "`layout` must be 'NCHW', 'NHWC' or 'NLC', got 'CHW'"),
        ({"lr_factor": 0.0}, r"`lr_factor` must be positive, got 0.0"),
        ({"warmup_steps": -1}, "`warmup_steps` must not be negative, got -1"),
        ({"name": "not a name"}, "`name` must be a Python identifier, got 'not a name'"),
        ({"cams": None}, r"give all of the taps \['cams', 'features'\] or none, got \['features'\]"),
    ],
)
def test_arguments(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ppc(**given)


def test_long_lists_of_names_are_cut() -> None:
    class Deep(TwoView):
        def build(self, *args: Any) -> None:
            super().build(*args)
            self.more = nn.Sequential(*[nn.Identity() for _ in range(100)])

    with pytest.raises(TapError, match="and 48 more") as error:
        fit(Deep(), ppc(features="nowhere"))
    assert len(str(error.value)) < 1000
