"""Reference values of SEAM and pixel-to-prototype contrast, and of their inference, metric and optimiser."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from conformance_cases import Case, Cases, Check, checks
from torch import Tensor, nn

from wsss_contrast import functional, losses
from wsss_contrast.metrics import SeedMIoU
from wsss_contrast.modules import parameter_groups, poly_decay
from wsss_contrast.nn import PixelCorrelationModule, Projector, ResNet38d  # noqa: F401 (registers it with timm)
from wsss_contrast.refine import (
    CRF_SETTINGS,
    CRFSettings,
    hard_unaries,
    mean_field,
    merge_scales,
    multi_scale_cams,
    soft_unaries,
)

IN_TORCH = "in torch: "
CRF_TOLERANCE = 1e-3  # of ten steps over another order of the same sums

# --- SEAM and pixel-to-prototype contrast --------------------------------------------------------------


@checks("ppc_*.pt")
def ppc_file(reference: Any, folder: Path) -> Cases:
    r = reference
    return {
        "seam": lambda case: check_seam(case, r),
        "ppc functions": lambda case: check_functions(case, contrast_of(r), r["ppc"], OF_PPC),
        "ppc module": lambda case: check_module(case, contrast_of(r), r["ppc"], r["ppc_grad"]),
    }


@checks("eps_*.pt")
def eps_file(reference: Any, folder: Path) -> Cases:
    r = reference
    return {
        "ppc functions": lambda case: check_functions(case, contrast_of(r), r["ppc"], OF_EPS),
        "ppc module": lambda case: check_module(case, contrast_of(r), r["ppc"], {"total_w": r["ppc_grad_total"]}),
        "saliency": lambda case: check_saliency(case, r),
        "seam": lambda case: check_eps_variant(case, r),
    }


@checks("ppc_stable_ties.pt")
def stable_ties_file(reference: Any, folder: Path) -> Cases:
    """The outputs of sibling files, which hold the inputs, with ties broken by the lowest index."""

    def of_sibling(path: Path, ppc: Mapping[str, Any]) -> Check | str:
        def check(case: Case) -> None:
            contrast = contrast_of(torch.load(path, weights_only=True))
            start = "grad_total_"
            gradients = {key.removeprefix(start): ppc[key] for key in ppc if key.startswith(start)}
            check_functions(case, contrast, ppc, OF_STABLE_TIES, stable=True)
            # The largest case has no gradients.
            check_module(case, contrast, ppc, {"total_w": gradients} if gradients else {}, stable=True)

        return check if path.is_file() else f"skipped: its inputs are in {path.name}, which is not there"

    return {name: of_sibling(folder / f"{name}.pt", ppc) for name, ppc in reference.items()}


@dataclass(frozen=True)
class Contrast:
    """The inputs of PPC: of both views the embeddings and the maps, and the options of the loss."""

    embeddings: list[Tensor]
    cams: list[Tensor]
    tags: Tensor
    options: dict[str, Any]


def contrast_of(reference: Mapping[str, Any]) -> Contrast:
    """The inputs of a file of the SEAM host (background first) or of the EPS host (background last)."""
    inputs, config, eps = reference["inputs"], reference["config"], "eps" in reference
    maps, name = (reference["seam_eps_variant"], "cam_rv") if eps else (reference["seam"], "cam_rv_down")
    options = {f"{term}_weight": config["gamma" if eps else "weight"] for term in TERMS.values()} | {
        "temperature": config["tau_nce" if eps else "tau"],
        "top_k": config["K"],
        "background": -1 if eps else 0,
        "background_score": config["bg_threshold"],
        "compat": "official",
    }
    embeddings, cams = [inputs["f_proj1"], inputs["f_proj2"]], [maps[f"{name}1"], maps[f"{name}2"]]
    return Contrast(embeddings, cams, inputs["label20"], options)


TERMS = {"cross_proto_w": "cross_prototype", "cross_cam_w": "cross_cam", "intra_w": "intra_view"}
OF_STABLE_TIES = {"top_values", "top_indices", "prototypes", "hard_idx", "loss_cp", "loss_cc", "loss_intra"}
OF_EPS = OF_STABLE_TIES | {"cam_norm_ppc", "pseudo_label", "class_count", "neg_idx"}
OF_PPC = OF_EPS | {"v", "intra_pos_sim", "intra_nll", "loss_intra_plain"}


def random_half(contrast: Contrast, ppc: Mapping[str, Any]) -> Tensor:
    """(2, P) numbers, 0 for the pixels of the reference's random halves and else 1."""
    keys = torch.ones(2, contrast.embeddings[1][:, 0].numel())
    for view in (0, 1):
        for pixels in ppc[f"rand_idx{view + 1}"].values():
            keys[view, pixels] = 0.0
    return keys


def check_functions(case: Case, contrast: Contrast, ppc: Any, names: set[str], stable: bool = False) -> None:
    """The steps of PPC, unweighted and by view. ``stable``: prototypes of the library's own candidates.

    Sets of indices are compared by the scores of their members: those of equal score may stand for each other.
    """
    tags, o, keys = contrast.tags, contrast.options, random_half(contrast, ppc)
    size = (contrast.embeddings[1].shape[-2], contrast.embeddings[1].shape[-1])
    labels, units, prototypes = [], [], []
    ours: dict[str, Tensor] = {}
    expected: dict[str, Any] = dict(ppc)
    for n, embeddings, cams in zip("12", contrast.embeddings, contrast.cams, strict=True):
        features = functional.resize(embeddings, size)
        cams = functional.resize(functional.split_background(cams, o["background"]), size)
        y, scores = functional.candidate_scores_official(cams, tags, o["background_score"], o["background"])
        reference_top, by_class = ppc[f"top_indices{n}"], scores.movedim(1, 0).flatten(1)
        pixel_numbers = torch.arange(y.numel()).view_as(y)[:, None]  # as features, they tell who was chosen
        top_values, top = functional.top_candidates(pixel_numbers, scores, o["top_k"])
        chosen = functional.top_candidates(features, scores, o["top_k"], None if stable else reference_top)
        prototypes.append(functional.estimate_prototypes(*chosen)[0])
        units.append(F.normalize(features, dim=1).movedim(1, -1).flatten(0, -2))
        labels.append(y.flatten())
        ours |= {f"cam_norm_ppc{n}": scores, f"pseudo_label{n}": y, f"top_values{n}": top_values}
        ours |= {f"v{n}": units[-1], f"prototypes{n}": prototypes[-1]}
        ours[f"top_indices{n}"] = by_class.gather(1, top[..., 0])
        expected[f"top_indices{n}"] = by_class.gather(1, reference_top)
        if stable:
            tied = ours[f"top_indices{n}"] == expected[f"top_indices{n}"]
            case.values({f"ties{n}": top[..., 0] * tied}, {f"ties{n}": reference_top * tied})

    classes = len(prototypes[0])

    def nll(view: int, bank: int, y: Tensor, negatives: Tensor | None = None) -> Tensor:
        if negatives is None:
            negatives = functional.all_negatives(y, torch.ones(classes, dtype=torch.bool))
        return functional.pixel_to_prototype_nll(units[view] @ prototypes[bank].T / o["temperature"], y, negatives)

    for i, n in enumerate("12"):
        y, cosines = labels[i], units[i] @ prototypes[i].T
        similarity = cosines.gather(1, y[:, None])[:, 0]
        negatives = functional.semi_hard_negatives_official(cosines)
        mined = nll(i, i, y, negatives)
        times, count = functional.sample_pixels_official(similarity, y, keys[i], classes)
        hard = times > (keys[i] == 0).long()
        ours |= {f"intra_pos_sim{n}": similarity, f"intra_nll{n}": mined}
        ours |= {f"loss_cp{n}": nll(i, 1 - i, y).mean(), f"loss_cc{n}": nll(i, i, labels[1 - i]).mean()}
        ours[f"loss_intra{n}"] = (mined * times / (count // 2 * 2).clamp_min(1)[y]).sum() / (count > 0).sum()
        ours[f"loss_intra_plain{n}"] = nll(i, i, y).mean()
        ours[f"hard_idx{n}"] = torch.cat([similarity[hard & (y == k)].sort().values for k in range(classes)])
        sampled = ppc[f"hard_idx{n}"]
        expected[f"hard_idx{n}"] = torch.cat([similarity[sampled[k]].sort().values for k in sorted(sampled)])
        if "neg_idx" in names:
            ours[f"neg_idx{n}"] = cosines[negatives].view(len(y), -1).sort().values
            expected[f"neg_idx{n}"] = cosines.gather(1, ppc[f"neg_idx{n}"]).sort().values
        if "class_count" in names:  # classes of less than two pixels may be missing
            counts, few = ppc[f"class_count{n}"], count.clamp_max(1).tolist()
            ours[f"class_count{n}"] = count
            expected[f"class_count{n}"] = torch.tensor([counts.get(k, few[k]) for k in range(classes)])
    case.values({name: value for name, value in ours.items() if name[:-1] in names}, expected)


def check_module(case: Case, contrast: Contrast, ppc: Any, gradients: Any, stable: bool = False) -> None:
    """PPC's weighted terms from the loss module, and their gradients."""
    f1, f2, c1, c2 = (x.clone().requires_grad_() for x in (*contrast.embeddings, *contrast.cams))
    keys = random_half(contrast, ppc)
    draws = losses.PixelDraws(keys, torch.zeros(*keys.shape, c1.shape[1]))
    indices = None if stable else (ppc["top_indices1"], ppc["top_indices2"])

    def terms(**options: Any) -> dict[str, Tensor]:
        loss = losses.PrototypeContrast(**contrast.options, **options)
        return dict(loss(f1, c1, f2, c2, contrast.tags, draws=draws, candidate_indices=indices))

    found = terms()
    ours = {name: found[term] for name, term in TERMS.items()}
    ours["total_w"] = torch.stack(list(found.values())).sum()
    case.values({f"loss_{name}": value for name, value in ours.items()}, ppc)
    for name, reference in gradients.items():
        case.gradients(name, ours[name], {"f_proj1": f1, "f_proj2": f2}, reference)
    to_maps = torch.autograd.grad(ours["total_w"], (c1, c2), retain_graph=True, allow_unused=True)
    case.wrong["gradients to the maps"] = sum(gradient is not None for gradient in to_maps)
    if "loss_intra_plain1" in ppc:  # Eq. 9 without mining
        mean = (ppc["loss_intra_plain1"] + ppc["loss_intra_plain2"]) / 2
        plain = terms(mine_prototypes=False, sample_pixels=False)["intra_view"]
        case.values({"plain": plain}, {"plain": contrast.options["intra_view_weight"] * mean})


def check_seam(case: Case, reference: Mapping[str, Any]) -> None:
    """SEAM's maps, losses and gradients at image resolution."""
    inputs, tags, config = reference["inputs"], reference["inputs"]["label20"], reference["config"]
    names = ("cam_logit1", "cam_logit2", "pcm_feat1", "pcm_feat2")
    leaves = {name: inputs[name].clone().requires_grad_() for name in names}
    ours: dict[str, Tensor] = {}
    cams, refined = [], []
    for n in "12":
        logits, size = leaves[f"cam_logit{n}"], tuple(config[f"img_hw{n}"])
        ours[f"cam_norm{n}"] = functional.correlation_input(logits[:, 1:])
        ours[f"cam_rv_down{n}"] = functional.pixel_correlation(ours[f"cam_norm{n}"], leaves[f"pcm_feat{n}"])
        ours[f"pred{n}"] = functional.global_average_pool(functional.resize(logits, size))
        cams.append(functional.resize(logits, size)[:, 1:])
        refined.append(functional.resize(ours[f"cam_rv_down{n}"], size))
        ours[f"loss_cls{n}"] = losses.MultilabelSoftMargin()(cams[-1], tags)
        ours[f"loss_rvmin{n}"] = losses.MinPooling()(refined[-1][:, 1:], tags)
    parts = [ours[f"loss_{kind}{n}"] for kind in ("cls", "rvmin") for n in "12"]
    ours["loss_cls"] = torch.stack(parts).sum() / 2
    ours["loss_er"] = losses.EquivariantRegularization()(*cams, tags)
    ours["loss_ecr"] = losses.EquivariantCrossRegularization()(cams[0], refined[0], cams[1], refined[1], tags)
    case.values(ours, reference["seam"])
    for name in ("loss_cls", "loss_er", "loss_ecr"):
        case.gradients(name, ours[name], leaves, reference["seam_grad"][name])


def check_saliency(case: Case, reference: Mapping[str, Any]) -> None:
    """EPS's loss of raw and of refined maps, with its gradient."""
    inputs, tags, variant = reference["inputs"], reference["inputs"]["label20"], reference["seam_eps_variant"]
    maps = {f"cam{n}": inputs[f"cam_logit{n}"] for n in "12"} | {f"rv{n}": variant[f"cam_rv{n}"] for n in "12"}
    for name, expected in reference["eps"].items():
        kind = name.split("_")[0]
        cams = maps[kind].clone().requires_grad_()
        saliency = inputs["saliency2" if kind.endswith("2") else "saliency"]
        loss = losses.SaliencyLoss(expected["tau"], expected["lam"])
        settings = (loss.overlap_threshold, loss.mixing, loss.background)
        small = functional.nearest_labels(saliency[:, 0], (cams.shape[-2], cams.shape[-1]))
        estimate = functional.estimate_saliency(cams, tags, small, *settings)
        ours = {"pred": estimate.saliency, "fg_map": estimate.foreground, "bg_map": 1 - estimate.background}
        ours = {key: value[:, None] for key, value in ours.items()}
        ours |= {"overlap": estimate.overlap, "loss": loss(cams, tags, saliency)}
        labelled = {f"{name} {key}": value for key, value in ours.items()}
        case.values(labelled, {f"{name} {key}": expected[key] for key in ours})
        case.gradients(f"{name} loss", ours["loss"], {"cam": cams}, {"cam": expected["grad_cam"]})


def check_eps_variant(case: Case, reference: Mapping[str, Any]) -> None:
    """SEAM's terms at the features' size, the background last; but ECR, which has a defect there."""
    inputs, tags = reference["inputs"], reference["inputs"]["label20"]
    ours: dict[str, Tensor] = {}
    cams = []
    for n in "12":
        cams.append(inputs[f"cam_logit{n}"][:, :-1])
        # Background first here, last there.
        refined = functional.pixel_correlation(functional.correlation_input(cams[-1]), inputs[f"pcm_feat{n}"])
        ours[f"cam_rv{n}"] = functional.with_background(refined[:, 1:], refined[:, :1], -1)
        ours[f"loss_cls{n}"] = losses.MultilabelSoftMargin()(cams[-1], tags)
        ours[f"loss_rvmin{n}"] = losses.MinPooling()(refined[:, 1:], tags)
    ours["loss_er"] = losses.EquivariantRegularization()(*cams, tags)
    case.values(ours, reference["seam_eps_variant"])


# --- ResNet38d -----------------------------------------------------------------------------------------


@checks("resnet38d_contrast_fwd.pt")
def resnet38d_file(reference: Any, folder: Path) -> Cases:
    def weights(name: str, shape: Sequence[int]) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) & 0x7FFFFFFF)
        if name.endswith("num_batches_tracked"):
            return torch.zeros((), dtype=torch.long)
        if len(shape) == 4:
            return torch.randn(shape, generator=generator) * (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
        if name.endswith("running_var"):
            return 0.5 + torch.rand(shape, generator=generator)
        if name.endswith("weight"):
            return 0.3 + 0.4 * torch.rand(shape, generator=generator)
        return 0.1 * torch.randn(shape, generator=generator)

    def load(module: nn.Module, names: Mapping[str, str], shapes: Mapping[str, Sequence[int]]) -> None:
        module.load_state_dict({ours: weights(theirs, shapes[theirs]) for ours, theirs in names.items()})

    @torch.no_grad()
    def forward(case: Case) -> None:
        net, image = timm.create_model("resnet38d", num_classes=0).eval(), reference["input"]
        shapes = {name: tuple(shape) for name, shape in reference["param_shapes"].items()}
        heads = {"fc8", "fc_proj", "f8_3", "f8_4", "f9"}
        load(net, {name: name for name in shapes if name.split(".")[0] not in heads}, shapes)
        pcm, projector = PixelCorrelationModule((512, 1024)), Projector(4096)
        of_pcm = {"reduce.0.weight": "f8_3.weight", "reduce.1.weight": "f8_4.weight", "embed.weight": "f9.weight"}
        load(pcm, of_pcm, shapes)
        load(projector, {"0.weight": "fc_proj.weight"}, shapes)
        last, maps = net.forward_intermediates(image, [2, 3, 4, 5])
        cams = F.conv2d(last, weights("fc8.weight", shapes["fc8.weight"]))
        refined = pcm(cams[:, 1:], image, maps[1:3])
        ours = {f"conv{number}": level for number, level in zip((3, 4, 5, 6), maps, strict=True)}
        ours |= {"f_proj": projector(last), "cam_rv_down": refined}
        for name, of_name in (("cam_fullres_sub", cams), ("cam_rv_fullres_sub", refined)):
            ours[name] = functional.resize(of_name, (image.shape[-2], image.shape[-1]))[..., ::8, ::8]
        case.values(ours, reference)

    def groups(case: Case) -> None:
        net = timm.create_model("resnet38d", num_classes=0)
        names = {id(p): name for name, p in net.named_parameters()}
        for stage in net.frozen_stages:
            net.get_submodule(stage).requires_grad_(False)
        for layer in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
            layer.requires_grad_(False)
        frozen = {name for name, p in net.named_parameters() if not p.requires_grad and "conv" in name}
        (learning,) = parameter_groups(net, [], 0.01, 5e-4)
        case.wrong["frozen"] = len(frozen ^ set(reference["frozen"]))
        case.wrong["learning"] = len({names[id(p)] for p in learning["params"]} ^ set(reference["param_groups"][0]))

    return {"forward": forward, "parameter groups": groups}


# --- inference, metric, optimiser ----------------------------------------------------------------------


@checks("ms_cam_merge.pt")
def merge_file(reference: Any, folder: Path) -> Cases:
    tags, size = reference["label20"][None], tuple(reference["orig_size"])
    maps = [maps[:, 1:] for maps in reference["net_out"]]

    def compare(case: Case, merged: Tensor) -> None:
        saved = reference["cam_dict"]
        case.values({"norm_cam": merged[0], "pred_026": functional.assign_pixels(merged, tags, 0.26)[0]}, reference)
        case.values({"classes": tags[0].nonzero()[:, 0]}, {"classes": torch.tensor(sorted(saved))})
        case.values({f"map {k}": merged[0, k] for k in saved}, {f"map {k}": saved[k] for k in saved})

    def inference(case: Case) -> None:
        photo = torch.linspace(0, 1, size[1]).expand(1, 3, *size)  # a ramp: it tells if it is mirrored
        asked: list[int] = []

        def host(images: Tensor) -> Tensor:
            scale = min(enumerate(reference["scales"]), key=lambda s: abs(s[1] * size[1] - images.shape[-1]))[0]
            numbers = [2 * scale + int(image[0, 0, 0] > image[0, 0, -1]) for image in images]
            asked.extend(numbers)
            return torch.cat([maps[number] for number in numbers])

        compare(case, multi_scale_cams(host, photo, tags, reference["scales"]))
        case.values({"asked": torch.tensor(sorted(asked))}, {"asked": torch.arange(len(maps))})

    def eps(case: Case) -> None:
        # EPS's maps are probabilities. Those of the file are not, and the library's `max` takes no negative ones.
        merged = merge_scales(unflipped, tags, size, normalize="max")
        case.values({"eps": merged[0]}, {"eps": reference["eps_norm_cam"].clamp(min=0)})

    unflipped = [m.flip(-1) if i % 2 else m for i, m in enumerate(maps)]
    return {
        "merge": lambda case: compare(case, merge_scales(unflipped, tags, size)),
        "multi-scale": inference,
        "EPS merge": eps,
    }


@checks("eval_curve.pt")
def curve_file(reference: Any, folder: Path) -> Cases:
    def check(case: Case) -> None:
        thresholds = [round(float(t), 6) for t in reference["thresholds"]]
        metric = SeedMIoU(20, thresholds, count_absent=True)
        for name in reference["names"]:
            truth = reference["gts"][name]
            cams = torch.zeros(1, 20, *truth.shape)
            for k, values in reference["cams"][name].items():
                cams[0, k] = values
            metric.update(cams, truth[None])
        curve = metric.compute()
        percent = 100 * torch.cat([curve.iou.nan_to_num(0.0), curve.miou[:, None]], dim=1)
        case.values({"curve": percent}, reference)
        case.values({"best": torch.tensor(curve.best)}, {"best": reference["curve"][:, -1].argmax()})

    return {"curve": check}


@checks("densecrf.pt")
def dense_crf_file(reference: Any, folder: Path) -> Cases:
    """Names are UNARY_SXY_SRGB_tITERATIONS, where a label unary has its number of classes."""
    photo, scores = reference["img"], reference["prob"]

    def inputs(name: str) -> tuple[Tensor, CRFSettings]:
        kind, *numbers = name.removesuffix("_pairwiseEnergy").split("_")
        settings = CRF_SETTINGS["deeplab"]
        if kind != "deeplabv2":
            sxy, srgb, iterations = (int(number.lstrip("t")) for number in numbers)
            settings = CRFSettings((sxy, srgb, 10), iterations=iterations, rows_first=name.endswith("Energy"))
        classes = int(kind.removeprefix("label")) if kind.startswith("label") else 0
        labels = reference[kind].numpy() if classes else None
        unaries = soft_unaries(scores.numpy()) if labels is None else hard_unaries(labels, classes, 0.7)
        return torch.from_numpy(unaries), settings

    def by_pydensecrf(case: Case) -> None:
        unaries, settings = inputs(case.name)
        found = mean_field(photo.numpy(), unaries.numpy(), settings)
        case.values({case.name: torch.from_numpy(found)}, reference)

    def by_torch(case: Case) -> None:
        name, case.tolerance = case.name.removeprefix(IN_TORCH), CRF_TOLERANCE
        unaries, settings = inputs(name)
        kernels = settings.bilateral, settings.gaussian
        photos, rest = photo.permute(2, 0, 1)[None], (settings.iterations, settings.rows_first)
        case.values({name: functional.dense_crf(photos, unaries[None], *kernels, *rest)[0]}, reference)

    names = [name for name in reference if "_t" in name]
    cases: Cases = dict.fromkeys(
        names, by_pydensecrf if find_spec("pydensecrf") else "skipped: the extra `crf` is not installed"
    )
    return cases | dict.fromkeys((IN_TORCH + name for name in names), by_torch)


@checks("poly_sgd.pt")
def optimiser_file(reference: Any, folder: Path) -> Cases:
    def check(case: Case) -> None:
        weights = [nn.Parameter(value.clone()) for value in reference["traj"][0][:2]]
        host = nn.ModuleDict({"body": nn.ParameterList(weights[:1]), "head": nn.ParameterList(weights[1:])})
        lr, head_lr = reference["lr"]
        groups = parameter_groups(host, [host["head"]], lr, reference["weight_decay"], head_lr / lr)
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=reference["effective_momentum"])
        schedule = poly_decay(optimizer, reference["max_step"])
        for k, (*after, rates) in enumerate(reference["traj"][1:]):
            case.values({f"rates of step {k}": schedule.get_last_lr()}, {f"rates of step {k}": rates})
            optimizer.zero_grad()
            torch.autograd.backward(weights[0].square().sum() + (k + 1) * (weights[1] - 1).square().sum())
            optimizer.step()
            schedule.step()
            names = [f"w0 after step {k}", f"w1 after step {k}"]
            case.values(dict(zip(names, weights, strict=True)), dict(zip(names, after, strict=True)))

    return {"trajectory": check}
