"""EPS's saliency loss against its literal reading, and its argument errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.literal import saliency as literal
from wsss_contrast.functional import estimate_saliency
from wsss_contrast.losses import SaliencyLoss


def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Maps of three classes and the background, sharp enough that some exceed a half; saliency; tags."""
    generator = torch.Generator().manual_seed(seed)
    cams = 3 * torch.randn(3, 4, 4, 5, generator=generator, dtype=torch.float64)
    saliency = torch.rand(3, 1, 8, 10, generator=generator, dtype=torch.float64)
    return cams.requires_grad_(), saliency, torch.tensor([[1, 1, 0], [0, 0, 1], [0, 0, 0]])


@pytest.mark.parametrize("background", [0, -1])
@pytest.mark.parametrize(("overlap_threshold", "mixing"), [(0.4, 0.5), (0.5, 0.9), (0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient(seed: int, overlap_threshold: float, mixing: float, background: int) -> None:
    cams, saliency, tags = inputs(seed)
    got = SaliencyLoss(overlap_threshold, mixing, background)(cams, tags, saliency)
    want = literal.saliency_loss(cams, saliency[:, 0, ::2, ::2], tags, overlap_threshold, mixing, background)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    slopes, expected = (torch.autograd.grad(loss, cams, retain_graph=True) for loss in (got, want))
    torch.testing.assert_close(slopes, expected, rtol=1e-10, atol=1e-12)


def test_a_class_off_the_salient_object_is_background() -> None:
    """Two classes fill a half of the photo each; the left half is salient."""
    cams = torch.full((1, 3, 2, 4), -9.0)
    cams[:, 0, :, :2] = cams[:, 1, :, 2:] = 9.0
    saliency = torch.zeros(1, 2, 4)
    saliency[..., :2] = 1
    found = estimate_saliency(cams, torch.tensor([[1, 1]]), saliency)
    torch.testing.assert_close(found.overlap, torch.tensor([[1.0, 0.0]]), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.saliency, saliency, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.background, 1 - saliency, atol=1e-3, rtol=0)
    untagged = estimate_saliency(cams, torch.tensor([[1, 0]]), saliency)  # its map is in neither sum
    torch.testing.assert_close(untagged.saliency[..., 2:], torch.full((1, 2, 2), 0.5), atol=1e-3, rtol=0)


MAPS, SALIENCY, TAGS = torch.zeros(2, 4, 3, 3), torch.zeros(2, 1, 6, 6), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ((MAPS, SALIENCY[:1], TAGS), r"batch sizes differ.*'saliency': 1"),
        ((MAPS, SALIENCY[:, 0], TAGS), r"`saliency`.*\(2, 6, 6\)"),
        ((MAPS, SALIENCY.repeat(1, 3, 1, 1), TAGS), r"one channel, got \(2, 4, 3, 3\) and \(2, 3, 6, 6\)"),
        ((MAPS[:, :1], SALIENCY, TAGS[:, :0]), r"background and classes.*got \(2, 1, 3, 3\)"),
        ((MAPS, SALIENCY, MAPS[:, :, 0, 0]), r"`tags`.*\(2, 3\), got \(2, 4\)"),
        ((MAPS * math.nan, SALIENCY, TAGS), r"`cams` has NaN"),
        ((MAPS, SALIENCY + 255, TAGS), r"`saliency` must be in \[0, 1\], got values in \[255, 255\]"),
        ((MAPS, SALIENCY - 0.5, TAGS), r"got values in \[-0.5, -0.5\]"),
    ],
)
def test_tensors_that_do_not_go_together(tensors: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SaliencyLoss()(tensors[0], tensors[2], tensors[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap_threshold": 1.5}, r"`overlap_threshold` must be in \[0, 1\], got 1.5"),
        ({"mixing": -0.1}, r"`mixing` must be in \[0, 1\], got -0.1"),
        ({"background": 1}, r"`background` must be 0 or -1, got 1"),
    ],
)
def test_options_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SaliencyLoss(**options)  # type: ignore[arg-type]
