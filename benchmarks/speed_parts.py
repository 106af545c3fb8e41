"""The parts that run.py measures: the library's call, a literal reading of it, and a floor."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from dense_crf import by_pydensecrf, by_torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.literal import csrm_contrast as csrm_literal
from tests.literal import tensors
from wsss_contrast import functional
from wsss_contrast.data import ShapesDataset, as_photos
from wsss_contrast.functional import (
    PermutohedralLattice,
    hard_unaries,
    pixel_affinity,
    propagate,
    quantile,
    resize,
    split_background,
)
from wsss_contrast.losses import (
    CSRM_PRESETS,
    ContrastDraws,
    EquivariantCrossRegularization,
    EquivariantRegularization,
    MinPooling,
    MultilabelSoftMargin,
    PixelDraws,
    PrototypeContrast,
    UnreliablePixelContrast,
)
from wsss_contrast.modules import CAM
from wsss_contrast.nn import ClassMemoryBank
from wsss_contrast.refine import CRF_SETTINGS, multi_scale_cams

BATCH, CLASSES, CROP, VIEW, WIDTH = 8, 20, 448, 128, 128
MAPS, VIEW_MAPS = CROP // 8, VIEW // 8
DILATIONS = (1, 2, 4, 8, 12, 24)


class Part(NamedTuple):
    """What is measured.

    Attributes:
        ours: the library's call; gives what must agree with the others'.
        literal: the same from a literal reading, with its name.
        floor: the operations that are left, with what they are.
        agree: by how much the results may differ, of the largest.
        memory: whether a fresh process is asked for its growth.
    """

    ours: Callable[[], Any]
    literal: tuple[str, Callable[[], Any]] | None = None
    floor: tuple[str, Callable[[], Any]] | None = None
    agree: float | None = 1e-4
    memory: bool = False


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape)


def tags() -> Tensor:
    """One or two of 20 classes an image, as on a photo of VOC."""
    found = torch.zeros(BATCH, CLASSES)
    found[torch.arange(BATCH), torch.arange(BATCH)] = 1
    found[::2, 14] = 1
    return found


def gradients(total: Tensor, *leaves: Tensor) -> list[Tensor]:
    return [total.detach(), *torch.autograd.grad(total, leaves)]


def ppc_loss() -> Part:
    """8 photos, 128 channels, maps of 56 x 56 and 16 x 16."""
    source, target = (normal(BATCH, WIDTH, side, side).requires_grad_() for side in (MAPS, VIEW_MAPS))
    cams, target_cams = (normal(BATCH, CLASSES, side, side) for side in (MAPS, VIEW_MAPS))
    pixels = BATCH * VIEW_MAPS**2
    draws = PixelDraws(torch.rand(2, pixels), torch.rand(2, pixels, CLASSES + 1))
    inputs, loss = (source, cams, target, target_cams, tags()), PrototypeContrast()
    prototypes = torch.nn.functional.normalize(normal(2 * (CLASSES + 1), WIDTH))

    def floor() -> Any:
        """For each view: embeddings and maps to the small size, unit length, one product, and the rankings of pixels by
        score for the candidates, of prototypes by similarity and by draw, and of pixels by similarity and by draw."""
        total, size = torch.zeros(()), (VIEW_MAPS, VIEW_MAPS)
        for embeddings, maps in ((source, cams), (target, target_cams)):
            unit = torch.nn.functional.normalize(resize(embeddings, size), dim=1)
            logits = unit.movedim(1, -1).flatten(0, -2) @ prototypes.T
            resize(maps, size).movedim(1, 0).flatten(1).sort(dim=1, stable=True)
            fixed = logits.detach()
            for values in (fixed[:, : CLASSES + 1], draws.prototypes[0]):
                values.sort(dim=1, stable=True)
            for values in (fixed[:, 0], draws.pixels[0]):
                values.sort(stable=True)
            total = total + logits.sum()
        return gradients(total, source, target)

    def literal() -> Any:
        return gradients(sum(tensors.prototype_contrast(*inputs, *draws).values()), source, target)

    return Part(
        lambda: gradients(sum(loss(*inputs, draws=draws).values()), source, target),
        ("class by class", literal),
        ("resize, unit length, one product, the rankings", floor),
        memory=True,
    )


def pixel_correlation() -> Part:
    """8 photos, 21 maps of 56 x 56, features of 192 channels."""
    maps, features = torch.rand(BATCH, CLASSES + 1, MAPS, MAPS), normal(BATCH, 192, MAPS, MAPS).requires_grad_()
    slope, flat = normal(BATCH, CLASSES + 1, MAPS, MAPS), normal(BATCH, 192, MAPS * MAPS)

    def of(form: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Any]:
        return lambda: gradients((form(maps, features) * slope).sum(), features)

    def floor() -> Any:
        """Half of the symmetric matrix, made twice, and one product with all of it."""
        for image in flat:
            for _ in range(2):
                block = image[:, : MAPS * MAPS // 2].T @ image
            image[:, : MAPS * MAPS // 2] @ block
            image[:, : MAPS * MAPS // 2] @ block

    return Part(
        of(functional.pixel_correlation),
        ("one matrix", of(tensors.pixel_correlation)),
        ("matrix products", floor),
        memory=True,
    )


def seam_losses() -> Part:
    """8 photos, maps of 56 x 56 and 16 x 16 compared at 448 and 128 px; classification, min-pooling, ER, ECR."""
    sizes = ((CROP, CROP), (VIEW, VIEW))
    cams = [normal(BATCH, CLASSES, side, side).requires_grad_() for side in (MAPS, VIEW_MAPS)]
    refined = [torch.rand(BATCH, CLASSES + 1, side, side).requires_grad_() for side in (MAPS, VIEW_MAPS)]
    of, leaves = tags(), [*cams, *refined]
    classify, pool = MultilabelSoftMargin(), MinPooling()
    er, ecr = EquivariantRegularization(), EquivariantCrossRegularization()

    def ours() -> Any:
        classification = sum(classify(maps, of, size=size) for maps, size in zip(cams, sizes, strict=True)) / 2
        small = [split_background(maps, 0) for maps in refined]
        pooled = sum(pool(maps, of, size=size) for maps, size in zip(small, sizes, strict=True)) / 2
        crossed = ecr(cams[0], refined[0], cams[1], refined[1], of, sizes=sizes)
        return gradients(classification + pooled + er(*cams, of, sizes=sizes) + crossed, *leaves)

    def literal() -> Any:
        large = [resize(maps[view], sizes[view]) for view in (0, 1) for maps in (cams, refined)]
        return gradients(sum(tensors.seam_losses(*large, of).values()), *leaves)

    def floor() -> Any:
        """The tagged classes' maps, raw and refined, to the size of the photos, read once, and back."""
        kept = [functional.tagged_channels(of, *pair)[1:] for pair in (cams, [r[:, 1:] for r in refined])]
        total = sum(resize(m, s).square().sum() for pair in kept for m, s in zip(pair, sizes, strict=True))
        return gradients(total, *leaves)

    return Part(ours, ("at full size", literal), ("resize of tagged maps, read once", floor), memory=True)


def csrm_contrast() -> Part:
    """8 photos, 21 classes, 256 channels, maps of 64 x 64, full memories, 256 queries of 50 negatives."""
    classes, side, width, options = CLASSES + 1, 64, 256, CSRM_PRESETS["official"]["contrast"]
    queries, negatives = options["queries"], options["negatives"]
    embeddings, teacher = normal(BATCH, width, side, side).requires_grad_(), normal(BATCH, width, side, side)
    labels = torch.randint(0, classes, (BATCH, side, side))
    sure = torch.full((BATCH, 1, side, side), 4.0)  # a teacher that is sure of most pixels' labels
    logits = (2 * normal(BATCH, classes, side, side)).scatter_add_(1, labels[:, None], sure)
    of = (torch.rand(BATCH, CLASSES) < 0.2).float()
    inputs = embeddings, teacher, logits, labels, of, torch.arange(BATCH) < BATCH // 2, 0.2
    bank = ClassMemoryBank(classes, width)
    loss = UnreliablePixelContrast(classes, width, **options, bank=bank)
    draws = ContrastDraws(torch.rand(classes, queries), torch.rand(classes, queries * negatives))
    memory = []
    for index, capacity in enumerate(bank.capacities):
        rows, members = torch.nn.functional.normalize(normal(capacity, width)), torch.zeros(capacity, classes)
        members[:, index] = 1
        bank.push(rows, members > 0)
        memory.append(rows.clone())
    stored, products = torch.cat(memory), normal(classes, queries, 1, width)
    drawn = torch.randint(len(stored), (classes, queries * negatives))

    def literal() -> Any:
        more = memory, list(bank.capacities)
        return gradients(csrm_literal.contrast(*inputs, *more, draws=(draws.queries, draws.negatives)), embeddings)

    def floor() -> None:
        """For each class the rows of the queries' negatives, their products, and the gradient's."""
        for index, of_class in zip(drawn, products, strict=True):
            rows = stored[index].view(queries, negatives, width)
            torch.bmm(torch.bmm(of_class, rows.mT), rows)

    return Part(
        lambda: gradients(loss(*inputs, draws=draws), embeddings),
        ("class by class", literal),
        ("the drawn rows and their products", floor),
    )


def entropy_quantile() -> Part:
    """8 maps of 512 x 512, of which three quarters count."""
    entropy, kept = torch.rand(BATCH, 512, 512), torch.rand(BATCH, 512, 512) < 0.75
    chosen = int(0.2 * (int(kept.sum()) - 1)) + 1
    return Part(
        lambda: [quantile(entropy, 0.2, kept)],
        ("sort", lambda: [tensors.entropy_quantile(entropy, kept, 0.2)]),
        ("`entropy[kept].kthvalue`", lambda: [entropy[kept].kthvalue(chosen).values]),
    )


def drawn_photo(side: int) -> Tensor:
    return as_photos(ShapesDataset("val", side, 1)[0]["image"][None])


def pixel_adaptive() -> Part:
    """21 maps of 320 x 320, 48 neighbours, 5 steps."""
    affinity = pixel_affinity(drawn_photo(320))
    maps = torch.rand(1, CLASSES + 1, 320, 320)

    def floor() -> None:
        """A product and a sum of each map with each neighbour's weights, in place."""
        total = torch.zeros_like(maps)
        for _ in range(5 * affinity.shape[1]):
            total.addcmul_(maps, affinity[:, :1])

    return Part(
        lambda: [propagate(maps, affinity, DILATIONS, 5)],
        ("a tensor of all neighbours", lambda: [tensors.pixel_adaptive(maps, affinity, DILATIONS, 5)]),
        ("48 x 5 `addcmul_`", floor),
        memory=True,
    )


def dense_crf() -> Part:
    """A drawn photo of 240 x 240, 21 labels, 10 steps."""
    photo = drawn_photo(240)
    labels = (photo.sum(dim=1) // 40).clamp(0, CLASSES).long()
    unaries = hard_unaries(labels, CLASSES + 1, 0.7)
    call = "pydensecrf2", lambda: [by_pydensecrf("deeplab", photo, unaries)]
    rows, columns = torch.meshgrid(torch.arange(240.0), torch.arange(240.0), indexing="ij")
    places, values = torch.stack([rows, columns], dim=-1).view(1, -1, 2), torch.rand(1, 240 * 240, CLASSES + 1)
    near = PermutohedralLattice(places / CRF_SETTINGS["deeplab"].gaussian[0])
    deviations = CRF_SETTINGS["deeplab"].bilateral

    def floor() -> None:
        """The photo's lattice, and ten filterings of 21 maps by each of two kernels."""
        colors = photo.flatten(2).mT.float() / deviations[1]
        alike = PermutohedralLattice(torch.cat([places / deviations[0], colors], dim=-1))
        for _ in range(10):
            near.filter(values)
            alike.filter(values)

    return Part(
        lambda: [by_torch("deeplab", photo, unaries)], call, ("a lattice and the filterings", floor), agree=0.05
    )


def multi_scale() -> Part:
    """8 photos of 240 x 320, four scales with mirror images."""
    module = CAM(CLASSES, weights=None).eval().to(memory_format=torch.channels_last)
    images, of = normal(BATCH, 3, 240, 320), torch.ones(BATCH, CLASSES)

    def together() -> Any:
        return [multi_scale_cams(module.seed_maps, images, of)]

    def apart() -> Any:
        photos = zip(images.split(1), of.split(1), strict=True)
        return [torch.cat([multi_scale_cams(module.seed_maps, *photo) for photo in photos])]

    @torch.no_grad()
    def floor() -> None:
        """The network's passes alone, a photo at a time."""
        for photo in images.split(1):
            for scale in (0.5, 1, 1.5, 2):
                module.seed_maps(resize(photo, (int(240 * scale), int(320 * scale))).expand(2, -1, -1, -1))

    return Part(
        together, ("one photo at a time", apart), ("the network's passes, a photo at a time", floor), agree=1e-3
    )


PARTS: dict[str, Callable[[], Part]] = {
    "PPC loss": ppc_loss,
    "PCM": pixel_correlation,
    "SEAM losses": seam_losses,
    "CSRM contrast": csrm_contrast,
    "entropy quantile": entropy_quantile,
    "PAR": pixel_adaptive,
    "dense CRF": dense_crf,
    "multi-scale inference": multi_scale,
}
