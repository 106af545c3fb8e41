"""The command line: ``wsss-contrast fit | validate | predict | evaluate | submit | demo``."""

from __future__ import annotations

import sys
import traceback
import warnings
from argparse import ArgumentTypeError
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from wsss_contrast import __version__, callbacks, data, demo, evaluation, modules, submission
from wsss_contrast.checkpoints import CheckpointError, WholeCheckpoints, read_checkpoint
from wsss_contrast.refine import WorkerError, label_maker, refiner

DESCRIPTION = """Weakly supervised semantic segmentation: masks from image tags.

`wsss-contrast demo` trains and compares four methods on pictures that the package draws. `wsss-contrast evaluate`
scores a folder of masks, `wsss-contrast submit` packs one for the server of PASCAL VOC. The other commands take a
configuration, by path or by the name of one of the package's:
{names}."""


class WSSSCommandLine(LightningCLI):
    """LightningCLI with the number of classes taken from the data, and a writer of masks."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        known = LightningCLI.subcommands()
        return {name: known[name] for name in ("fit", "validate", "predict")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            parser.add_lightning_class_args(callbacks.MaskWriter, "masks")
            parser.add_argument(
                "--refine",
                type=str | None,
                help="refines the masks: none (the default of a Segmenter), par (pixel-adaptive refinement, else the "
                "default), crf (dense CRF; with the extra `crf` in a process for each CPU), crf:SETTINGS, "
                "psa:CHECKPOINT, psa:LOGT:CHECKPOINT or irn likewise (random walk of a trained AffinityNet or IRNet, "
                "of 2 to the power of LOGT steps, by default 8), sepl:FOLDER or "
                "crf+sepl:FOLDER (SEPL, with masks of a segment-anything model), or package.module.Name (a refiner of "
                "your own; with PYTHONPATH=. for a module in this folder)",
            )
            parser.add_argument(
                "--threshold",
                type=float | None,
                help="the score that a class must exceed at a pixel of a mask, 0 to 1; by default what validation has "
                "chosen for bare seeds. Walked scores may want another, IRN's own is 0.25",
            )
            parser.add_argument(
                "--labels",
                type=_labels,
                default="none",
                help="write labels in the place of masks, 255 where the maps are not sure, for AffinityNet (psa, or "
                "psa:LOW:HIGH with other powers of the background) or IRNet (irn, or irn:BACKGROUND:FOREGROUND with "
                "other thresholds) to learn from; refined by their dense CRF unless --refine says otherwise",
            )
        return parser

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # no plugin of the user's
            trainer.strategy.checkpoint_io = WholeCheckpoints()
        return trainer

    def _parse_ckpt_path(self) -> None:
        # A model that was trained in Python: Lightning notes its options, but not its class, and could not read them.
        chosen = self.config.get(self.config.get("subcommand"))
        options = _checkpoint(chosen and chosen.get("ckpt_path")).get("hyper_parameters", {})
        if options and "_class_path" not in options:
            model = {"class_path": chosen.model.class_path, "dict_kwargs": options}
            self.config = self.parser.parse_object({self.config.subcommand: {"model": model}}, self.config)
            return
        super()._parse_ckpt_path()

    def before_instantiate_classes(self) -> None:
        # By now Lightning has taken the model's options from the checkpoint, also over those of the command line.
        given = _model_options(sys.argv[1:])
        if given:
            self.config = self.parser.parse_args([str(self.subcommand), *given], namespace=self.config, defaults=False)
        if self.subcommand == "fit":
            return
        # What a trained model scores or predicts is of the classes that it was trained on.
        config = self.config[self.subcommand]
        chosen = config.data.get("init_args")
        if chosen and "classes" in chosen and chosen.classes is None:
            chosen.classes = _checkpoint(config.ckpt_path).get("class_names")

    def before_fit(self) -> None:
        if isinstance(self.model, modules.PairModule):  # which has no validation, whatever the data has
            warnings.filterwarnings("ignore", message="You passed in a `val_dataloader`")
            return
        every, epochs = self.trainer.check_val_every_n_epoch, self.trainer.max_epochs
        trial = self.config["fit"]["trainer"]["fast_dev_run"] or isinstance(self.model, modules.Segmenter)
        if not trial and every and epochs and epochs > 0 and epochs % every:
            sys.exit(
                f"wsss-contrast: the last of {epochs} epochs would not be validated, so no background threshold would "
                f"be chosen; set --trainer.check_val_every_n_epoch {epochs}"
            )

    def before_validate(self) -> None:
        self._need_checkpoint()
        self._need_maps()

    def before_predict(self) -> None:
        self._need_checkpoint()
        self._need_maps()
        labels, threshold = self.config["predict"]["labels"], self.config["predict"]["threshold"]
        if threshold is not None and labels != "none":
            sys.exit("wsss-contrast: --threshold is of masks; the labels have thresholds of their own")
        if threshold is not None and not 0 <= threshold < 1:
            sys.exit(f"wsss-contrast: --threshold must be in [0, 1), got {threshold}")
        default = "par" if labels == "none" else f"crf:{labels.partition(':')[0]}"
        if isinstance(self.model, modules.Segmenter):
            if threshold is not None or labels != "none":
                sys.exit("wsss-contrast: --threshold and --labels are of activation maps, Segmenter makes none")
            default = "none"
        else:
            self.model.threshold = threshold
        try:
            if labels != "none":
                self.model.make_labels = label_maker(labels)
            self.model.refine = refiner(self.config["predict"]["refine"] or default)
        except (ImportError, ValueError) as error:
            sys.exit(f"wsss-contrast: {error}")

    def after_predict(self) -> None:
        close = getattr(self.model.refine, "close", None)
        if close is not None:
            close()

    def _need_checkpoint(self) -> None:
        if self.config[self.subcommand]["ckpt_path"] is None:
            sys.exit(f"wsss-contrast: {self.subcommand} needs --ckpt_path, the checkpoint of a trained model")

    def _need_maps(self) -> None:
        name = type(self.model).__name__
        if isinstance(self.model, modules.PairModule):
            sys.exit(
                f"wsss-contrast: {self.subcommand} takes a module that makes activation maps, {name} makes none; give "
                "its checkpoint to --refine, as psa:CHECKPOINT or irn:CHECKPOINT"
            )


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; ``args`` replace those after the program's name."""
    given = sys.argv[1:] if args is None else list(args)
    if given[:1] == ["demo"]:
        demo.main(given[1:])
        return
    if given[:1] == ["evaluate"]:
        evaluation.main(given[1:])
        return
    if given[:1] == ["submit"]:
        submission.main(given[1:])
        return
    if given[:1] == ["--version"]:
        print(__version__)
        return
    # LightningCLI warns where it is given arguments beside those of the program.
    argv, sys.argv = sys.argv, [sys.argv[0], *_with_paths(given)]
    try:
        WSSSCommandLine(
            modules.WSSSModule,
            data.WSSSDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            parser_kwargs={"description": DESCRIPTION.format(names=", ".join(packaged_configs()))},
            save_config_kwargs={"overwrite": True},
        )
    except Exception as error:
        fault = _fault(error)
        if fault is None:
            raise
        sys.exit(f"wsss-contrast: {fault}")
    finally:
        sys.argv = argv


def _fault(error: BaseException | None) -> str | None:
    """What is wrong with the arguments or the data; None for another error, whose traceback is wanted."""
    named = (
        *(data.DataError, callbacks.TapError, callbacks.OptimizerError, CheckpointError, MisconfigurationException),
        *(WorkerError, FileNotFoundError, FileExistsError, ImportError),
    )
    while error is not None and error.__traceback__ is not None:
        last = traceback.extract_tb(error.__traceback__)[-1]
        # A ValueError of a `raise` in this package is a check. One of any other line is a bug.
        check = Path(__file__).parent in Path(last.filename).parents and (last.line or "").startswith("raise ")
        if isinstance(error, named) or (isinstance(error, ValueError) and check):
            # Of an error in a worker of a loader, torch makes the message: a traceback, which ends in the error's own.
            return str(error).rpartition(f"{type(error).__module__}.{type(error).__qualname__}: ")[2].strip()
        if "jsonargparse" not in Path(last.filename).parts:  # which wraps what a constructor raises
            return None
        error = error.__cause__
    return None


def _labels(name: str) -> str:
    """A value of ``--labels``."""
    try:
        if name != "none":
            label_maker(name)
    except ValueError as error:
        raise ArgumentTypeError(error) from error
    return name


def packaged_configs() -> dict[str, Path]:
    """The configurations in the package, by name."""
    folder = Path(str(files("wsss_contrast") / "configs"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _checkpoint(path: str | Path | None) -> dict[str, Any]:
    """What a checkpoint holds; nothing where Lightning has to find it: ``last``, an address."""
    path = str(path or "")
    if not Path(path).is_file() and (not path.endswith(".ckpt") or "://" in path or Path(path).exists()):
        return {}
    return read_checkpoint(path)


def _model_options(args: Sequence[str]) -> list[str]:
    """The options ``--model.NAME value`` and ``--model.NAME=value``."""
    options = []
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        if arg.startswith("--model."):
            options += [arg] if "=" in arg else [arg, following]
    return options


def _with_paths(args: Sequence[str]) -> list[str]:
    """Replace the names of packaged configurations by their paths; a file of that name in the folder wins."""
    known = packaged_configs()

    def path(name: str) -> str:
        return str(known[name]) if name in known and not Path(name).is_file() else name

    replaced = []
    for previous, arg in zip(["", *args], args, strict=False):
        if previous in ("--config", "-c"):
            arg = path(arg)
        elif arg.startswith("--config="):
            arg = f"--config={path(arg.removeprefix('--config='))}"
        replaced.append(arg)
    return replaced


if __name__ == "__main__":
    main()
