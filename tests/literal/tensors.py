"""The equations as one writes them down with whole tensors, for sizes at which a loop over pixels takes hours.

This is the usual form of research code: everything is made at full size, and class by class where the equation says
"for each class". The benchmarks measure against these readings, the tests hold them to the pixel-wise ones.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5


def pixel_correlation(maps: Tensor, features: Tensor) -> Tensor:
    """Eq. 4 of SEAM: every pixel takes the maps of those that it resembles."""
    flat = features.flatten(2)
    unit = flat / (flat.norm(dim=1, keepdim=True) + EPS)
    affinity = F.relu(torch.matmul(unit.transpose(1, 2), unit))
    affinity = affinity / (affinity.sum(dim=1, keepdim=True) + EPS)
    return torch.matmul(maps.flatten(2), affinity).view_as(maps)


def max_norm(maps: Tensor) -> Tensor:
    """Each map to [0, 1) over its pixels."""
    positive = F.relu(maps)
    high, low = positive.amax(dim=(2, 3), keepdim=True), positive.amin(dim=(2, 3), keepdim=True)
    return F.relu((positive - low - EPS) / (high - low + EPS))


def one_class_a_pixel(maps: Tensor) -> Tensor:
    """The background's channel is 1 - the largest of the others, of which only the largest stay."""
    foreground = maps[:, 1:]
    largest = foreground.amax(dim=1, keepdim=True)
    return torch.cat([1 - largest, foreground * (foreground == largest)], dim=1)


def seam_losses(
    source_cams: Tensor, source_refined: Tensor, target_cams: Tensor, target_refined: Tensor, tags: Tensor
) -> dict[str, Tensor]:
    """Eqs. 7 to 9 of SEAM and the min-pooling of its code, of maps at the size of their photos, background first."""
    with_one = torch.cat([torch.ones_like(tags[:, :1]), tags], dim=1)[:, :, None, None]
    cams = [F.pad(maps, (0, 0, 0, 0, 1, 0)) for maps in (source_cams, target_cams)]  # a channel for the background
    size = target_cams.shape[2:]

    def moved(maps: Tensor) -> Tensor:
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)

    normed = [moved(max_norm(maps)) * with_one for maps in cams]
    refined = [moved(max_norm(maps)) * with_one for maps in (source_refined, target_refined)]
    fixed = [one_class_a_pixel(maps.detach()) for maps in normed]
    differences = [(fixed[1] - refined[0]).abs(), (fixed[0] - refined[1]).abs()]
    hardest = int(0.2 * differences[0][0].numel())
    pooled = []
    for maps in (source_refined, target_refined):
        darkest = F.relu((maps[:, 1:] * with_one[:, 1:]).amax(dim=1)).flatten(1)
        pooled.append(darkest.topk(darkest.shape[1] // 4, largest=False).values.mean())
    logits = [F.adaptive_avg_pool2d(maps, 1).flatten(1) for maps in (source_cams, target_cams)]
    return {
        "classification": sum(F.multilabel_soft_margin_loss(x, tags) for x in logits) / 2,
        "min_pooling": (pooled[0] + pooled[1]) / 2,
        "er": (normed[0] - normed[1])[:, 1:].abs().mean(),
        "ecr": sum(x.flatten(1).topk(hardest).values.mean() for x in differences),
    }


def _labels_and_scores(cams: Tensor, tags: Tensor, background_score: float) -> tuple[Tensor, Tensor]:
    """Eq. 4 of PPC: the class of each pixel (P,), and (P, C) how sure it is of each, 0 for classes it is not of."""
    foreground = max_norm(cams) * tags[:, :, None, None]
    background = torch.full_like(foreground[:, :1], background_score)
    labels = torch.cat([background, foreground], dim=1).max(dim=1).indices.flatten()
    sure = torch.cat([1 - foreground.amax(dim=1, keepdim=True), foreground], dim=1)
    return labels, sure.movedim(1, -1).flatten(0, -2)


def prototype_contrast(
    source_embeddings: Tensor,
    source_cams: Tensor,
    target_embeddings: Tensor,
    target_cams: Tensor,
    tags: Tensor,
    pixel_draws: Tensor,
    prototype_draws: Tensor,
    top_k: int = 32,
    temperature: float = 0.1,
    background_score: float = 0.2,
    hard_ratio: float = 0.6,
) -> dict[str, Tensor]:
    """Eqs. 4 to 9 of PPC: prototypes and intra-view samples class by class, and a row of logits a pixel.

    ``pixel_draws`` (2, P) and ``prototype_draws`` (2, P, C) are the random numbers of both views.
    """
    size, classes = target_embeddings.shape[2:], tags.shape[1] + 1
    views = []
    for embeddings, cams in ((source_embeddings, source_cams), (target_embeddings, target_cams)):
        resized = [F.interpolate(x, size=size, mode="bilinear", align_corners=True) for x in (embeddings, cams)]
        pixels = F.normalize(resized[0], dim=1).movedim(1, -1).flatten(0, -2)
        with torch.no_grad():
            labels, sure = _labels_and_scores(resized[1], tags, background_score)
            prototypes = {}
            for c in range(classes):
                own = (labels == c).nonzero()[:, 0]
                if len(own):
                    best = own[sure[own, c].sort(descending=True, stable=True).indices[:top_k]]
                    weighted = (sure[best, c, None] * pixels[best]).sum(dim=0) / sure[best, c].sum()
                    prototypes[c] = F.normalize(weighted, dim=0)
        views.append((pixels, labels, prototypes))

    def nll(pixels: Tensor, labels: Tensor, prototypes: dict[int, Tensor]) -> Tensor:
        """Eq. 6: each pixel against every prototype there is."""
        found = [torch.zeros((), dtype=pixels.dtype)]
        for c, own in prototypes.items():
            mine = pixels[labels == c]
            others = [vector for index, vector in prototypes.items() if index != c]
            logits = torch.stack([F.cosine_similarity(mine, vector[None]) for vector in [own, *others]], dim=1)
            found.append((torch.logsumexp(logits / temperature, dim=1) - logits[:, 0] / temperature).sum())
        return sum(found) / max(int(sum((labels == c).sum() for c in prototypes)), 1)

    def intra(view: int) -> Tensor:
        """Eq. 9: half of a class's pixels at random and the hardest half, each against semi-hard prototypes."""
        pixels, labels, prototypes = views[view]
        found, count = torch.zeros((), dtype=pixels.dtype), 0
        for c, own in prototypes.items():
            index = (labels == c).nonzero()[:, 0]
            if not len(index):
                continue
            half = math.ceil(len(index) / 2)
            similar = F.cosine_similarity(pixels[index], own[None])
            at_random = pixel_draws[view][index].argsort(stable=True)[:half]
            hardest = similar.detach().argsort(stable=True)[:half]
            chosen = index[torch.cat([at_random, hardest])]
            others = [k for k in prototypes if k != c]
            positive = F.cosine_similarity(pixels[chosen], own[None]) / temperature
            terms = [positive]
            if others:
                every = torch.stack([F.cosine_similarity(pixels[chosen], prototypes[k][None]) for k in others], dim=1)
                hard = math.ceil(hard_ratio * len(others))
                order = every.detach().argsort(dim=1, descending=True, stable=True)[:, :hard]
                keys = prototype_draws[view][chosen][:, others].gather(1, order)
                # Ties of random numbers aside, the order within the hard ones does not matter.
                kept = order.gather(1, keys.argsort(dim=1)[:, : max(len(others) // 2, 1)])
                terms += list((every.gather(1, kept) / temperature).unbind(dim=1))
            found = found + (torch.logsumexp(torch.stack(terms, dim=1), dim=1) - positive).sum()
            count += len(chosen)
        return found / max(count, 1)

    (first, labels1, prototypes1), (second, labels2, prototypes2) = views
    return {
        "cross_prototype": 0.1 * (nll(first, labels1, prototypes2) + nll(second, labels2, prototypes1)),
        "cross_cam": 0.1 * (nll(first, labels2, prototypes1) + nll(second, labels1, prototypes2)),
        "intra_view": 0.1 * (intra(0) + intra(1)),
    }


def entropy_quantile(entropy: Tensor, kept: Tensor, share: float) -> Tensor:
    """The quantile of the entropies of the pixels that are kept: they are copied out, and sorted."""
    values = entropy[kept].sort().values
    place = share * (len(values) - 1)
    low, high = math.floor(place), math.ceil(place)
    return values[low] + (values[high] - values[low]) * (place - low)


def pixel_adaptive(maps: Tensor, affinity: Tensor, dilations: tuple[int, ...], steps: int) -> Tensor:
    """Eq. 9 of AFA: a tensor of all neighbours of all classes' maps in each step."""
    reach = max(dilations)
    height, width = maps.shape[2:]
    around = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    offsets = [(d * y, d * x) for d in dilations for y, x in around]
    for _ in range(steps):
        padded = F.pad(maps, [reach] * 4, mode="replicate")
        neighbours = [padded[..., reach + y : reach + y + height, reach + x : reach + x + width] for y, x in offsets]
        maps = (torch.stack(neighbours, dim=2) * affinity[:, None]).sum(dim=2)
    return maps
