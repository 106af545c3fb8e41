"""Reference values of CSRM."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from conformance_cases import Case, Cases, checks
from torch import Tensor

from wsss_contrast import functional, losses
from wsss_contrast.functional.sepl import POLICIES
from wsss_contrast.modules import poly_decay
from wsss_contrast.nn import DeepLabV3PlusHeads, EMATeacher
from wsss_contrast.refine import DenseCRF, merge_scales, multi_scale_logits, pseudo_labels


@checks("pseudo_label.pt")
def pseudo_label_file(reference: Any, folder: Path) -> Cases:
    def check(case: Case, values: Mapping[str, Any]) -> None:
        tags, photos = values["image_labels"], values["image_uint8"].permute(0, 3, 1, 2)
        low = functional.max_normalize(functional.mask_by_tags(values["cam_features"], tags))
        cams = functional.resize(low, (photos.shape[-2], photos.shape[-1]))
        case.values({"cam_norm_lowres": low, "cam_norm_upsampled": cams}, values)
        thresholds = (values["delta_bg"], values["delta_fg"])
        ours = {"mask_no_crf": pseudo_labels(photos, cams, tags, *thresholds)}
        ours["mask_with_crf"] = pseudo_labels(photos, cams, tags, *thresholds, refine=DenseCRF("csrm"))
        case.values(ours, {name: values[name].long() for name in ours})

    return {name: partial(check, values=values) for name, values in reference.items()}


HEADS_NAMES = {  # the file's names of the ASPP's parts, and ours; the other heads' are the same
    **{f"aspp.aspp{branch + 1}.atrous_conv.": f"aspp.branches.{branch}.0." for branch in range(4)},
    **{f"aspp.aspp{branch + 1}.bn.": f"aspp.branches.{branch}.1." for branch in range(4)},
    "aspp.global_avg_pool.": "aspp.branches.4.",
    "aspp.conv1.": "aspp.merge.0.",
    "aspp.bn1.": "aspp.merge.1.",
}


@checks("heads.pt")
def heads_file(reference: Any, folder: Path) -> Cases:
    def rename(name: str) -> str:
        theirs = next((prefix for prefix in HEADS_NAMES if name.startswith(prefix)), "")
        return HEADS_NAMES.get(theirs, "") + name.removeprefix(theirs)

    def check(case: Case, values: Mapping[str, Any]) -> None:
        low, high, theirs = values["features_s4"], values["features_s16"], values["state_dict"]
        state = {rename(name): value for name, value in theirs.items() if not name.startswith(("backbone", "class"))}
        classes, embedding = len(state["decoder.8.bias"]), len(state["representation.3.bias"])
        norm = "batch" if "project.1.running_mean" in state else "group"
        heads = DeepLabV3PlusHeads(high.shape[1], low.shape[1], classes, embedding, norm).eval()
        heads.load_state_dict(state)
        with torch.no_grad():
            masks, representation = heads(low, high)
            cams = torch.nn.functional.conv2d(high, theirs["classifier.weight"])
            ours = {"features_c": cams, "logits_c": functional.global_average_pool(cams)}
            ours |= {"masks_seg": masks, "rep": representation}
            ours["masks_seg_large"] = functional.resize(masks, tuple(values["images"].shape[-2:]))
        case.values(ours, values["out"])
        trained = {name: parameter.requires_grad for name, parameter in heads.named_parameters()}
        expected = {rename(name): flag for name, flag in values["requires_grad"].items()}
        case.wrong["requires_grad"] = sum(flag != expected[name] for name, flag in trained.items())

    return {name: partial(check, values=values) for name, values in reference.items()}


@checks("puzzle.pt")
def puzzle_file(reference: Any, folder: Path) -> Cases:
    def check(case: Case, values: Mapping[str, Any]) -> None:
        leaves = {f"grad_{name}": values[name].clone().requires_grad_() for name in ("features", "tiled_features")}
        maps, tags = leaves["grad_features"], values["labels"]
        merged = functional.merge_tiles(leaves["grad_tiled_features"])
        classification, reconstruction = losses.MultilabelSoftMargin(), losses.PuzzleReconstruction()
        ours = {
            "tiles": functional.tile(values["images"]),
            "merged": merged,
            "loss_cls": classification(maps, tags),
            "loss_pcl": classification(merged, tags),
            "loss_re_masking": reconstruction(maps, merged, tags),
            "loss_re_selection": losses.PuzzleReconstruction("selection")(maps, merged, tags),
        }
        total = ours["loss_cls"] + ours["loss_pcl"] + values["alpha"] * ours["loss_re_masking"]
        case.values(ours | {"loss_total": total}, values)
        case.gradients("loss_total", total, leaves, values)

    return {
        name: partial(check, values=values) if "images" in values else "skipped: an error of the released code"
        for name, values in reference.items()
    }


@checks("sepl.pt")
def sepl_file(reference: Any, folder: Path) -> Cases:
    def check(case: Case, values: Mapping[str, Any]) -> None:
        pseudo, segments = values["pseudo"].long(), values["sam_masks"].bool()
        for policy in POLICIES:
            merged = functional.merge_segments(pseudo, segments, policy)
            case.values({policy: merged}, {policy: values[policy].long()})

    return {name: partial(check, values=values) for name, values in reference.items()}


@checks("pnoc.pt")
def pnoc_file(reference: Any, folder: Path) -> Cases:
    def check(case: Case, values: Mapping[str, Any]) -> None:
        images, maps, erased = values["images"], values["features"], values["erased_onehot"]
        size = (images.shape[-2], images.shape[-1])
        batch, own = (functional.erasing_masks(maps, erased, size, normalize) for normalize in ("batch", "map"))
        case.values(
            {
                "soft_masked_globalnorm": functional.erase(images, batch),
                "soft_masked_per_map": functional.erase(images, own),
                "hard_masked_t0_2": functional.erase(images, own, 0.2),
                "labels_remaining": values["labels"] - erased,
            },
            values,
        )

    return {name: partial(check, values=values) for name, values in reference.items()}


@checks("schedules.pt")
def schedules_file(reference: Any, folder: Path) -> Cases:
    def puzzle_alpha(case: Case) -> None:
        values, steps = reference["puzzle_alpha"], reference["puzzle_alpha_max_iter"]
        ours = torch.tensor([functional.puzzle_alpha(step, steps) for step in values], dtype=torch.float64)
        case.values({"puzzle_alpha": ours}, {"puzzle_alpha": list(values.values())})

    def ema_decay(case: Case) -> None:
        values = {step: 0.0 if d == "copy" else d for step, d in reference["ema_decay_by_global_step"].items()}
        copied = sum(d == 0 for d in values.values())  # the first two epochs; the ramp counts from the second's start
        teacher = EMATeacher(torch.nn.Identity(), 0.99, copy_steps=copied, ramp_start=copied // 2)
        ours = torch.tensor([teacher.decay_at(step) for step in values], dtype=torch.float64)
        case.values({"decay": ours}, {"decay": list(values.values())})

    def scheduled(case: Case, value: Callable[[float], float]) -> None:
        expected = reference[case.name]
        ours = torch.tensor([value(epoch / len(expected)) for epoch in expected], dtype=torch.float64)
        case.values({case.name: ours}, {case.name: list(expected.values())})

    schedule = losses.CSRMSchedule(scheduled="weight")
    shares: dict[str, Callable[[float], float]] = {
        "w_s2c": lambda progress: schedule.weights(progress)["seg_to_cam"],
        "alpha_t_contrast": lambda progress: 100 * schedule.unreliable_share(progress),
        "drop_percent_unsup": lambda progress: 100 - 100 * schedule.unreliable_share(progress),
    }

    def poly(case: Case) -> None:
        settings = reference["poly_cfg"]
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=settings["lr"])
        schedule = poly_decay(optimizer, settings["max_step"], settings["power"])
        rates = []
        for _ in reference["poly_lr_used_at_step_0_based"]:
            rates += schedule.get_last_lr()
            optimizer.step()
            schedule.step()
        ours = {"poly_lr_used_at_step_0_based": torch.tensor(rates, dtype=torch.float64)}
        case.values(ours, reference)

    return {
        **{name: partial(scheduled, value=value) for name, value in shares.items()},
        "ema decay": ema_decay,
        "poly": poly,
        "puzzle_alpha": puzzle_alpha,
    }


@checks("inference_tta.pt")
def inference_file(reference: Any, folder: Path) -> Cases:
    """The released code resizes to multiples of 16, and adds the logits of mirrored photos: twice the mean."""

    def check(case: Case, values: Mapping[str, Any]) -> None:
        photo, flip, keys = values["image_uint8"].permute(2, 0, 1)[None].float(), values["hflip"], values["keys"]
        tags, size = values["label"][None], (photo.shape[-2], photo.shape[-1])
        raw = {tuple(of_scale["input_shape"]): of_scale for of_scale in values["per_scale_raw"]}
        logits = multi_scale_logits(lambda images: raw[tuple(images.shape)]["masks_seg"], photo, values["scales"], flip)
        classes = [k - 1 for k in keys.tolist() if k > 0]
        ours = {"seg_prob": (logits[0] * (2 if flip else 1))[values["seg_keys"]].softmax(dim=0)}

        def maps() -> Iterator[Tensor]:
            for of_scale in raw.values():
                positive = of_scale["features_c"].relu()
                yield positive[:1] + positive[1:].flip(-1) if flip else positive

        small = ((size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1)
        seeds = merge_scales(maps(), tags, size, "max", multiple=16)
        ours["cam_highres"] = seeds[0, classes]
        ours["cam_strided"] = merge_scales(maps(), tags, small, "max")[0, classes]
        case.values(ours, values)
        mask = pseudo_labels(photo.byte(), seeds, tags, 0.4)[0]
        case.values({"pseudo_t0_4": mask}, {"pseudo_t0_4": values["pseudo_t0_4"].long()})

    return {name: partial(check, values=values) for name, values in reference.items()}
