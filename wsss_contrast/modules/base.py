"""What every module of the library shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from wsss_contrast.checkpoints import Migration, up_to_date
from wsss_contrast.data import DataError, SameSizeBatches
from wsss_contrast.functional import commonest_labels
from wsss_contrast.refine import Refiner, WorkerError
from wsss_contrast.training import refuse_synced_norms, resume_where_it_was, step_seed

from .optim import parameter_groups, poly_decay


def naming_photos(names: Sequence[str], make: Callable[[], Tensor]) -> Tensor:
    """What ``make`` gives for these photos; where one of them ends its process, the error has its name."""
    try:
        return make()
    except WorkerError as error:
        raise WorkerError(f"photo {names[error.number]}: {error}") from error


class WSSSModule(L.LightningModule):
    """A LightningModule with the field's optimiser: rates by kind of parameter, and poly decay over the whole training.

    A subclass gives ``training_step``, and :attr:`heads`.

    Args:
        lr: rate of weights; biases get twice, :attr:`heads` ten times that.
        momentum: of SGD.
        weight_decay: of weights; biases have none.

    Raises:
        ValueError: a rate that is not positive.
    """

    refine: Refiner | None = None
    """Refines the masks that are predicted; not what validation scores. See :class:`~wsss_contrast.refine.Refiner`."""

    keep_seeds = False
    """Whether predictions have the seeds as well, which are large."""

    migrations: Sequence[Migration] = ()
    """What brings a checkpoint of an older format up to date. The first takes version 1 to version 2."""

    _seed: int | None = None

    masks_later = False
    """Whether predictions have a function that makes the masks in their place, for a refiner that takes long."""

    def __init__(self, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__()
        if lr <= 0:
            raise ValueError(f"`lr` must be positive, got {lr}")
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "refine":  # no part of the network, even if it is a module: checkpoints are without it
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def heads(self) -> list[nn.Module]:
        """The parts that are trained from scratch."""
        return []

    @property
    def _data(self) -> Any:
        """The trainer's data module, if there is one."""
        return None if self._trainer is None else getattr(self._trainer, "datamodule", None)

    def _scored(self, count: int) -> list[str]:
        """What the validation loaders are of, ``train`` or ``val``."""
        loaders = self.trainer.val_dataloaders
        loaders = [loaders] if isinstance(loaders, DataLoader) else list(loaders or [])
        # The trainer keeps a data module when loaders are given later, so its sets count only if they are loaded.
        sets = getattr(self._data, "val_sets", {})
        scored = [getattr(loader, "dataset", None) for loader in loaders]
        scored = [data.dataset if isinstance(data, SameSizeBatches) else data for data in scored]
        names = [name for loaded in scored for name, data in sets.items() if loaded is data]
        return names if len(names) == count else ["train", "val"][-count:]

    @property
    def seed(self) -> int:
        """The seed of a training's random draws, torch's when it began, also where it was interrupted."""
        return torch.initial_seed() if self._seed is None else self._seed

    def on_fit_start(self) -> None:
        if self.trainer.ckpt_path is None or self._seed is None:  # else it is the checkpoint's
            self._seed = torch.initial_seed()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout draws from torch's own generator, which no checkpoint has; not the numbers of the module's own draws.
        torch.manual_seed(step_seed(self.trainer, self.seed + 1_000))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["version"] = len(self.migrations) + 1
        checkpoint["seed"] = self.seed
        names = getattr(self._data, "class_names", None)
        if names is not None:
            checkpoint["class_names"] = list(names)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        current = up_to_date(checkpoint, self.migrations, type(self).__name__)
        checkpoint.clear()
        checkpoint.update(current)
        self._seed = checkpoint.get("seed")
        if "fit_loop" in checkpoint.get("loops", {}):
            resume_where_it_was(checkpoint["loops"])
        self._check_classes(checkpoint)

    def _check_classes(self, checkpoint: Mapping[str, Any]) -> None:
        """The data is of the classes of a checkpoint."""
        trained, given = checkpoint.get("class_names"), getattr(self._data, "class_names", None)
        if trained is not None and given is not None and trained != list(given):
            raise DataError(f"the checkpoint is of the classes {trained}, the data of {list(given)}")

    def configure_model(self) -> None:
        if self._trainer is not None:
            refuse_synced_norms(self.trainer, self)
        self.to(memory_format=torch.channels_last)  # a step takes half the time on a CPU

    def configure_optimizers(self) -> OptimizerLRScheduler:
        groups = parameter_groups(self, self.heads, self.lr, self.weight_decay)
        optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum)
        steps = max(int(self.trainer.estimated_stepping_batches), 1)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": poly_decay(optimizer, steps), "interval": "step"},
        }


class PairModule(WSSSModule):
    """What the modules share that learn from pairs of pixels: labels on disk, and no seeds.

    Batches are dicts: ``image`` (N, 3, H, W) normalised by ImageNet's mean and standard deviation, and ``labels``
    (N, H, W), ids and 255 for none, as data modules with a folder ``labels`` give them. There is no validation and no
    ``predict``: the trained network refines what another module predicts.

    A block of the network's stride has the label that most of its pixels have
    (:func:`~wsss_contrast.functional.commonest_labels`).
    """

    def labels_of(self, batch: dict[str, Any], stride: int) -> Tensor:
        """The labels of a batch at this stride.

        Raises:
            DataError: the batch has none.
        """
        if "labels" not in batch:
            raise DataError(
                f"{type(self).__name__} learns from label images, and the batch has no `labels`: give the data module "
                "a folder `labels`, as `wsss-contrast predict --labels` writes it"
            )
        return commonest_labels(batch["labels"], stride)

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The sum of named terms, which are logged."""
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()})
        loss = sum(terms.values())
        assert isinstance(loss, Tensor)
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss
