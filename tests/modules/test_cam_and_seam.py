"""What CAM, SEAM and Puzzle-CAM do in training, validation and prediction, on a tiny backbone and photos of noise."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F

from tests.literal import seam as literal
from wsss_contrast import functional
from wsss_contrast.data import ViewTransform
from wsss_contrast.functional import resize, valid_pixels, view_matrix, warp
from wsss_contrast.metrics import SeedCurve, SeedMIoU
from wsss_contrast.modules import CAM, EPS, SEAM

from .tiny import CLASSES, MODULES, OPTIONS, RandomPhotos, batch, cam, loader, seam, trainer

Make = Callable[..., CAM]
each = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(num_workers|does not have many workers|no `val_dataloader`).*")
        yield


# --- forward and training step


@each
@pytest.mark.parametrize(("output_stride", "side"), [(16, 4), (None, 2)])
def test_forward_gives_maps_of_the_classes(make: Make, output_stride: int | None, side: int) -> None:
    module, images = make(output_stride=output_stride), batch()["image"]
    assert module(images).shape == (2, CLASSES + (module.background is not None), side, side)
    assert module.raw_maps(images).shape == (2, CLASSES, side, side)


@each
def test_seed_maps_and_seeds(make: Make) -> None:
    module, data = make(scales=(0.5, 1.0), flip=True).eval(), batch()
    maps = module.seed_maps(data["image"])
    assert maps.shape == (2, CLASSES, 4, 4)
    assert float(maps.detach().min()) >= 0
    seeds = module.seeds(data["image"], data["tags"])
    assert seeds.shape == (2, CLASSES, 64, 64)
    assert torch.all(seeds[data["tags"] == 0] == (0 if isinstance(module, EPS) else -1))  # what they are divided by
    assert torch.all(seeds[data["tags"] == 1].amax(dim=(1, 2)) > 0.99)


def test_seam_seeds_are_the_refined_maps() -> None:
    module, images = seam().eval(), batch()["image"]
    raw, refined = module.refined(images)
    assert refined.shape == (2, 1 + CLASSES, 4, 4)
    torch.testing.assert_close(raw, module(images))
    torch.testing.assert_close(module.seed_maps(images), refined[:, 1:])


def test_masks_apply_the_threshold_as_the_metric_does() -> None:
    module = cam()
    module.threshold_index.fill_(50)
    seeds = torch.tensor([[[[0.4, 0.5, 0.6, 0.9]], [[0.1, 0.5, 0.6, 0.95]], [[-1.0, -1.0, -1.0, -1.0]]]])
    tags = torch.tensor([[1.0, 1.0, 0.0]])
    assert module.masks(torch.zeros(1, 3, 1, 4), seeds, tags).tolist() == [[[0, 0, 1, 2]]]


@each
def test_training_step_is_finite_and_all_parts_learn(make: Make) -> None:
    module = make(backbone="test_efficientnet")  # test_resnet starts with its residual branches at zero
    module.log = module.log_dict = lambda *args, **kwargs: None
    loss = module.training_step(batch())
    assert loss.shape == ()
    assert bool(loss.isfinite())
    loss.backward()
    parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
    assert parameters
    idle = [n for n, p in parameters.items() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert idle == []


def test_cam_loss_is_the_cross_entropy_of_each_tag() -> None:
    module, data = cam(dropout=0.0).eval(), batch()
    module.log = lambda *args, **kwargs: None
    logits = literal.global_average_pool(module(data["image"]))
    expected = literal.multilabel_soft_margin(logits, data["tags"])
    torch.testing.assert_close(module.training_step(data), expected)


def test_seam_loss_is_the_sum_of_its_terms_at_image_resolution() -> None:
    """Eq. 6, from the literal readings of the terms."""
    module, data = seam(dropout=0.0).eval(), batch()
    logged: dict[str, Any] = {}
    module.log = lambda name, value, **kwargs: logged.update({name: value})
    module.log_dict = logged.update
    loss = module.training_step(data)
    tags, cams, refined = data["tags"], [], []
    for side in (64, 32):
        view = F.interpolate(data["image"], (side, side), mode="bilinear", align_corners=True)
        for maps, of_view in zip((cams, refined), module.refined(view), strict=True):
            maps.append(F.interpolate(of_view, (side, side), mode="bilinear", align_corners=True).double())
    pooled = [maps.mean((2, 3)) for maps in cams]
    expected = {
        "train/classification": sum(literal.multilabel_soft_margin(logits, tags) for logits in pooled) / 2,
        "train/min_pooling": sum(literal.min_pooling(maps[:, 1:], tags) for maps in refined) / 2,
    }
    for name, value in expected.items():
        torch.testing.assert_close(logged[name].double(), value.double(), rtol=1e-4, atol=1e-6)
    terms = ("classification", "min_pooling", "er", "ecr")
    assert set(logged) == {f"train/{name}" for name in (*terms, "loss")}
    torch.testing.assert_close(loss, sum(logged[f"train/{name}"] for name in terms))
    assert all(bool(logged[f"train/{name}"] > 0) for name in terms)


def test_seam_views_differ_in_size() -> None:
    module, sizes = seam(), []
    module.log = module.log_dict = lambda *args, **kwargs: None
    module.backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    module.training_step(batch())
    assert sizes == [(64, 64), (32, 32)]


def test_er_is_off_in_the_warm_up_and_nothing_else_is(tmp_path: Path) -> None:
    losses: list[float] = []
    terms: list[dict[str, float]] = []

    class Watched(SEAM):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            losses.append(float(outputs["loss"]))
            logged = self.trainer.callback_metrics
            names = ("classification", "min_pooling", "er", "ecr")
            terms.append({name: float(logged[f"train/{name}"]) for name in names})

    module = Watched(CLASSES, warmup_steps=2, **OPTIONS)
    trainer(tmp_path, max_steps=3).fit(module, loader())
    assert len(terms) == 3
    for step, (loss, of_step) in enumerate(zip(losses, terms, strict=True)):
        assert of_step["er"] > 0
        on = of_step if step >= 2 else {**of_step, "er": 0.0}
        assert loss == pytest.approx(sum(on.values()), rel=1e-5)


def test_what_is_on_in_the_warm_up_does_not_reach_the_classifier() -> None:
    module = seam(dropout=0.0, warmup_steps=1).eval()
    module.log = module.log_dict = lambda *args, **kwargs: None
    module.training_step(batch()).backward()
    gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    data = batch()
    small = F.interpolate(data["image"], (32, 32), mode="bilinear", align_corners=True)
    both_views = [(module(data["image"]), (64, 64)), (module(small), (32, 32))]
    sum(module.classification(resize(maps, size), data["tags"]) / 2 for maps, size in both_views).backward()
    for name, parameter in module.named_parameters():
        if not name.startswith("pcm."):
            torch.testing.assert_close(gradients[name], parameter.grad, msg=name)
    assert any(float(gradients[name].abs().sum()) > 0 for name in gradients if name.startswith("pcm."))


def test_a_moved_view_is_compared_where_both_views_see_the_photo() -> None:
    options = {"view_flip": True, "view_degrees": 15.0, "view_translate": 8.0}
    module, data = seam(dropout=0.0, **options).eval(), batch()
    logged: dict[str, Any] = {}
    module.log, module.log_dict = (lambda *args, **kwargs: None), logged.update
    torch.manual_seed(1)
    module.training_step(data)
    torch.manual_seed(1)
    target, matrix = ViewTransform(32, flip=True, degrees=15.0, translate=8.0)(data["image"])
    assert torch.equal(matrix, module.view_matrix)
    valid = valid_pixels(matrix, (32, 32))
    assert not valid.all()
    tags = data["tags"]
    source_cams, source_refined = (resize(maps, (64, 64)) for maps in module.refined(data["image"]))
    target_cams, target_refined = (resize(maps, (32, 32)) for maps in module.refined(target, matrix))
    pooled = [source_cams.mean((2, 3)), (target_cams * valid[:, None]).sum((2, 3)) / valid.sum((1, 2))[:, None]]
    moved_cams, moved_refined = (warp(maps, matrix, (32, 32))[0] for maps in (source_cams, source_refined))
    expected = {
        "classification": sum(literal.multilabel_soft_margin(logits, tags) for logits in pooled) / 2,
        "min_pooling": (
            functional.min_pooling(source_refined[:, 1:], tags)
            + functional.min_pooling(target_refined[:, 1:], tags, valid)
        )
        / 2,
        "er": functional.equivariant_regularization(moved_cams, target_cams, tags, valid),
        "ecr": functional.equivariant_cross_regularization(
            moved_cams, moved_refined, target_cams, target_refined, tags, valid=valid
        ),
    }
    for name, value in expected.items():
        torch.testing.assert_close(logged[f"train/{name}"], value, msg=name)


def test_moved_views_are_drawn_by_step_and_not_from_the_global_state(tmp_path: Path) -> None:
    """So that a resumed run draws what an undisturbed one does."""
    matrices: list[list[torch.Tensor]] = []
    for disturbed in (False, True):
        seen: list[torch.Tensor] = []

        class Look(L.Callback):
            def on_train_batch_end(
                self, _: Any, module: SEAM, *args: Any, seen: Any = seen, by: Any = disturbed
            ) -> None:
                seen.append(module.view_matrix)
                if by:
                    torch.rand(3)

        torch.manual_seed(0)
        trainer(tmp_path, callbacks=[Look()]).fit(seam(view_flip=True, view_degrees=20.0), loader())
        matrices.append(seen)
    assert len(matrices[0]) == 2
    assert not torch.equal(*matrices[0])
    for undisturbed, disturbed_ in zip(*matrices, strict=True):
        assert torch.equal(undisturbed, disturbed_)


def test_refined_maps_of_a_moved_view_ignore_what_lies_outside() -> None:
    module, images = seam(dropout=0.0).eval(), batch()["image"]
    matrix = view_matrix((64, 64), torch.zeros(1).bool(), torch.zeros(1), torch.tensor([[24.0, 0]]))
    matrix = matrix.expand(len(images), 2, 3)
    cams, refined = module.refined(images, matrix)
    valid = valid_pixels(matrix, (cams.shape[-2], cams.shape[-1]))
    columns = int(valid[0, 0].sum())
    assert 0 < columns < cams.shape[-1]
    _, low = module.backbone(images)
    low = [resize(features, (cams.shape[-2], cams.shape[-1]))[..., -columns:] for features in low]
    photo = resize(images, (cams.shape[-2], cams.shape[-1]))[..., -columns:]
    torch.testing.assert_close(refined[..., -columns:], module.pcm(cams[..., -columns:], photo, low))


@each
def test_taps_name_submodules_that_fire(make: Make) -> None:
    module, fired = make(), {}
    taps = module.regularizer_taps
    for name in ("features", *(["cams"] if isinstance(taps["cams"], str) else [])):
        module.get_submodule(taps[name]).register_forward_hook(
            lambda _, __, output, name=name: fired.update({name: output})
        )
    module.log = module.log_dict = lambda *args, **kwargs: None
    module.training_step(batch())
    assert fired["features"].shape[1] == taps["in_channels"]
    cams = fired["cams"] if "cams" in fired else taps["cams"]({"classifier": module(batch()["image"])})
    assert cams.shape[1] == CLASSES + (taps["background"] is not None)


# --- fit


def weights_after_fit(make: Make, folder: Path, seed: int) -> dict[str, torch.Tensor]:
    L.seed_everything(seed, verbose=False)
    module = make()
    trainer(folder).fit(module, loader(shuffle=True))
    return module.state_dict()


@each
def test_two_steps_are_identical_for_the_same_seed(make: Make, tmp_path: Path) -> None:
    first, second, other = (weights_after_fit(make, tmp_path, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@each
def test_optimizer_has_the_groups_and_decays_each_step(make: Make, tmp_path: Path) -> None:
    module, rates = make(lr=0.01), []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    trainer(tmp_path, max_steps=-1, max_epochs=2, callbacks=[Watch()]).fit(module, loader())
    for step, of_step in enumerate(rates):
        factor = (1 - step / 4) ** 0.9  # two epochs of two batches
        # Backbone weights, backbone biases (of norms, which random weights do not freeze), head weights.
        assert of_step == pytest.approx([0.01 * factor, 0.02 * factor, 0.1 * factor])
    assert len(rates) == 4
    optimizer = module.trainer.optimizers[0]
    assert {g["momentum"] for g in optimizer.param_groups} == {0.9}
    assert [g["weight_decay"] for g in optimizer.param_groups] == [5e-4, 0.0, 5e-4]


# --- validation


def curve(folder: Path, module: CAM, seed: int) -> SeedCurve:
    metric, data = SeedMIoU(CLASSES), RandomPhotos(seed=seed)
    metric.update(module.eval().seeds(data.images, data.tags), data.masks)
    return metric.compute()


@each
def test_threshold_is_chosen_on_the_first_loader_and_applied_to_the_second(make: Make, tmp_path: Path) -> None:
    module, host = make(), trainer(tmp_path)
    host.validate(module, [loader(seed=1), loader(seed=2)], verbose=False)
    chosen_on, scored = curve(tmp_path, module, 1), curve(tmp_path, module, 2)
    threshold = float(chosen_on.thresholds[chosen_on.best])
    assert module.background_threshold == pytest.approx(threshold)
    expected = {
        "train/miou": float(chosen_on.miou.max()),
        "val/miou": scored.at(threshold),
        "val/miou_oracle": float(scored.miou.max()),
        "threshold": threshold,
        "threshold_oracle": float(scored.thresholds[scored.best]),
    }
    assert {name: value.item() for name, value in host.callback_metrics.items()} == pytest.approx(expected)


def test_the_choice_matters_on_these_photos(tmp_path: Path) -> None:
    """Else the test above could not tell the loaders apart."""
    module = cam()
    chosen_on, scored = curve(tmp_path, module, 1), curve(tmp_path, module, 2)
    assert chosen_on.best != scored.best
    assert scored.at(float(chosen_on.thresholds[chosen_on.best])) < float(scored.miou.max())


@each
@pytest.mark.parametrize("as_list", [False, True])
def test_one_loader_is_scored_at_the_threshold_kept(make: Make, tmp_path: Path, as_list: bool) -> None:
    module = make()
    module.threshold_index.fill_(35)
    found = trainer(tmp_path).validate(module, [loader(seed=2)] if as_list else loader(seed=2), verbose=False)[0]
    scored = curve(tmp_path, module, 2)
    assert float(module.background_threshold) == pytest.approx(0.35)
    expected = {
        "val/miou": scored.at(0.35),
        "val/miou_oracle": float(scored.miou.max()),
        "threshold": 0.35,
        "threshold_oracle": float(scored.thresholds[scored.best]),
    }
    assert found == pytest.approx(expected)


def test_sanity_check_chooses_nothing_and_leaves_no_counts(tmp_path: Path) -> None:
    module, seen = cam(), []

    class Watch(L.Callback):
        def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append(float(pl_module.background_threshold))
            seen.append(int(sum(metric.histogram.sum() for metric in pl_module.seed_metrics)))
            seen.append(len(trainer.callback_metrics))

    trainer(tmp_path, num_sanity_val_steps=-1, callbacks=[Watch()]).fit(
        module, loader(), [loader(seed=1), loader(seed=2)]
    )
    assert seen == [pytest.approx(0.2), 0, 0]
    assert float(module.background_threshold) == pytest.approx(
        float(curve(tmp_path, module, 1).thresholds[curve(tmp_path, module, 1).best])
    )


def test_counts_start_afresh_in_each_epoch(tmp_path: Path) -> None:
    module, host = cam(), trainer(tmp_path)
    loaders = [loader(seed=1), loader(seed=2)]
    assert host.validate(module, loaders, verbose=False) == host.validate(module, loaders, verbose=False)


# --- checkpoints and prediction


@each
def test_checkpoint_keeps_weights_threshold_and_options(make: Make, tmp_path: Path) -> None:
    module, host = make(lr=0.003, momentum=0.5, dropout=0.1), trainer(tmp_path)
    host.fit(module, loader(), [loader(seed=1), loader(seed=2)])
    module.threshold_index.fill_(37)
    host.save_checkpoint(tmp_path / "last.ckpt")
    loaded = type(module).load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert float(loaded.background_threshold) == pytest.approx(0.37)
    expected = OPTIONS | {"num_classes": CLASSES, "lr": 0.003, "momentum": 0.5, "dropout": 0.1}
    if isinstance(module, SEAM):
        expected["view_size"] = 32
        assert loaded.view.size == 32
    assert {name: loaded.hparams[name] for name in expected} == expected
    assert dict(loaded.hparams) == dict(module.hparams)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in loaded.state_dict().items())
    images = batch()["image"]
    assert torch.equal(loaded.eval()(images), module.eval()(images))


def test_options_of_cam_reach_seam() -> None:
    module = SEAM(CLASSES, 48, **OPTIONS | {"lr": 0.5, "dropout": 0.25, "output_stride": None, "frozen_norm": False})
    assert module.dropout.p == 0.25
    assert (module.hparams["lr"], module.hparams["view_size"]) == (0.5, 48)
    assert module(batch()["image"]).shape[-1] == 2


@each
def test_prediction_names_photos_and_gives_masks(make: Make, tmp_path: Path) -> None:
    module = make()
    module.threshold_index.fill_(40)
    outputs = trainer(tmp_path).predict(module, loader())
    data = RandomPhotos()
    assert [name for output in outputs for name in output["name"]] == [f"photo_{i}" for i in range(4)]
    masks = torch.cat([output["mask"] for output in outputs])
    seeds = module.eval().seeds(data.images, data.tags)
    for mask, of_photo, tags in zip(masks, seeds, data.tags, strict=True):
        expected = torch.cat([torch.full((1, 64, 64), 0.4), of_photo]).argmax(dim=0)
        assert torch.equal(mask, expected)
        assert set(mask.unique().tolist()) <= {0, *(tags.nonzero()[:, 0] + 1).tolist()}
    assert len(masks.unique()) > 1


def test_half_precision_keeps_the_sweep() -> None:
    module = CAM(num_classes=2, backbone="test_resnet", weights=None)
    module.threshold_index.fill_(38)
    assert module.to(torch.bfloat16).background_threshold == 0.38


def test_a_subclass_may_name_its_arguments_as_it_likes() -> None:
    class Own(CAM):
        def __init__(self, lr: float = 1.0, scales: str = "many") -> None:
            super().__init__(2, backbone="test_resnet", weights=None, lr=lr / 1000, scales=(1.0,))

    module = Own()
    assert (module.lr, module.scales) == (0.001, (1.0,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "-1.0"),
        ({"scales": ()}, "scales"),
        ({"dropout": 1.0}, "1.0"),
        ({"view_size": 0}, "0"),
        ({"warmup_steps": -1}, "-1"),
    ],
)
def test_values_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SEAM(num_classes=2, backbone="test_resnet", weights=None, **options)


# --- batch norm over several processes


@pytest.mark.parametrize(("backbone", "refused"), [("test_efficientnet", True), ("test_resnet", False)])
def test_synchronised_batch_norm(backbone: str, refused: bool, tmp_path: Path) -> None:
    """Lightning's conversion drops the activations within timm's norms."""
    module = cam(backbone=backbone)
    module._trainer = trainer(tmp_path, strategy="ddp", sync_batchnorm=True)
    if not refused:
        module.configure_model()
        return
    with pytest.raises(ValueError, match=r"`sync_batchnorm` is not .*`backbone\..*`, a BatchNormAct2d of timm"):
        module.configure_model()
