"""Reference values of PSA and IRN: pairs, affinities, losses and walks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from conformance_cases import Case, Cases, checks
from torch import Tensor

from wsss_contrast import functional, losses


@checks("psa_*.pt")
def psa_file(reference: Any, folder: Path) -> Cases:
    inputs, outputs, config = reference["inputs"], reference["outputs"], reference["config"]
    radius, size = config["radius"], (config["h"], config["w"])
    walk = {"beta": config["beta"], "logt": config["logt"]}

    def pairs(case: Case) -> None:
        features, labels = inputs["feat"].clone().requires_grad_(), inputs["label"].long()
        ours = pairs_of(functional.pair_labels(labels, radius), PAIRS)
        ours["aff"] = functional.feature_affinity(features, radius).flatten(2)
        ours |= dict(zip(("ind_from", "ind_to"), pair_indices(radius, *size), strict=True))
        terms = losses.SemanticAffinity(radius)(features, labels)
        ours |= {"bg_loss": 4 * terms["background"], "fg_loss": 4 * terms["foreground"]}
        ours |= {"neg_loss": 2 * terms["negative"], "loss": torch.stack(list(terms.values())).sum()}
        case.values(ours, outputs)
        case.gradients("loss", ours["loss"], {"feat": features}, {"feat": outputs["grad_feat"]})

    def walks(case: Case) -> None:
        affinity = functional.feature_affinity(inputs["feat"][:1], radius)
        case.values({"aff_dense": dense_affinity(affinity[0], radius, size)}, outputs)
        cams = inputs["cam_fullres"][None]
        stride = cams.shape[-1] // size[1]
        for name in ("pow6", "const"):
            background = functional.power_background(cams[:, 1:], 6)
            background = background if name == "pow6" else torch.full_like(background, 0.27)
            maps = F.avg_pool2d(functional.with_background(cams[:, 1:], background), stride)
            walked = functional.random_walk(maps, affinity, radius, **walk)
            labels = F.interpolate(walked, scale_factor=stride, mode="bilinear")[0].argmax(dim=0).byte()
            case.values({f"cam_down_{name}": maps[0], f"pred_{name}": labels}, outputs)
            expected = {"trans": outputs["trans"], "maps": outputs[f"rw_{name}"]}
            check_walk(case, name, maps, affinity, radius, walk, expected)

    return {"affinity and loss": pairs, "walk": walks}


@checks("irn_*.pt")
def irn_file(reference: Any, folder: Path) -> Cases:
    inputs, outputs, config = reference["inputs"], reference["outputs"], reference["config"]
    radius, size = config["radius_train"], (config["h"], config["w"])
    offsets = functional.affinity_offsets(radius)

    def pairs(case: Case) -> None:
        """The reference has its offsets in groups of like length of path."""
        edges, displacements = (inputs[name].clone().requires_grad_() for name in ("edge_logit", "dp"))
        labels = inputs["label"].long()
        lengths = [len(functional.segment_pixels(offset)) for offset in offsets]
        order = sorted(range(len(offsets)), key=lambda index: lengths[index])
        start, end = pair_indices(radius, *size)
        groups = [[lengths.count(n), n, start.numel()] for n in sorted(set(lengths))]
        ours = pairs_of(functional.pair_labels(labels, radius), IRN_PAIRS, order)
        ours["affinity"] = functional.edge_affinity(edges, radius)[:, order].flatten(2)
        ours |= {"search_dst": torch.tensor(offsets)[order], "n_paths": torch.tensor(groups)}
        ours |= {"src_indices": start, "dst_indices": end.view(len(offsets), -1)[order]}
        terms = losses.InterPixelRelations(radius)(edges, displacements, labels)
        ours |= {
            "pos_aff_loss": 2 * (terms["background"] + terms["foreground"]),
            "neg_aff_loss": 2 * terms["negative"],
            "dp_fg_loss": 2 * terms["displacement_foreground"],
            "dp_bg_loss": 2 * terms["displacement_background"],
            "total": torch.stack(list(terms.values())).sum(),
        }
        case.values(ours, dict(outputs, n_paths=torch.as_tensor(outputs["n_paths"])))
        leaves = {"edge": edges, "dp": displacements}
        case.gradients("total", ours["total"], leaves, {name: outputs[f"grad_{name}"] for name in leaves})

    def walk(case: Case) -> None:
        edges, options = inputs["edge_logit"][:1], {"beta": config["beta"], "logt": config["exp_times"]}
        affinity = functional.edge_affinity(edges, config["radius_infer"], whole_map=True)
        maps = inputs["cam"][None] * (1 - edges.sigmoid())
        expected = {"maps": outputs["rw"][:, 0]}
        check_walk(case, "rw", maps, affinity, config["radius_infer"], options, expected)

    return {"affinity and losses": pairs, "walk": walk}


PAIRS = ("bg_label", "fg_label", "neg_label")
IRN_PAIRS = ("bg_pos", "fg_pos", "neg")


def pairs_of(labels: functional.PairLabels, names: tuple[str, ...], order: Any = slice(None)) -> dict[str, Tensor]:
    """The masks by their names in a file, as (N, offsets, F) numbers."""
    return {name: mask[:, order].flatten(2).float() for name, mask in zip(names, labels, strict=True)}


def pair_indices(radius: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The numbers of the first (F,) and of the second pixels (offsets F,), of pixels counted row by row."""
    reach = radius - 1
    pixels = torch.arange(height * width).view(height, width)
    start = pixels[: height - reach, reach : width - reach].flatten()
    return start, torch.cat([start + down * width + right for down, right in functional.affinity_offsets(radius)])


def dense_affinity(affinity: Tensor, radius: int, size: tuple[int, int]) -> Tensor:
    """The matrix (h w, h w) of affinities (offsets, h', w') of some or all first pixels."""
    height, width = size
    if affinity.shape[1:] != size:
        affinity = F.pad(affinity, (radius - 1, radius - 1, 0, radius - 1))
    pixels, dense = torch.arange(height * width).view(size), torch.eye(height * width)
    for values, (down, right) in zip(affinity, functional.affinity_offsets(radius), strict=True):
        rows, columns = slice(0, max(height - down, 0)), slice(max(-right, 0), max(width - max(right, 0), 0))
        start = pixels[rows, columns]
        end = start + down * width + right
        dense[start, end] = dense[end, start] = values[rows, columns]
    return dense


def check_walk(
    case: Case,
    name: str,
    maps: Tensor,
    affinity: Tensor,
    radius: int,
    options: Mapping[str, Any],
    expected: Mapping[str, Tensor],
) -> None:
    """The library's affinities as a dense matrix give the reference, squared in float32, and its walk, in float64.

    Each squaring in float32 doubles the error: IRN's eight leave 7e-5 of the largest value, more than the tolerance.
    """
    affinities = dense_affinity(affinity[0], radius, (maps.shape[-2], maps.shape[-1]))
    powers = []
    for dtype in (torch.float32, torch.float64):
        power = affinities.to(dtype) ** options["beta"]
        power = power / power.sum(dim=0)
        for _ in range(options["logt"]):
            power = power @ power
        powers.append(power)
    single, double = powers
    found = {"trans": single, "maps": (maps[0].flatten(1) @ single).view_as(maps[0])}
    case.values(
        {f"{name}: {key}": found[key] for key in expected}, {f"{name}: {key}": expected[key] for key in expected}
    )
    walked = functional.random_walk(maps, affinity, radius, **options)[0].flatten(1)
    case.values({f"{name}: walk": walked}, {f"{name}: walk": maps[0].double().flatten(1) @ double})
