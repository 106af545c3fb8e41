"""The table of speed measures the same computations on both sides. No time is tested."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from tests.literal import pixel_adaptive, ppc, tensors
from tests.modules.tiny import CLASSES, OPTIONS, batch
from tests.test_conformance import load_tool
from wsss_contrast.functional import pixel_affinity, propagate
from wsss_contrast.modules import SEAM

run, parts, steps = load_tool("run"), load_tool("speed_parts"), load_tool("speed_steps")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BATCH": 2, "CROP": 64, "VIEW": 32, "MAPS": 8, "VIEW_MAPS": 4, "WIDTH": 8}.items():
        monkeypatch.setattr(parts, name, value)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["PPC loss", "PCM", "SEAM losses", "CSRM contrast", "entropy quantile", "dense CRF"])
def test_a_part_agrees_with_its_literal_reading(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "in_a_fresh_process", lambda *_: 7.0)
    if name == "CSRM contrast":
        monkeypatch.setattr(parts, "CLASSES", 3)  # a memory of fewer rows
    row = run.measure(name, rounds=2)
    assert len(row["ours"]) == len(row["literal"]) == 2
    assert row["differs by"] <= 0.05
    lines = run.table({name: row}).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith(f"| {name}: {row['sizes']} | ")


@pytest.mark.usefixtures("small")
def test_a_part_that_does_not_agree_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "pixel_correlation", lambda maps, features: maps * features.mean())
    with pytest.raises(SystemExit, match="PCM: differs from its literal reading by"):
        run.measure("PCM", rounds=1)


def test_budgets() -> None:
    row = {"ours": [1.0, 2.0, 1.0], "literal": [6.0, 6.0, 6.0], "floor": [0.5, 1.0, 0.5], "ours MiB": 40.0}
    assert run.verdict("PPC loss", row) == "at least 5 x the literal: held; at most 1.5 x the floor: **missed**"
    assert run.verdict("PCM", row | {"ours MiB": 351.0}).endswith("at most 350 MiB: **missed**")
    assert run.verdict("SEAM losses", row | {"literal MiB": 80.0}).endswith("at most 0.5 of its memory: held")
    assert run.verdict("dense CRF", row) == ""


def test_the_literal_step_of_seam_has_the_same_loss() -> None:
    torch.manual_seed(0)
    module, literal = (kind(CLASSES, view_size=32, **OPTIONS).eval() for kind in (SEAM, steps.LiteralSEAM))
    literal.load_state_dict(module.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is no trainer to log to
        losses = [of.training_step(batch()) for of in (module, literal)]
    assert losses[0] > 0
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


def test_the_table_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    for name in ("CROP", "MAPS"):
        monkeypatch.setattr(parts, name, 64)
    run.main(["--parts", "entropy quantile", "--rounds", "1", "--threads", "1", "--json", str(tmp_path / "t.json")])
    found = json.loads((tmp_path / "t.json").read_text())
    assert list(found["parts"]) == ["entropy quantile"]
    assert "threads" in found["machine"]
    assert "| entropy quantile:" in capsys.readouterr().out


def test_prototype_contrast_in_whole_tensors() -> None:
    """The reading that the table measures against is that of the paper."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    embeddings = normal(2, 5, 6, 6).requires_grad_(), normal(2, 5, 4, 4).requires_grad_()
    maps = embeddings[0], normal(2, 3, 6, 6), embeddings[1], normal(2, 3, 4, 4)
    tags, draws = torch.tensor([[1, 0, 1], [0, 1, 1]]), (torch.rand(2, 32).double(), torch.rand(2, 32, 4).double())
    whole = tensors.prototype_contrast(*maps, tags, *draws, top_k=4)
    pixelwise = ppc.prototype_contrast(*maps, tags, draws=draws, top_k=4)
    for name, term in pixelwise.items():
        torch.testing.assert_close(whole[name], term, rtol=1e-9, atol=1e-12)
        slopes = [torch.autograd.grad(of[name], embeddings, retain_graph=True) for of in (whole, pixelwise)]
        torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-10)


def test_pixel_adaptive_refinement_in_whole_tensors() -> None:
    photos = torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 255
    maps, dilations = torch.rand(1, 2, 6, 7, generator=torch.Generator().manual_seed(5)).double(), (1, 2)
    affinity = pixel_affinity(photos, dilations)
    whole = tensors.pixel_adaptive(maps, affinity, dilations, 2)
    torch.testing.assert_close(whole, pixel_adaptive.propagate(maps, affinity, dilations, 2), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(whole, propagate(maps, affinity, dilations, 2), rtol=1e-9, atol=1e-12)
