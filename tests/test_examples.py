"""The scripts in `examples/` run as they stand, attach PPC in few lines, and PPC trains their hosts."""

import ast
import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from tests.conftest import IMAGES
from wsss_contrast.data import SegmentFolder
from wsss_contrast.nn import Projector

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SCRIPTS = [path for path in EXAMPLES if "attach PPC" in path.read_text()]
ATTACH = re.compile(r"^ *# --- attach PPC: \w+\n(.*?)^ *# ---\n", re.MULTILINE | re.DOTALL)
MOST_LINES = 15
TERMS = ("cross_prototype", "cross_cam", "intra_view")

each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


class Run(NamedTuple):
    printed: list[dict[str, float]]  # a dict a step
    gradients: list[Tensor]  # of the host's parameters, after the first step
    projectors: list[tuple[Tensor, Tensor]]  # weights before the first step and after the last


def run(code: str, script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    if "segmentation_models_pytorch" in code:
        pytest.importorskip("segmentation_models_pytorch", reason="segmentation-models-pytorch is not installed")
    before: dict[Projector, Tensor] = {}
    gradients: list[Tensor] = []
    forward = Projector.forward

    def first_weight_kept(self: Projector, features: Tensor) -> Tensor:
        before.setdefault(self, self[0].weight.detach().clone())
        return forward(self, features)

    def keep_gradients(optimizer: Optimizer, *_: Any) -> None:
        theirs = {id(p) for projector in before for p in projector.parameters()}
        if not gradients:
            host = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in theirs]
            gradients.extend(p.grad.detach().clone() for p in host if p.requires_grad)

    handle = register_optimizer_step_post_hook(keep_gradients)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Projector, "forward", first_weight_kept)
            exec(compile(code, str(script), "exec"), {"__name__": "__main__"})
    finally:
        handle.remove()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    return Run(
        [{key.split("/")[-1]: value for key, value in ast.literal_eval(line).items()} for line in lines],
        gradients,
        [(weight, projector[0].weight.detach()) for projector, weight in before.items()],
    )


def test_there_is_one_for_each_host() -> None:
    assert len(SCRIPTS) == 10
    assert {path.stem for path in EXAMPLES} - {path.stem for path in SCRIPTS} == {"csrm_terms", "superpixel_masks"}


def test_superpixels_are_masks_for_sepl(
    voc_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of each grid cover the photo once."""
    script, out = ROOT / "examples" / "superpixel_masks.py", tmp_path / "runs" / "segments"
    monkeypatch.setattr(sys, "argv", [str(script), str(voc_root / "JPEGImages"), str(out), "--steps", "10", "500"])
    exec(compile(script.read_text(), str(script), "exec"), {"__name__": "__main__", "__doc__": ""})
    assert capsys.readouterr().out.splitlines() == [f"a_{n + 1}.jpg: {m} masks" for n, m in enumerate((25, 17, 5))]
    for name, (size, _) in IMAGES.items():
        masks = SegmentFolder(out)(name, size)
        small = masks[: size[0] // 10 * (size[1] // 10)]
        assert (small.sum(dim=0) == 1).all()
        assert (masks[len(small) :].sum(dim=0) == 1).all()
        assert (small.sum(dim=(1, 2)) < 600).all()


def test_csrm_terms_come_in_after_the_warm_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    script = ROOT / "examples" / "csrm_terms.py"
    steps = run(script.read_text(), script, monkeypatch, capsys).printed
    assert len(steps) == 8
    assert all(step[term] == 0 for step in steps[:2] for term in ("seg_to_cam", "contrast"))
    # The first step after it: later ones depend on what eight steps of training made of rounding errors.
    assert steps[2]["seg_to_cam"] > 0
    assert steps[2]["contrast"] > 0
    assert all(math.isfinite(value) for step in steps for value in step.values())


@each_script
def test_attaches_in_few_lines(script: Path) -> None:
    lines = [line.strip() for block in ATTACH.findall(script.read_text()) for line in block.splitlines()]
    counted = [line for line in lines if line and not line.startswith("#")]
    assert 0 < len(counted) <= MOST_LINES


@each_script
def test_ppc_trains_the_host(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code = script.read_text()
    with_ppc = run(code, script, monkeypatch, capsys)
    host_code = ATTACH.sub("", code)
    words = set(re.findall(r"\w+", host_code.split('"""', 2)[2]))
    assert not {"PPC", "Projector", "PrototypeContrast", "PrototypeContrastCallback", "contrast"} & words
    alone = run(host_code, script, monkeypatch, capsys)

    for step in with_ppc.printed[0], with_ppc.printed[-1]:
        assert all(math.isfinite(step[term]) and step[term] > 0 for term in TERMS), step
    assert len(with_ppc.printed) > 1
    assert with_ppc.printed[0]["tags"] == alone.printed[0]["tags"]
    assert not set(TERMS) & set(alone.printed[0])

    assert len(with_ppc.projectors) == 1
    assert alone.projectors == []
    before, after = with_ppc.projectors[0]
    assert not torch.equal(before, after)

    # The network learns from PPC; the CAM layer, the host's last, does not: maps are constants.
    assert len(with_ppc.gradients) == len(alone.gradients)
    assert not torch.allclose(with_ppc.gradients[0], alone.gradients[0], rtol=1e-3)
    torch.testing.assert_close(with_ppc.gradients[-1], alone.gradients[-1])
    assert all(bool(gradient.isfinite().all()) for gradient in with_ppc.gradients)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_fabric_on_two_processes(tmp_path: Path) -> None:
    """Host and projector stay the same on both, though each has other photos."""
    pytest.importorskip("click", reason="Fabric's command line needs click")
    launcher = tmp_path / "launched.py"
    launcher.write_text(
        "import runpy, torch\n"
        f"names = runpy.run_path({str(ROOT / 'examples' / 'fabric_resnet.py')!r})\n"
        "fabric, parts = names['fabric'], (names['model'], names['projector'])\n"
        "weights = torch.cat([p.detach().flatten() for part in parts for p in part.parameters()])\n"
        f"torch.save((weights, names['batch']['name']), {str(tmp_path)!r} + f'/{{fabric.global_rank}}.pt')\n"
    )
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "lightning.fabric.cli", "--devices=2", f"--main-port={free_port()}", str(launcher)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (first, names), (second, other_names) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert set(names).isdisjoint(other_names)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("page", ["examples/README.md", "docs/any_host.md"])
def test_page_shows_every_script(page: str) -> None:
    text = (ROOT / page).read_text()
    shown = EXAMPLES if page == "examples/README.md" else SCRIPTS
    assert [script.name for script in shown if script.name not in text] == []


def test_snippets_of_the_page_exist() -> None:
    text = (ROOT / "docs" / "any_host.md").read_text()
    snippets = re.findall(r"\{literalinclude\} (\S+)\n((?::[\w-]+:.*\n)*)", text)
    assert len(snippets) >= len(SCRIPTS)
    for path, options in snippets:
        code = (ROOT / "docs" / path).read_text()
        for marker in re.findall(r':start-after: "(.*)"', options):
            assert code.count(marker) == 1, (path, marker)
