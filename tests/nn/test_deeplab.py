"""DeepLabV3PlusHeads against a literal reading, and its ASPP against segmentation-models-pytorch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_contrast.nn import DeepLabV3PlusHeads

HIGH, LOW, CLASSES, EMBEDDING = 10, 6, 4, 5


def heads(norm: str = "group") -> DeepLabV3PlusHeads:
    """Small heads whose norms are not where they start."""
    torch.manual_seed(0)
    made = DeepLabV3PlusHeads(HIGH, LOW, CLASSES, EMBEDDING, norm)
    for module in made.modules():
        if isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return made


def inputs(batch: int = 2, low: tuple[int, int] = (9, 7), high: tuple[int, int] = (3, 2)) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(batch, LOW, *low), torch.randn(batch, HIGH, *high)


def literal(state: dict[str, Tensor], low: Tensor, high: Tensor, dropout: bool) -> tuple[Tensor, Tensor]:
    """The heads line by line; a dropout of probability p multiplies by 1 - p."""

    def layer(x: Tensor, convolution: str, norm: str, dilation: int = 1) -> Tensor:
        weight, scale, shift = state[f"{convolution}.weight"], state[f"{norm}.weight"], state[f"{norm}.bias"]
        x = F.conv2d(x, weight, padding=dilation * (weight.shape[-1] // 2), dilation=dilation)
        if f"{norm}.running_mean" in state:
            mean, variance = state[f"{norm}.running_mean"][:, None, None], state[f"{norm}.running_var"][:, None, None]
        else:
            groups = x.reshape(len(x), 4, -1)
            mean, variance = groups.mean(2), groups.var(2, unbiased=False)
            mean, variance = (v.repeat_interleave(x.shape[1] // 4, 1)[:, :, None, None] for v in (mean, variance))
        x = (x - mean) / (variance + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]
        return x.clamp_min(0)

    def drop(x: Tensor, p: float) -> Tensor:
        return x * (1 - p) if dropout else x

    pooled = layer(high.mean((2, 3), keepdim=True), "aspp.branches.4.1", "aspp.branches.4.2")
    pyramid = torch.cat(
        [
            layer(high, "aspp.branches.0.0", "aspp.branches.0.1"),
            layer(high, "aspp.branches.1.0", "aspp.branches.1.1", 6),
            layer(high, "aspp.branches.2.0", "aspp.branches.2.1", 12),
            layer(high, "aspp.branches.3.0", "aspp.branches.3.1", 18),
            F.interpolate(pooled, high.shape[2:], mode="bilinear", align_corners=True),
        ],
        1,
    )
    pyramid = drop(layer(pyramid, "aspp.merge.0", "aspp.merge.1"), 0.5)
    pyramid = F.interpolate(pyramid, low.shape[2:], mode="bilinear", align_corners=True)
    shared = torch.cat([pyramid, layer(low, "project.0", "project.1")], 1)
    x = drop(layer(shared, "decoder.0", "decoder.1"), 0.1)
    x = drop(layer(x, "decoder.4", "decoder.5"), 0.1)
    masks = F.conv2d(x, state["decoder.8.weight"], state["decoder.8.bias"])
    x = layer(shared, "representation.0", "representation.1")
    return masks, F.conv2d(x, state["representation.3.weight"], state["representation.3.bias"])


# The dilated convolutions see more than their central weight on maps wider than 18 only.
@pytest.mark.parametrize(
    ("low", "high"), [((9, 7), (3, 2)), ((16, 16), (4, 4)), ((21, 23), (20, 23)), ((1, 1), (1, 1))], ids=str
)
@pytest.mark.parametrize("norm", ["group", "batch"])
@torch.no_grad()
def test_equals_literal_reading(norm: str, low: tuple[int, int], high: tuple[int, int]) -> None:
    made, maps = heads(norm).eval(), inputs(2, low, high)
    ours, expected = made(*maps), literal(made.state_dict(), *maps, dropout=False)
    assert ours[0].shape == (2, CLASSES, *low)
    assert ours[1].shape == (2, EMBEDDING, *low)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_dropout_is_where_it_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x * (1 - self.p))
    made, maps = heads(), inputs()
    expected = literal(made.state_dict(), *maps, dropout=True)
    torch.testing.assert_close(made(*maps), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_aspp_is_that_of_smp() -> None:
    """With its norms; the docstring says so."""
    decoder = pytest.importorskip("segmentation_models_pytorch.decoders.deeplabv3.decoder")
    made, (_, high) = heads("batch").aspp, inputs(2, high=(20, 19))
    theirs = decoder.ASPP(HIGH, 256, (6, 12, 18), separable=False, dropout=0.5)
    assert [value.shape for value in theirs.state_dict().values()] == [v.shape for v in made.state_dict().values()]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), made.state_dict().values(), strict=True)))
    torch.manual_seed(2)
    ours = made(high)  # in training, with dropout and the batch's statistics
    torch.manual_seed(2)
    torch.testing.assert_close(ours, theirs(high))
    torch.testing.assert_close(made.eval()(high), theirs.eval()(high))


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_initial_weights(norm: str) -> None:
    """Kaiming-normal by the number of inputs, norms 1 and 0, biases as PyTorch draws them."""
    torch.manual_seed(0)
    made = DeepLabV3PlusHeads(64, 32, 21, norm=norm)
    biased = []
    for name, module in made.named_modules():
        if isinstance(module, nn.Conv2d):
            inputs, weight = module.weight[0].numel(), module.weight.detach()
            error = 1 / (2 * weight.numel()) ** 0.5  # of a standard deviation that is estimated, relative
            assert abs(float(weight.std()) / (2 / inputs) ** 0.5 - 1) < 4 * error, name
            assert abs(float(weight.mean())) < 4 * (2 / inputs / weight.numel()) ** 0.5, name
            if module.bias is not None:
                biased.append(name)
                bound = inputs**-0.5
                assert bound / 2 < float(module.bias.detach().abs().max()) <= bound, name
        elif isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
            assert bool((module.weight == 1).all()), name
            assert bool((module.bias == 0).all()), name
    assert biased == ["decoder.8", "representation.3"]
    assert made.representation[-1].out_channels == 256


@pytest.mark.parametrize("output", [0, 1], ids=["segmentation", "representation"])
def test_gradient_reaches_both_maps(output: int) -> None:
    """Both heads share the ASPP and the projection; neither is detached."""
    made = heads()
    low, high = (maps.requires_grad_() for maps in inputs())
    made(low, high)[output].square().sum().backward()
    assert bool((low.grad != 0).any((0, 2, 3)).all())
    assert bool((high.grad != 0).any((0, 2, 3)).all())
    idle = {name.split(".")[0] for name, p in made.named_parameters() if p.grad is None}
    assert idle == {("representation", "decoder")[output]}
    learned = {name.split(".")[0] for name, p in made.named_parameters() if p.grad is not None and p.grad.any()}
    assert learned == {"aspp", "project", ("decoder", "representation")[output]}


def test_batch_of_one_in_training() -> None:
    """Where the pooled map has one value per channel, which batch norm can't take."""
    for part in heads()(*inputs(1)):
        part.sum().backward(retain_graph=True)
        assert bool(torch.isfinite(part).all())
    made = heads("batch")
    with pytest.raises(ValueError, match=r"`norm='batch'` can't train on a batch of 1; use `norm='group'`"):
        made(*inputs(1))
    made(*inputs(2))
    for module in made.modules():  # frozen norms in a network that trains
        module.train(not isinstance(module, nn.BatchNorm2d))
    made(*inputs(1))
    made.eval()(*inputs(1))


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_half_precision(norm: str) -> None:
    made, (low, high) = heads(norm).eval(), inputs()
    low.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        half = made(low, high)
    sum(part.float().square().mean() for part in half).backward()
    assert bool(torch.isfinite(low.grad).all())
    assert [part.dtype for part in half] == [torch.bfloat16] * 2
    for ours, full in zip(half, made(low, high), strict=True):
        assert float((ours - full).detach().abs().max() / full.detach().abs().max()) < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "layer"}, "`norm` must be 'group' or 'batch', got 'layer'"),
        ({"num_classes": 1}, "`num_classes` counts the background and must be at least 2, got 1"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepLabV3PlusHeads(**{"high_channels": 8, "low_channels": 8, "num_classes": 3} | options)


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        ((2, HIGH, 3, 2), (2, LOW, 9, 7), r"`low` must have the shape \(N, 6, h, w\), got \(2, 10, 3, 2\)"),
        ((2, LOW, 9, 7), (2, HIGH + 1, 3, 2), r"`high` must have the shape \(N, 10, h, w\), got \(2, 11, 3, 2\)"),
        ((2, LOW, 9, 7), (HIGH, 3, 2), r"`high` must have the shape \(N, 10, h, w\), got \(10, 3, 2\)"),
        ((2, LOW, 9, 7), (1, HIGH, 3, 2), "the batch sizes differ: `low` has 2, `high` has 1"),
    ],
)
def test_bad_maps(low: tuple[int, ...], high: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        heads()(torch.zeros(low), torch.zeros(high))
