"""Masks that erase a class, against their literal reading, and the drawing of a tag."""

from __future__ import annotations

import pytest
import torch

from tests.literal import erasing as literal
from wsss_contrast import functional as W

ERASED = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]])


def maps() -> torch.Tensor:
    scale = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64).view(3, 1, 1, 1)
    return scale * torch.randn(3, 3, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("normalize", ["batch", "map"])
@pytest.mark.parametrize("size", [(9, 12), (3, 4), (7, 5)], ids=str)
def test_masks(size: tuple[int, int], normalize: str) -> None:
    masks = W.erasing_masks(maps(), ERASED, size, normalize)
    torch.testing.assert_close(masks, literal.erasing_masks(maps(), ERASED, size, normalize), rtol=1e-9, atol=1e-12)
    assert float(masks.max()) < 1
    assert not masks[2].any()  # nothing to erase


def test_only_the_erased_class_gets_a_gradient() -> None:
    cams = maps().requires_grad_()
    W.erasing_masks(cams, ERASED, (6, 8)).sum().backward()
    touched = cams.grad.abs().amax(dim=(2, 3)) > 0
    assert torch.equal(touched, ERASED.bool())


def test_erase() -> None:
    images, masks = torch.ones(1, 3, 1, 3), torch.tensor([[[[0.0, 0.2, 0.9]]]])
    torch.testing.assert_close(W.erase(images, masks)[0, 2, 0], torch.tensor([1.0, 0.8, 0.1]))
    assert W.erase(images, masks, 0.2)[0, 0, 0].tolist() == [1, 1, 0]


def test_no_images() -> None:
    assert W.erasing_masks(torch.zeros(0, 3, 2, 2), torch.zeros(0, 3), (4, 4)).shape == (0, 1, 4, 4)
    assert W.draw_tag(torch.zeros(0, 3)).shape == (0, 3)


def test_a_tag_is_drawn_uniformly_among_those_present() -> None:
    tags = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.float32).repeat(3000, 1)
    drawn = W.draw_tag(tags, torch.Generator().manual_seed(0)).view(3000, 3, 4)
    assert torch.equal(drawn[:, 1], tags[1].expand(3000, 4))
    assert not drawn[:, 2].any()
    assert torch.equal(drawn[:, 0].sum(dim=1), torch.ones(3000))
    torch.testing.assert_close(drawn[:, 0].mean(dim=0), torch.tensor([1, 0, 1, 1]) / 3, atol=0.03, rtol=0)
    again = W.draw_tag(tags, torch.Generator().manual_seed(0))
    assert torch.equal(again.view(3000, 3, 4), drawn)
