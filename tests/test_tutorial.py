"""The tutorials' code and commands run in their order, as they stand but for smaller sizes."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import wsss_contrast.data as data
from tests.test_cli import TINY
from wsss_contrast import cli

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
TUTORIALS = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
BLOCKS = {name: re.findall(r"```(python|bash|yaml)\n(.*?)```", text, re.DOTALL) for name, text in TUTORIALS.items()}
SMALL = {name: value for name, value in TINY.items() if not name.endswith(("_split", "official"))} | {
    "model.init_args.view_size": "24",
    "trainer.max_epochs": "1",
}


def test_each_command_is_run() -> None:
    """Nothing is shown in a block that the tests below would pass over."""
    kinds = {name: [kind for kind, _ in blocks] for name, blocks in BLOCKS.items()}
    assert kinds == {
        "your_photos": ["python", "bash", "bash", "python", "bash", "python"],
        "from_tags_to_segmenter": ["yaml", "bash", "bash", "bash"],
    }
    for name, text in TUTORIALS.items():
        assert not re.findall(r"^```(?!python|bash|yaml|text|$)", text, re.MULTILINE)
        assert all(line.startswith("wsss-contrast ") for line in commands(name))


def commands(tutorial: str) -> list[str]:
    return [line for kind, block in BLOCKS[tutorial] if kind == "bash" for line in block.splitlines()]


def test_from_tags_to_segmenter(
    voc_root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
    Path("VOC2012").symlink_to(voc_root)
    (voc_root / "ImageSets/Segmentation/val.txt").write_text("a_1\na_2\n")
    ((_, settings), *_) = BLOCKS["from_tags_to_segmenter"]
    assert settings.startswith("# mine.yaml\n")
    Path("mine.yaml").write_text(settings)
    sizes = ("backbone", "weights", "crop_size", "resize_long", "batch_size", "num_workers", "max_epochs")
    small = SMALL | {"trainer.check_val_every_n_epoch": "1"}
    options = [f"--{name}={value}" for name, value in small.items() if name.endswith((*sizes, "_epoch", "accelerator"))]
    for line in commands("from_tags_to_segmenter"):
        args = shlex.split(line)[1:]
        view = [f"--model.init_args.view_size={SMALL['model.init_args.view_size']}"] if "view_size" in line else []
        cli.main(args if args[0] == "evaluate" else [*args, *options, *view])
    assert {path.stem for path in Path("pseudo_masks").glob("*.png")} == {"a_1", "a_2", "a_3"}
    for folder in ("single_scale", "multi_scale_crf"):
        assert {path.stem for path in Path(folder).glob("*.png")} == {"a_1", "a_2"}
        assert Path("scores", folder, "scores.csv").read_text().startswith("class,iou,precision,recall\nbackground,")


def test_your_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = data.ShapesDataset
    monkeypatch.setattr(data, "ShapesDataset", lambda split, length: pictures(split, 48, min(length, 24)))
    for kind, block in BLOCKS["your_photos"]:
        if kind == "python":
            exec(compile(block, "your_photos.md", "exec"), {})
        else:
            for line in block.splitlines():
                cli.main([*shlex.split(line)[1:], *(f"--{name}={value}" for name, value in SMALL.items())])
    trained = torch.load("runs/folder/last.ckpt", weights_only=True)
    assert trained["class_names"] == sorted(data.SHAPES_CLASSES)
    assert int(trained["state_dict"]["threshold_index"]) != 20  # chosen on the masks
    for folder in ("masks", "new_masks"):
        written = sorted(Path(folder).glob("*.png"))
        assert [path.stem for path in written] == sorted(path.stem for path in Path("my_photos/images").iterdir())
        for path in written:
            with Image.open(path) as mask:
                assert (mask.mode, mask.size) == ("P", (48, 48))
                assert np.asarray(mask).max() <= len(data.SHAPES_CLASSES)
    with Image.open("sheet.png") as sheet:
        assert sheet.size[0] > 3 * 160
