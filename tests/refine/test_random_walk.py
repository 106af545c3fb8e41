"""PSA and IRN as refiners: against walks with a matrix of pixels times pixels, and from checkpoints."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.literal import random_walk as literal
from wsss_contrast.modules import CAM, AffinityNet, IRNet
from wsss_contrast.nn import AffinityNetwork, InterPixelNetwork, TimmBackbone
from wsss_contrast.refine import IRN, PSA, Refiner, pseudo_labels, refiner

from ..modules.tiny import OPTIONS, trainer

SIZE = (21, 34)  # no multiples of a stride
TINY: dict[str, Any] = {"backbone": "test_resnet", "weights": None}


def networks() -> tuple[AffinityNetwork, InterPixelNetwork]:
    torch.manual_seed(0)
    psa = AffinityNetwork(TimmBackbone("test_resnet", None, low_strides=(8, 16)))
    irn = InterPixelNetwork(TimmBackbone("test_resnet", None, low_strides=(2, 4, 8, 16)))
    return psa, irn


def refiners(**options: Any) -> list[Refiner]:
    psa, irn = networks()
    return [PSA(psa, **options), IRN(irn, **options)]


def photos_and_scores(size: tuple[int, int] = SIZE) -> tuple[Tensor, Tensor, Tensor]:
    """Two photos, scores of the background and three classes, of which two and one are present."""
    generator = torch.Generator().manual_seed(1)
    photos = torch.randint(0, 256, (2, 3, *size), generator=generator, dtype=torch.uint8)
    scores = torch.rand(2, 4, *size, generator=generator)
    return photos, scores, torch.tensor([[True, True, False, True], [True, False, True, False]])


def blocks(map_: Tensor, side: int) -> Tensor:
    """Means of blocks of pixels (h, w), cut off by the border."""
    height, width = map_.shape
    rows = [map_[top : top + side] for top in range(0, height, side)]
    lefts = range(0, width, side)
    return torch.stack([torch.stack([row[:, left : left + side].mean() for left in lefts]) for row in rows])


def enlarged(maps: Tensor, side: int) -> Tensor:
    large = F.interpolate(maps[None], scale_factor=side, mode="bilinear", align_corners=False)[0]
    return large[:, : SIZE[0], : SIZE[1]]


def normalized(photos: Tensor) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (photos / 255 - mean[:, None, None]) / std[:, None, None]


@pytest.mark.parametrize(("beta", "logt"), [(8, 3), (2, 5)])
@torch.no_grad()
def test_psa_equals_literal_reading(beta: float, logt: int) -> None:
    network, _ = networks()
    network.affinity.join.weight.mul_(0.05)  # so that pixels are alike to some extent
    photos, scores, present = photos_and_scores()
    found = PSA(network, beta, logt)(photos, scores, present)
    changes = 0.0
    for photo, of_photo, classes, result in zip(photos, scores, present, found, strict=True):
        features = network.eval()(normalized(photo[None]))[0].double()
        height, width = features.shape[1:]
        assert (height, width) == (3, 5)
        pairs = literal.all_pairs(height, width, 5)
        dense = literal.matrix({pair: literal.feature_affinity(features, *pair) for pair in pairs}, height, width)
        small = torch.stack([blocks(map_.double(), 8) for map_ in of_photo[classes]])
        walked = literal.walk(small, dense, beta, logt)
        changes += float((walked - small).abs().max())
        torch.testing.assert_close(result[classes].double(), enlarged(walked, 8), rtol=1e-4, atol=1e-5)
        assert not result[~classes].any()
    assert changes > 0.1


@pytest.mark.parametrize(("beta", "logt"), [(10, 3), (2, 5)])
@torch.no_grad()
def test_irn_equals_literal_reading(beta: float, logt: int) -> None:
    _, network = networks()
    photos, scores, present = photos_and_scores()
    found = IRN(network, beta, logt)(photos, scores, present)
    for photo, of_photo, classes, result in zip(photos, scores, present, found, strict=True):
        edges = network.eval()(normalized(photo[None]))[0][0, 0].double()
        height, width = edges.shape
        assert (height, width) == (6, 9)
        pairs = literal.all_pairs(height, width, 5)
        dense = literal.matrix({pair: literal.edge_affinity(edges, *pair) for pair in pairs}, height, width)
        foreground = classes.clone()
        foreground[0] = False
        small = torch.stack([blocks(map_.double(), 4) for map_ in of_photo[foreground]])
        walked = enlarged(literal.walk(small * (1 - 1 / (1 + (-edges).exp())), dense, beta, logt), 4)
        torch.testing.assert_close(result[foreground].double(), walked / walked.max(), rtol=1e-4, atol=1e-5)
        assert torch.equal(result[0], of_photo[0])
        assert not result[~classes].any()


class Wall(nn.Module):
    """In the place of IRN's network: a boundary down the middle of a photo 48 wide."""

    stride = 4

    def edges(self, images: Tensor) -> Tensor:
        height, width = images.shape[2] // 4, images.shape[3] // 4
        logits = torch.full((len(images), 1, height, width), -20.0)
        logits[..., width // 2] = 20.0
        return logits


def test_scores_spread_up_to_a_boundary() -> None:
    """A spot of a class fills its side of the photo, and none of the other."""
    scores = torch.zeros(1, 3, 32, 48)
    scores[:, 0] = 0.3
    scores[:, 1, 8:16, 4:12] = 0.4
    scores[:, 2, 20:28, 36:44] = 0.8
    network: Any = Wall()
    refined = IRN(network)(torch.zeros(1, 3, 32, 48, dtype=torch.uint8), scores, torch.ones(1, 3, dtype=torch.bool))
    assert torch.equal(refined[:, 0], scores[:, 0])
    assert refined[0, 1, :, 28:].max() < 1e-3
    assert refined[0, 1, :, :22].min() > 0.3
    assert refined[0, 2, :, :22].max() < 1e-3
    # Divided by the largest of all classes, so that the second, of a stronger spot, has a score of 1.
    assert float(refined[0, 2].max()) == pytest.approx(1)
    assert float(refined[0, 1].max()) == pytest.approx(0.5 * 24 / 20, abs=0.12)


@pytest.mark.parametrize("size", [(5, 7), (8, 8), (37, 50), (64, 40)], ids=str)
def test_photos_of_any_size(size: tuple[int, int]) -> None:
    for refine in refiners(logt=2):
        refined = refine(*photos_and_scores(size))
        assert refined.shape == (2, 4, *size)
        assert torch.isfinite(refined).all()


def test_a_photo_has_what_it_has_alone() -> None:
    """Neither the other photos of a batch nor absent classes matter."""
    photos, scores, present = photos_and_scores()
    for refine in refiners(logt=4):
        together = refine(photos, scores, present)
        changed = torch.where(present[:, :, None, None], scores, 9.0)
        torch.testing.assert_close(refine(photos, changed, present), together, rtol=0, atol=0)
        for index in range(2):
            one = slice(index, index + 1)
            torch.testing.assert_close(refine(photos[one], scores[one], present[one]), together[one], atol=1e-5, rtol=0)


def test_a_constant_background_stays() -> None:
    """So one call serves two thresholds."""
    photos, scores, present = photos_and_scores((48, 80))
    scores *= torch.linspace(0.2, 1, 80)
    tags = present[:, 1:].float()
    for refine in refiners(logt=0):
        scores[:, 0] = 0.27
        torch.testing.assert_close(refine(photos, scores, present)[:, 0], scores[:, 0])
        calls: list[int] = []

        class Counted:
            keeps_constants = refine.keeps_constants  # type: ignore[attr-defined]

            def __call__(self, *args: Tensor, inner: Refiner = refine, calls: list[int] = calls) -> Tensor:
                calls.append(1)
                return inner(*args)

        class Each(Counted):
            keeps_constants = False

        best = refine(photos, scores, present)[:, 1:].amax(dim=1)
        low, high = (float(best.min().lerp(best.max(), share)) for share in (0.4, 0.6))
        both = pseudo_labels(photos, scores[:, 1:], tags, low, high, Counted())
        assert len(calls) == 1
        assert torch.equal(both, pseudo_labels(photos, scores[:, 1:], tags, low, high, Each()))
        assert len(both.unique()) > 2


def test_a_photo_of_no_class_and_no_photo() -> None:
    photos, scores, present = photos_and_scores()
    present[:, 1:] = False
    for refine in refiners(logt=1):
        assert not refine(photos, scores, present)[:, 1:].any()
        scores[:] = 0.0
        assert torch.isfinite(refine(photos, scores, torch.ones_like(present))).all()


@pytest.mark.parametrize("kind", [PSA, IRN])
def test_options_out_of_range(kind: Callable[..., Refiner]) -> None:
    network = networks()[kind is IRN]
    with pytest.raises(ValueError, match="`beta` must be above 0, got 0"):
        kind(network, beta=0)
    for logt in (-1, 17):
        with pytest.raises(ValueError, match=rf"`logt` must be in \[0, 16\], got {logt}"):
            kind(network, logt=logt)


# --- checkpoints


@pytest.fixture(params=["psa", "irn"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


MODULES = {"psa": AffinityNet, "irn": IRNet}
CLASSES = {"psa": PSA, "irn": IRN}


def saved(kind: str, folder: Path, **options: Any) -> tuple[AffinityNet | IRNet, Path]:
    """A module, and the checkpoint that a trainer writes of it."""
    torch.manual_seed(0)
    module = MODULES[kind](**TINY | options)
    host = trainer(folder)
    host.strategy.connect(module)
    host.save_checkpoint(folder / "last.ckpt", weights_only=True)
    return module, folder / "last.ckpt"


@pytest.mark.parametrize("options", [{}, {"output_stride": 8, "low_strides": [4, 8]}, {"low_strides": None}])
def test_a_checkpoint_is_enough(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    """By name, with the defaults of the paper."""
    module, path = saved(kind, tmp_path, **options)
    made = refiner(f"{kind}:{path}")
    network: Any = module.network
    expected = CLASSES[kind](network)
    assert repr(made) == repr(expected)
    given = photos_and_scores()
    assert made is not None
    torch.testing.assert_close(made(*given), expected(*given), rtol=0, atol=0)
    assert not made.network.training  # type: ignore[attr-defined]
    assert (made.beta, made.logt) == ({"psa": 8, "irn": 10}[kind], 8)  # type: ignore[attr-defined]
    assert CLASSES[kind].from_checkpoint(path, beta=3, logt=2).logt == 2
    for name, logt in ((f"{kind}:{path}", 8), (f"{kind}:2:{path}", 2)):
        named = refiner(name)
        assert isinstance(named, CLASSES[kind])
        assert named.logt == logt


def test_the_name_says_what_the_result_depends_on(kind: str, tmp_path: Path) -> None:
    module, path = saved(kind, tmp_path)
    network: Any = module.network
    name = repr(CLASSES[kind].from_checkpoint(path))
    path.rename(tmp_path / "moved.ckpt")
    assert repr(CLASSES[kind].from_checkpoint(tmp_path / "moved.ckpt")) == name  # not on where the file is
    assert re.fullmatch(rf"{kind.upper()}\([0-9a-f]{{64}}, beta=\d+, logt=8\)", name)
    others = [CLASSES[kind](network, beta=3), CLASSES[kind](network, logt=3)]
    torch.manual_seed(1)
    others.append(CLASSES[kind](MODULES[kind](**TINY).network))
    assert len({name, *map(repr, others)}) == 4


def test_the_name_depends_on_the_stride(kind: str) -> None:
    """The same weights, with dilation in the place of a stride, are another network."""
    coarse, fine = (MODULES[kind](**TINY, low_strides=[4, 8], output_stride=stride).network for stride in (16, 8))
    fine.load_state_dict(coarse.state_dict())
    assert repr(CLASSES[kind](fine)) != repr(CLASSES[kind](coarse))


def test_a_checkpoint_that_is_none(kind: str, tmp_path: Path) -> None:
    def refused(reason: str, of: Path) -> None:
        with pytest.raises(ValueError, match=rf"^{re.escape(str(of))}: {reason}"):
            refiner(f"{kind}:{of}")

    _, path = saved(kind, tmp_path)
    refused("no such checkpoint$", tmp_path / "nowhere.ckpt")
    refused(r"cannot be read as a checkpoint \(IsADirectoryError.*", tmp_path)
    for content in (b"", b"hello", path.read_bytes()[:-2000]):
        (tmp_path / "bad.ckpt").write_bytes(content)
        refused("cannot be read as a checkpoint", tmp_path / "bad.ckpt")
    name = MODULES[kind].__name__
    for value in ([1], {}, {"state_dict": None}, {"state_dict": {"network.x": torch.zeros(1)}}):
        torch.save(value, tmp_path / "bad.ckpt")
        refused(f"is no checkpoint of ({name}|Lightning)$", tmp_path / "bad.ckpt")
    state = torch.load(path, weights_only=True)
    del state["hyper_parameters"]
    torch.save(state, tmp_path / "bad.ckpt")
    refused(f"is no checkpoint of {name}$", tmp_path / "bad.ckpt")


def test_a_checkpoint_of_another_module(kind: str, tmp_path: Path) -> None:
    other = {"psa": "irn", "irn": "psa"}[kind]
    _, path = saved(other, tmp_path)
    with pytest.raises(ValueError, match=rf"last\.ckpt: is no checkpoint of {MODULES[kind].__name__}$"):
        refiner(f"{kind}:{path}")
    host, module = trainer(tmp_path), CAM(3, **OPTIONS)
    host.strategy.connect(module)
    host.save_checkpoint(path, weights_only=True)
    state = torch.load(path, weights_only=True)
    state["hyper_parameters"]["_class_path"] = "wsss_contrast.modules.CAM"  # as the command line notes it
    torch.save(state, path)
    with pytest.raises(ValueError, match=rf"is no checkpoint of {MODULES[kind].__name__}, it is one of CAM$"):
        refiner(f"{kind}:{path}")


def test_a_checkpoint_of_another_width(kind: str, tmp_path: Path) -> None:
    _, path = saved(kind, tmp_path)
    for name, value in (("backbone", "resnet18"), ("low_strides", [4, 8]), ("backbone", "no_network")):
        state = torch.load(path, weights_only=True)
        state["hyper_parameters"][name] = value
        torch.save(state, tmp_path / "bad.ckpt")
        with pytest.raises(ValueError, match=r"bad\.ckpt: its network can't be built again: "):
            refiner(f"{kind}:{tmp_path / 'bad.ckpt'}")


def test_refiners_need_no_training_modules(tmp_path: Path) -> None:
    """The import rule: a checkpoint is read without them, and other refiners do not need timm."""
    _, path = saved("irn", tmp_path)
    code = (
        "import sys; from wsss_contrast.refine import refiner; print('timm' in sys.modules); "
        f"refiner('irn:{path}'); print('timm' in sys.modules); "
        "print(*(name for name in sys.modules if name.startswith(('wsss_contrast.modules', 'wsss_contrast.call'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
