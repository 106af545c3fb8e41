"""What a tap can be, and what it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import pytest
import timm
import torch
from torch import Tensor, nn

from wsss_contrast.callbacks import PrototypeContrastCallback, RegularizerCallback, TapError
from wsss_contrast.callbacks.taps import Recorder, as_maps, token_grid
from wsss_contrast.modules import CAM, SEAM

from .hosts import (
    DIM,
    WIDTH,
    AtStart,
    K,
    OneView,
    Photos,
    Spy,
    TwoView,
    fit,
    hooks,
    ppc,
    same,
    seeded,
    small,
    tag_loss,
)


class Reader(RegularizerCallback):
    """Keeps what the taps gave at each step."""

    def __init__(self, features: Any, cams: Any, **kwargs: Any) -> None:
        super().__init__({"features": features, "cams": cams}, in_channels=WIDTH, **kwargs)
        self.steps: list[Sequence[Mapping[str, Tensor]]] = []

    def build(self, in_channels: int) -> nn.Module:
        return nn.Linear(1, 1)

    def regularize(
        self, views: Sequence[Mapping[str, Tensor]], tags: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        assert self.parts is not None
        self.steps.append(views)
        return {"zero": 0 * next(self.parts.parameters()).sum()}


class Outputs(TwoView):
    """Its head gives a tuple, its other head a dict. ``given`` keeps both, for each forward pass."""

    def build(self, *args: Any) -> None:
        super().build(*args)
        self.pair = Pair()
        self.given: list[tuple[Tensor, Tensor]] = []

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(self.stem(images))
        cams, _ = self.pair(features, self.classifier(features))
        self.given.append((features.detach(), cams.detach()))
        return cams


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.named = Named()

    def forward(self, features: Tensor, cams: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return cams, self.named(features, cams)


class Named(nn.Module):
    def forward(self, features: Tensor, cams: Tensor) -> dict[str, Tensor]:
        return {"deep": features, "maps": cams}


@pytest.mark.parametrize(
    ("features", "cams"),
    [
        ("body", "classifier"),
        ("body.2", ("pair", 0)),
        (("pair.named", "deep"), ("pair.named", "maps")),
        (lambda out: out["pair"][1]["deep"], lambda out: out["classifier"] * 1),
        ("body", lambda out: out["pair.named"]["maps"]),
    ],
    ids=["name", "index", "key", "functions", "mixed"],
)
def test_a_tap_reads_each_pass_in_order(features: Any, cams: Any) -> None:
    host, reader = Outputs(), Reader(features, cams)
    fit(host, reader, steps=2)
    read = [view for views in reader.steps for view in views]
    assert len(read) == len(host.given) == 4
    for view, (want_features, want_cams) in zip(read, host.given, strict=True):
        assert torch.equal(view["features"], want_features)
        assert torch.equal(view["cams"], want_cams)


def test_only_what_a_function_has_read_stays_hooked() -> None:
    counts: list[dict[str, int]] = []
    host = OneView()
    reader = Reader("body", lambda out: out["classifier"])
    reader.views = 1
    before = hooks(host)
    spy = Spy(lambda _, module: hooks(module))
    start = AtStart(lambda _, module: counts.append(hooks(module)))
    fit(host, reader, spy, start, steps=2)
    all_hooked = [name for name, count in counts[0].items() if "_forward_hooks" in name and count > before.get(name, 0)]
    assert len(all_hooked) >= 6
    for now in spy.looks:
        hooked = [key for key, count in now.items() if key.endswith(":_forward_hooks") and count > before.get(key, 0)]
        assert hooked == ["body:_forward_hooks", "classifier:_forward_hooks"]


def test_a_function_must_read_the_same_names_each_time() -> None:
    names = iter(["classifier", "body.0"])
    reader = Reader("body", lambda out: out[next(names)])
    reader.views = 1
    with pytest.raises(TapError, match=r"`body.0` at this step but not at the first"):
        fit(OneView(), reader, steps=2)


class Background(TwoView):
    """Maps with a background channel, whose place the class says."""

    place = 0

    def build(self, *args: Any) -> None:
        super().build(*args)
        with seeded(8):
            self.classifier = nn.Conv2d(WIDTH, K + 1, 1, bias=False)

    def host_loss(self, batch: Any) -> Tensor:
        foreground = slice(1, None) if self.place == 0 else slice(None, -1)
        return tag_loss(self(batch["image"])[:, foreground], batch["tags"]) + 0 * self(small(batch["image"])).sum()


class BackgroundLast(Background):
    place = -1


@pytest.mark.parametrize(("host", "place"), [(Background, 0), (BackgroundLast, -1)])
def test_background_channel_is_not_read(host: type[Background], place: Any) -> None:
    """The contrast has the value of the same maps without the channel."""

    def first_loss(change: Callable[[L.LightningModule], Any]) -> Tensor:
        module, callback = host(), ppc(background=place)
        return fit(module, callback, AtStart(lambda _, m: change(m)), steps=1).losses[0]

    def scale(module: Any) -> None:
        with torch.no_grad():
            module.classifier.weight[place] = 100.0

    def scale_foreground(module: Any) -> None:
        with torch.no_grad():
            module.classifier.weight[1] *= -2.0

    untouched = first_loss(lambda m: None)
    assert torch.equal(untouched, first_loss(scale))
    assert not torch.equal(untouched, first_loss(scale_foreground))


class Pooled(TwoView):
    """A linear classifier after pooling."""

    def build(self, *args: Any) -> None:
        super().build(*args)
        self.fc = nn.Linear(WIDTH, K)
        del self.classifier

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(self.stem(images)).mean(dim=(2, 3)))
        return logits[:, :, None, None]


def test_linear_classifier_gives_maps_by_its_weights() -> None:
    host, reader, kept = Pooled(), Reader("body", "fc"), []
    fit(host, AtStart(lambda _, m: kept.append(m.fc.weight.detach().clone())), reader, steps=1)
    for view in reader.steps[0]:
        features = view["features"]
        by_hand = sum(kept[0][:, c, None, None] * features[:, c, None] for c in range(WIDTH))
        torch.testing.assert_close(view["cams"], by_hand)
        assert features.requires_grad
        assert not view["cams"].requires_grad
    callback = ppc(cams="fc")
    fit(host, callback)
    assert callback.parts.projector.in_channels == WIDTH


def test_linear_classifier_wants_the_map_before_pooling() -> None:
    class Wider(Pooled):
        def build(self, *args: Any) -> None:
            super().build(*args)
            self.fc = nn.Linear(2 * WIDTH, K)

        def forward(self, images: Tensor) -> Tensor:
            features = self.body(self.stem(images)).mean(dim=(2, 3))
            logits: Tensor = self.fc(torch.cat([features, features], dim=1))
            return logits[:, :, None, None]

    with pytest.raises(TapError, match=r"takes 12 features, but `features` has shape \(2, 6, 8, 8\)"):
        fit(Wider(), ppc(cams="fc"))


@pytest.mark.parametrize(
    ("given", "width"), [({}, WIDTH), ({"cams": lambda out: out["classifier"], "in_channels": WIDTH}, WIDTH)]
)
def test_projector_width(given: dict[str, Any], width: int) -> None:
    callback = ppc(**given)
    fit(TwoView(), callback, steps=1)
    assert callback.parts.projector[0].weight.shape == (DIM, width, 1, 1)


@pytest.mark.parametrize("cams", [lambda out: out["classifier"], "head"])
def test_projector_width_unknown(cams: Any) -> None:
    class Deep(TwoView):
        def build(self, *args: Any) -> None:
            super().build(*args)
            self.head = nn.Sequential(self.classifier)

    with pytest.raises(TapError, match="pass `in_channels`, the width of `features`"):
        fit(Deep(), ppc(cams=cams))


@pytest.mark.parametrize(("module", "background"), [(CAM, None), (SEAM, 0)])
@pytest.mark.filterwarnings("ignore")
def test_built_in_hosts_need_no_arguments(module: Any, background: Any) -> None:
    options = {"view_size": 32} if module is SEAM else {}
    host = module(K, backbone="test_resnet", weights=None, output_stride=None, scales=(1.0,), **options)
    callback = PrototypeContrastCallback(view_size=32)
    start: list[Tensor] = []
    spy = fit(
        host,
        callback,
        AtStart(lambda *_: start.extend(w.clone() for w in callback.parts.parameters())),
        data=Photos(4, (64, 64)),
        steps=2,
    )
    assert callback._at.background == background
    assert torch.isfinite(torch.stack(spy.losses)).all()
    assert callback.parts is not None
    assert not same(start, list(callback.parts.parameters()))


class ChannelsLast(TwoView):
    """Hands its maps around as (N, h, w, C)."""

    layout = "NHWC"

    def build(self, *args: Any) -> None:
        super().build(*args)
        self.features, self.maps = Permute(self.layout), Permute(self.layout)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(self.stem(images))
        self.features(features)
        cams: Tensor = self.classifier(features)
        self.maps(cams)
        return cams


class Tokens(ChannelsLast):
    """Hands its features around as (N, 1 + h w, C) tokens, its maps as (N, K, h, w)."""

    layout = "NLC"


class Permute(nn.Module):
    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, x: Tensor) -> Tensor:
        if self.layout == "NHWC":
            return x.permute(0, 2, 3, 1)
        tokens = x.flatten(2).transpose(1, 2)
        return torch.cat([torch.full_like(tokens[:, :1], 9.0), tokens], dim=1)


@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
@pytest.mark.parametrize("host", [ChannelsLast, Tokens])
def test_layouts_read_as_nchw(host: type[ChannelsLast], size: tuple[int, int]) -> None:
    class SameAspect(host):
        def host_loss(self, batch: Any) -> Tensor:
            loss = tag_loss(self(batch["image"]), batch["tags"])
            return loss + tag_loss(self(batch["image"][..., ::2, ::2]), batch["tags"])

    data = Photos(4, size)
    read, plain = Reader("features", "maps", layout=host.layout), Reader("body", "classifier", name="plain")
    fit(SameAspect(), read, plain, data=data, steps=2)
    for views, want in zip(read.steps, plain.steps, strict=True):
        for view, plain_view in zip(views, want, strict=True):
            assert torch.equal(view["features"], plain_view["features"])
            assert torch.equal(view["cams"], plain_view["cams"])


@pytest.mark.parametrize(
    ("tokens", "image", "grid"),
    [
        (16, (32, 32), (4, 4)),
        (17, (32, 32), (4, 4)),
        (8 + 5, (16, 32), (2, 4)),
        (12 + 1, (48, 64), (3, 4)),
        (14 * 14 + 1 + 4, (224, 224), (14, 14)),
        (3 * 9 + 1, (48, 144), (3, 9)),
    ],
)
def test_token_grid(tokens: int, image: tuple[int, int], grid: tuple[int, int]) -> None:
    assert token_grid(tokens, image) == grid


@pytest.mark.parametrize(
    ("tokens", "image", "prefix", "grid"),
    [
        (2 * 2 + 5, (32, 32), 5, (2, 2)),
        (4 * 4 + 9, (64, 64), 9, (4, 4)),
        (6 * 4 + 1, (100, 70), 1, (6, 4)),  # of patches of 16, once its sides are 96 and 64
        (4 * 5, (64, 80), 1, (4, 5)),  # a module before the prefix is put there
        (9, (32, 32), None, (3, 3)),
    ],
)
def test_token_grid_behind_a_known_prefix(
    tokens: int, image: tuple[int, int], prefix: int | None, grid: tuple[int, int]
) -> None:
    assert token_grid(tokens, image, prefix) == grid


def test_every_cut_into_whole_patches_is_found_again() -> None:
    for height in range(32, 200, 7):
        for width in range(32, 200, 9):
            grid = (round(height / 16), round(width / 16))
            if height % 16 != 8 or width % 16 != 8:  # two sides that were rounded over a half are refused
                assert token_grid(grid[0] * grid[1] + 5, (height, width), 5) == grid


def test_a_tap_knows_the_prefix_of_its_transformer() -> None:
    host = nn.ModuleDict({"vit": timm.create_model("test_vit", num_classes=0, reg_tokens=4, dynamic_img_size=True)})
    recorder = Recorder(host, {"tokens": "vit.blocks.3"})
    with recorder.recording():
        host["vit"](torch.randn(1, 3, 32, 32))
    captured = recorder.view(0)
    tokens = captured.tensor("tokens", "vit.blocks.3")
    assert tokens.shape[1] == 9
    for tap, prefix in (("vit.blocks.3", 5), (("vit.blocks.3.norm1", 0), 5), (lambda outputs: tokens, None)):
        assert captured.prefix_tokens(tap) == prefix
    maps = as_maps("tokens", tokens, "NLC", (32, 32), 5)
    assert torch.equal(maps, tokens[:, 5:].transpose(1, 2).unflatten(2, (2, 2)))


@pytest.mark.parametrize("prefix", [None, 1])
def test_token_grid_refuses_what_is_no_grid(prefix: int | None) -> None:
    with pytest.raises(TapError, match="40 tokens are no grid of square patches of a 30 x 70 image"):
        token_grid(40, (30, 70), prefix)


def test_token_order_and_4d_maps_of_a_token_host() -> None:
    grid = torch.arange(6.0).view(1, 1, 2, 3)
    tokens = torch.cat([torch.tensor([[[-1.0]]]), grid.flatten(2).transpose(1, 2)], dim=1)
    assert torch.equal(as_maps("features", tokens, "NLC", (16, 24)), grid)
    assert as_maps("cams", grid, "NLC", (16, 24)) is grid
