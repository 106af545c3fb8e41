"""Reference values of CSRM's losses, memory, mixing and schedules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from conformance_cases import Case, Cases, checks
from torch import Tensor

from wsss_contrast import functional, losses
from wsss_contrast.data import ClassMix, Mix
from wsss_contrast.metrics import segmentation_scores
from wsss_contrast.nn import ClassMemoryBank

Check = Callable[[Case, Mapping[str, Any]], None]


def each(pattern: str) -> Callable[[Check], Check]:
    """Claim a file whose entries are cases of one kind."""

    def register(check: Check) -> Check:
        def cases(reference: Any, folder: Path) -> Cases:
            return {name: partial(check, values=values) for name, values in reference.items()}

        checks(pattern)(cases)
        return check

    return register


@each("classification.pt")
def check_classification(case: Case, values: Mapping[str, Any]) -> None:
    logits, smoothing = values["logits"].clone().requires_grad_(), values["label_smoothing"]
    loss = losses.MultilabelSoftMargin(smoothing)(logits[:, :, None, None], values["labels"])
    case.values({"loss": loss}, values)
    case.gradients("loss", loss, {"logits": logits}, {"logits": values["grad"]})


@each("label_onehot.pt")
def check_label_onehot(case: Case, values: Mapping[str, Any]) -> None:
    intended = values["intended"]
    masks = functional.class_masks(values["labels"].long(), intended.shape[1])
    case.values({"intended": masks.to(intended.dtype)}, values)


@each("seg_ce.pt")
def check_seg_ce(case: Case, values: Mapping[str, Any]) -> None:
    logits, labels = values["logits"].clone().requires_grad_(), values["pseudo_mask"].long()
    loss = losses.ReliableSegmentation(values["label_smoothing"], per_image=False)(logits, labels)
    case.values({"loss": loss, "sample_valid": functional.has_foreground(labels)}, values)
    case.gradients("loss", loss, {"logits": logits}, {"logits": values["grad"]})


@each("s2c.pt")
def check_s2c(case: Case, values: Mapping[str, Any]) -> None:
    cams = values["student_features_c"].clone().requires_grad_()
    logits = values["student_seg_logits_large"].clone().requires_grad_()
    plain = functional.tag_probabilities(values["teacher_seg_logits_large"], values["image_labels"])
    target = functional.confident_labels(plain, values["sigma"])
    case.values({"target": target}, {"target": values["target"].long()})
    loss = losses.ActivationConsistency(values["label_smoothing"])(cams, logits[:, :1], target)
    expected = values["loss"].nan_to_num(0.0)  # of no confident pixel: NaN there
    case.values({"loss": loss}, {"loss": expected})
    reference = {name: values[f"grad_{name}"].nan_to_num(0.0) for name in ("features_c", "seg_logits_large")}
    case.gradients("loss", loss, {"features_c": cams, "seg_logits_large": logits}, reference)


@each("unsup.pt")
def check_unsup(case: Case, values: Mapping[str, Any]) -> None:
    """The reference's ``loss`` divides twice; its ``paper_eq12_loss`` is the paper's. Of nothing kept both are NaN."""
    share, target = 1 - values["percent"] / 100, values["target"].long()
    for normalizer, name in (("all", "loss"), ("kept", "paper_eq12_loss")):
        logits = values["logits"].clone().requires_grad_()
        loss = losses.WeakToStrong(normalizer)(logits, target, values["entropy"], share)
        if name in values:
            case.values({name: loss}, {name: torch.as_tensor(values[name]).nan_to_num(0.0)})
        if normalizer == "all":
            case.gradients("loss", loss, {"logits": logits}, {"logits": values["grad"].nan_to_num(0.0)})
    threshold = functional.quantile(values["entropy"], 1 - share, target != functional.NO_LABEL)
    case.values({"threshold": threshold}, values)
    kept = (target != functional.NO_LABEL) & (values["entropy"] < threshold)
    case.values({"kept": kept}, values)


@each("entropy_masks.pt")
def check_entropy_masks(case: Case, values: Mapping[str, Any]) -> None:
    entropy, share = (
        functional.entropy(functional.tag_probabilities(values["teacher_logits_u"], None)),
        values["alpha_t"],
    )
    low, high = (functional.quantile(entropy, q) for q in (share / 100, 1 - share / 100))
    case.values({"entropy": entropy, "low_thresh": low, "high_thresh": high}, values)
    shape = values["low_mask"].shape
    case.values({"low_mask": (entropy < low).view(shape), "high_mask": (entropy >= high).view(shape)}, values)


def released_contrast(config: Mapping[str, Any], bank: ClassMemoryBank) -> losses.UnreliablePixelContrast:
    """The contrast with the constants of the released code."""
    return losses.UnreliablePixelContrast(
        bank.num_classes,
        bank.embedding_dim,
        temperature=config["temperature"],
        query_confidence=config["current_class_threshold"],
        bank=bank,
        **losses.CSRM_PRESETS["official"]["contrast"]
        | {
            "queries": config["num_queries"],
            "negatives": config["num_negatives"],
            "low_rank": config["low_rank"],
            "high_rank": config["high_rank"],
            "negative_confidence": float(config["current_class_negative_threshold"]),
        },
    )


def filled_bank(rows: list[Tensor], sizes: list[int], dim: int) -> ClassMemoryBank:
    """A bank that holds, of unit length, what the reference holds."""
    bank = ClassMemoryBank(len(rows), dim, sizes[-1], sizes[0])
    for index, of_class in enumerate(rows):
        members = torch.zeros(len(of_class), len(rows), dtype=torch.bool)
        members[:, index] = True
        bank.push(unit(of_class), members)
    return bank


def unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1, eps=1e-8)


def released_draws(
    queries: Mapping[int, Tensor],
    negatives: Mapping[int, Tensor],
    classes: list[int],
    candidates: Tensor,
    in_bank: Tensor,
    config: Mapping[str, Any],
) -> losses.ContrastDraws:
    """Numbers that choose the reference's pixels and rows. It counts classes by their place among the valid ones."""
    q = torch.zeros(len(candidates), config["num_queries"], dtype=torch.double)
    n = torch.zeros(len(candidates), config["num_queries"] * config["num_negatives"], dtype=torch.double)
    for place in queries:
        index = classes[place]
        q[index] = (queries[place] + 0.5) / candidates[index]
        n[index] = (negatives[place] + 0.5) / in_bank[index]
    return losses.ContrastDraws(q, n)


@each("contrastive.pt")
def check_contrastive(case: Case, values: Mapping[str, Any]) -> None:
    """The entries that are right, with the released code's constants. Memory and prototypes are of unit length here."""
    inputs, shared, aligned = values["inputs"], values["shared"], values["class_aligned"]
    config = inputs["cfg"]
    embeddings = inputs["rep"].clone().requires_grad_()
    bank = filled_bank(inputs["bank"], inputs["queue_size"], embeddings.shape[1])
    candidates = shared["query_mask"].sum(dim=(0, 2, 3))
    in_bank = torch.tensor([len(rows) for rows in shared["bank_after"]])
    draws = released_draws(
        *(aligned[f"loop_{kind}_idx"] for kind in ("query", "negative")),
        *(shared["valid_classes"], candidates, in_bank, config),
    )
    labels = torch.cat([inputs["pseudo_mask_l_small"], inputs["label_u_small"]])
    probabilities = torch.cat([inputs["prob_l"], inputs["prob_u"]])
    contrast = released_contrast(config, bank)
    found: dict[str, Tensor] = {}
    of_pixels = contrast._pixels

    def spy(*args: Any) -> Any:
        found["query_mask"], found["prototypes"], found["present"] = of_pixels(*args)
        return tuple(found.values())

    contrast._pixels = spy  # type: ignore[method-assign]
    loss = contrast(
        embeddings,
        inputs["rep_teacher"],
        probabilities.clamp_min(1e-38).log(),
        labels.long(),
        torch.cat([inputs["label_l"], inputs["label_u"]]),
        torch.arange(len(labels)) < len(inputs["label_l"]),
        inputs["alpha_t"] / 100,
        draws=draws,
    )
    case.values({"loss": loss}, aligned)
    case.gradients("loss", loss, {"rep": embeddings}, {"rep": aligned["grad_rep"]})
    expected = shared["prototypes"]
    case.values({"present": found["present"]}, {"present": ~expected.isnan().any(dim=1)})
    case.values({"prototypes": found["prototypes"]}, {"prototypes": unit(expected.nan_to_num(0.0))})
    case.values({"query_mask": found["query_mask"]}, {"query_mask": by_pixel(shared["query_mask"])})
    after = {f"bank {index}": bank.rows(index) for index in range(bank.num_classes)}
    case.values(after, {f"bank {index}": unit(rows) for index, rows in enumerate(shared["bank_after"])})


def by_pixel(masks: Tensor) -> Tensor:
    return masks.movedim(1, -1).flatten(0, 2)


@each("memory_bank.pt")
def check_memory_bank(case: Case, values: Mapping[str, Any]) -> None:
    keys, states = values["keys"], values["states"]
    bank = ClassMemoryBank(1, states[-1].shape[1], background_capacity=values["capacity"])
    for step, (rows, state) in enumerate(zip(keys, states, strict=True)):
        rows = rows.reshape(-1, bank.embedding_dim)
        bank.push(rows, torch.ones(len(rows), 1, dtype=torch.bool))
        case.values({f"state {step}": bank.rows(0)}, {f"state {step}": state})


@each("classmix.pt")
def check_classmix(case: Case, values: Mapping[str, Any]) -> None:
    labels, logits = values["masks"].long(), values["teacher_logits"]
    partners = torch.tensor([int(partner) for partner in values["partner"]])
    mixed = ClassMix()(
        values["images"],
        values["image_labels"],
        labels,
        logits,
        mix=pasted(partners, values["selected_classes"], logits),
    )
    ours = {"out_images": mixed.images, "out_labels": mixed.tags, "out_teacher_logits": mixed.logits}
    case.values(ours, values)
    case.values({"out_masks": mixed.labels}, {"out_masks": values["out_masks"].long()})


def pasted(partners: Tensor, selected: list[Tensor], logits: Tensor) -> Mix:
    classes = torch.zeros(logits.shape[:2], dtype=torch.bool)
    for image, chosen in enumerate(selected):
        classes[image, torch.as_tensor(chosen, dtype=torch.long)] = True
    return Mix(torch.arange(len(logits)), partners, classes)


TERMS = {
    "loss_c": "classification",
    "loss_c2s": "segmentation",
    "loss_s2c": "seg_to_cam",
    "loss_u": "weak_to_strong",
}


@checks("train_step_e2e.pt")
def train_step_file(reference: Any, folder: Path) -> Cases:
    def check(case: Case, run: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
        parameters = run["params"]
        student = {name: value.clone().requires_grad_() for name, value in inputs["student"].items()}
        plain, teacher, mix = inputs["t1"], inputs["t2"], run.get("mix")
        labels, logits, tags = run["pseudo_masks"].long(), plain["masks_seg_large"], inputs["true_labels"]
        original = tags
        if mix is not None:
            chosen = pasted(torch.tensor(mix["partner"]), mix["selected_classes"] or [[]] * len(tags), logits)
            mixed = ClassMix()(inputs["images"], tags, labels, logits, mix=chosen)
            tags, labels, logits = mixed.tags, mixed.labels, mixed.logits
            case.values({"labels": tags, "images": mixed.images, "teacher_logits": logits}, mix)
            case.values({"masks": labels}, {"masks": mix["masks"].long()})
        repaired, config = run.get("repaired"), RELEASED
        dim = student["rep"].shape[1]
        bank = filled_bank(inputs["bank"], inputs["queue_size"], dim)
        draws = None
        if repaired is not None:
            in_bank = torch.tensor([len(rows) for rows in inputs["bank"]]) + repaired["new_keys"]
            draws = released_draws(
                *(repaired[f"loop_{kind}_idx"] for kind in ("query", "negative")),
                *(repaired["valid_classes"], repaired["query_mask"].sum(dim=(0, 2, 3))),
                *(torch.minimum(in_bank, torch.tensor(inputs["queue_size"])), config),
            )
        total = losses.CSRMLoss(inputs["C"], dim, "official", label_smoothing=parameters.get("ls", 0.1), bank=bank)
        terms = total(
            losses.CSRMMaps(student["features_c"], student["masks_seg"], student["rep"]),
            losses.CSRMMaps(plain["features_c"], teacher["masks_seg"], teacher["rep"]),
            *(logits, labels, tags, inputs["NL"], parameters["epoch"] / 15),
            original_tags=original,
            draws=draws,
        )
        weights = total.schedule.weights(parameters["epoch"] / 15)
        ours = {theirs: terms[name] / (weights[name] or 1) for theirs, name in TERMS.items()}
        case.values(ours, {name: run["metrics"][name].reshape(()) for name in TERMS})
        for name, value in ours.items():
            if value.requires_grad:
                case.gradients(name, value, student, run["component_grads"][name])
        if repaired is not None:
            case.values({"loss_contra": terms["contrast"]}, repaired)
            case.values({"loss": sum(ours.values()) + terms["contrast"]}, repaired)
            case.gradients("loss_contra", terms["contrast"], {"rep": student["rep"]}, {"rep": repaired["grad_rep"]})

    return {
        name: partial(check, run=run, inputs=reference["inputs"][name.split("/")[0]])
        for name, run in reference["runs"].items()
    }


RELEASED = {"num_queries": 256, "num_negatives": 50}


@each("miou.pt")
def check_miou(case: Case, values: Mapping[str, Any]) -> None:
    predicted, truth = values["pred"].flatten().long(), values["gt"].flatten().long()
    classes = values["num_classes"]
    counted = truth != functional.NO_LABEL
    pairs = truth[counted] * classes + predicted[counted]
    scores = segmentation_scores(torch.bincount(pairs, minlength=classes**2).view(classes, classes), count_absent=True)
    case.values({"miou_percent": 100 * scores.miou, "iou_percent": 100 * scores.iou.nan_to_num(0.0)}, values)
