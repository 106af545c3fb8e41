"""P-NOC: Puzzle-CAM with a second classifier that sees images without a class (2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wsss_contrast.functional import draw_tag, erase, erasing_masks, puzzle_alpha
from wsss_contrast.losses import MultilabelSoftMargin
from wsss_contrast.training import planned_steps, progress, step_generator

from .optim import parameter_groups, poly_decay
from .puzzle_cam import PuzzleCAM
from .start import Start


class SecondClassifier(nn.Module):
    """A classifier without dropout: images (N, 3, H, W) to maps (N, K, h, w)."""

    def __init__(self, backbone: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        features, _ = self.backbone(images)
        maps: Tensor = self.classifier(features)
        return maps


class PNOC(PuzzleCAM):
    r"""P-NOC over any timm backbone: Puzzle-CAM whose maps must cover a class so well that it can be erased.

    One tag of each image is drawn. The generator, which makes the maps, learns Puzzle-CAM's loss and
    :math:`\lambda_\mathrm{oc} L_\mathrm{cls}`: in the image whose pixels are dimmed by the drawn tag's map, a second
    classifier, held fixed, must find the other tags and not the drawn one. Then the second classifier learns: in the
    image without the pixels where that map exceeds a threshold, it must still find *all* tags,
    :math:`\lambda_\mathrm{noc} L_\mathrm{cls}`. So it is drawn to what the maps have left out.

    There are two optimisers and manual optimisation: a trainer can't accumulate gradients, and Lightning's
    ``max_steps`` counts the steps of both. Under DDP take ``ddp_find_unused_parameters_true``, as each backward pass is
    of one of the networks. Regularizer callbacks join the generator's loss. Seeds, batches and validation are those of
    :class:`~wsss_contrast.modules.PuzzleCAM`; the second classifier takes no part in them.

    Logged: what Puzzle-CAM logs, ``train/erased`` and ``train/second``, both without their weights.

    Args:
        num_classes: K, foreground classes.
        second: checkpoint of a :class:`~wsss_contrast.modules.CAM` of the same backbone, with which the second
            classifier begins. In the paper it is trained from tags beforehand. ``None``: the backbone's weights, and a
            classifier that knows nothing.
        alpha: last weight of the reconstruction loss.
        erased_weight: lambda_oc at the first and the last step.
        second_weight: lambda_noc, likewise.
        erasing_threshold: of the second classifier's images, in [0, 1).
        label_smoothing: of the tags, in all classification losses.
        kwargs: see :class:`~wsss_contrast.modules.CAM`.

    Raises:
        ValueError: weights below 0, a threshold out of range. Where a training begins: ``second`` is missing, no
            checkpoint, or of another network, of which a warning tells before.
        DataError: where a training begins: ``second`` is of other classes.
    """

    regularizer_backward = 0
    """Regularizer callbacks join the first ``manual_backward`` of a step."""

    def __init__(
        self,
        num_classes: int,
        second: str | None = None,
        alpha: float = 4.0,
        erased_weight: tuple[float, float] = (0.3, 1.0),
        second_weight: tuple[float, float] = (0.0, 1.0),
        erasing_threshold: float = 0.2,
        label_smoothing: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, alpha=alpha, **kwargs)
        self.save_hyperparameters()
        self.automatic_optimization = False
        for name, weight in (("erased_weight", erased_weight), ("second_weight", second_weight)):
            if len(weight) != 2 or min(weight) < 0:
                raise ValueError(f"`{name}` must be two numbers that are not negative, got {weight}")
        if not 0 <= erasing_threshold < 1:
            raise ValueError(f"`erasing_threshold` must be in [0, 1), got {erasing_threshold}")
        self.erased_weight, self.second_weight = tuple(erased_weight), tuple(second_weight)
        self.erasing_threshold = erasing_threshold
        self.classification = MultilabelSoftMargin(label_smoothing)
        twin = PuzzleCAM(num_classes, **kwargs)
        self.second = SecondClassifier(twin.backbone, twin.classifier)
        self.second_start = Start("second", second, self, dict(self.second.named_children()))

    @property
    def progress(self) -> float:
        """The share of the training that is done; 0 without a trainer."""
        return 0.0 if self._trainer is None else progress(self.trainer)

    @property
    def current_alpha(self) -> float:
        return puzzle_alpha(self.progress, 1, self.alpha)

    def training_step(self, batch: dict[str, Any]) -> None:  # type: ignore[override]
        images, tags = batch["image"], batch["tags"]
        optimizers: Any = self.optimizers()
        of_generator, of_second = optimizers
        drawn = draw_tag(tags, self._draws(images.device))
        with self.toggled_optimizer(of_generator):
            cams, logged = self._train_generator(of_generator, images, tags, drawn)
        with self.toggled_optimizer(of_second):
            logged["second"] = self._train_second(of_second, images, tags, drawn, cams)
        schedulers: Any = self.lr_schedulers()
        for scheduler in schedulers:
            scheduler.step()
        self.log("train/loss", logged.pop("loss"), prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in logged.items()})

    def _train_generator(
        self, optimizer: Any, images: Tensor, tags: Tensor, drawn: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        """A step of the generator; its maps, and what is logged."""
        self.second.eval()
        cams, merged = self.whole_and_merged(images)
        dimmed = erase(images, erasing_masks(cams, drawn, (images.shape[-2], images.shape[-1])))
        terms = {
            "classification": self.classification(cams, tags),
            "tiled_classification": self.classification(merged, tags),
            "reconstruction": self.reconstruction(cams, merged, tags),
            "erased": self.classification(self.second(dimmed), tags - drawn),
        }
        alpha, logged = self.current_alpha, {name: value.detach() for name, value in terms.items()}
        terms["reconstruction"] = terms["reconstruction"] * alpha
        terms["erased"] = terms["erased"] * _between(self.erased_weight, self.progress)
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return cams.detach(), {**logged, "alpha": alpha, "loss": loss.detach()}

    def _train_second(self, optimizer: Any, images: Tensor, tags: Tensor, drawn: Tensor, cams: Tensor) -> Tensor:
        """A step of the second classifier, on what the generator's maps leave; its loss without the weight."""
        self.second.train()
        masks = erasing_masks(cams, drawn, (images.shape[-2], images.shape[-1]), "map")
        loss = self.classification(self.second(erase(images, masks, self.erasing_threshold)), tags)
        optimizer.zero_grad()
        self.manual_backward(loss * _between(self.second_weight, self.progress))
        optimizer.step()
        found: Tensor = loss.detach()
        return found

    def configure_optimizers(self) -> Any:
        generator = nn.ModuleList([self.backbone, self.classifier])
        networks = ((generator, self.classifier), (self.second, self.second.classifier))
        optimizers = [
            torch.optim.SGD(
                parameter_groups(network, [head], self.lr, self.weight_decay), lr=self.lr, momentum=self.momentum
            )
            for network, head in networks
        ]
        steps = max(int(planned_steps(self.trainer, len(optimizers))), 1)
        return optimizers, [poly_decay(optimizer, steps) for optimizer in optimizers]

    def on_train_start(self) -> None:
        self.second_start.check()
        self._check_classes(self.second_start.about)

    def _draws(self, device: torch.device) -> torch.Generator | None:
        return step_generator(self.trainer, self.seed, device) if self._trainer else None


def _between(ends: tuple[float, ...], share: float) -> float:
    """Linearly from the first to the last."""
    return ends[0] + (ends[1] - ends[0]) * min(share, 1.0)
