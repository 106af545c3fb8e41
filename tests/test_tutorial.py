"""The tutorial's code and commands run in their order, as they stand but for smaller sizes."""

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

TUTORIAL = (Path(__file__).parents[1] / "docs" / "tutorials" / "your_photos.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", TUTORIAL, re.DOTALL)
SMALL = {name: value for name, value in TINY.items() if not name.endswith(("_split", "official"))} | {
    "model.init_args.view_size": "24",
    "trainer.max_epochs": "1",
}


def test_each_command_is_run() -> None:
    """Nothing is shown in a block that the test below would pass over."""
    assert [kind for kind, _ in BLOCKS] == ["python", "bash", "bash", "python", "bash", "python"]
    others = re.findall(r"^```(?!python|bash|text|$)", TUTORIAL, re.MULTILINE)
    assert not others
    assert all(block.startswith("wsss-contrast ") for kind, block in BLOCKS if kind == "bash")


def test_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = data.ShapesDataset
    monkeypatch.setattr(data, "ShapesDataset", lambda split, length: pictures(split, 48, min(length, 24)))
    for kind, block in BLOCKS:
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
