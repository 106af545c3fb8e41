"""The documentation builds without a warning, has every public name, and its first example runs."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_imports import PUBLIC

ROOT = Path(__file__).parents[1]
COMMAND = "sphinx-build -W --keep-going -b html docs docs/_build/html"
PACKAGES = [*(package.__name__ for package in PUBLIC), "wsss_contrast.distributed"]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    for name in ("sphinx", "furo", "myst_nb"):
        pytest.importorskip(name, reason=f"{name} is not installed (extra `docs`)")
    folder = tmp_path_factory.mktemp("docs")
    options = shlex.split(COMMAND)[1:-1]
    command = [sys.executable, "-m", "sphinx", "-q", *options, str(folder / "html"), "-d", str(folder / "doctrees")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True), folder / "html"


def test_the_documentation_builds_without_a_warning(
    build: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, html = build
    assert done.returncode == 0, done.stderr
    assert (html / "index.html").is_file()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_api(package: str, build: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((build[1] / "objects.inv").read_bytes(), uri="").data
    described = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    assert {f"{package}.{name}" for name in _public(package)} <= described


def _public(package: str) -> list[str]:
    module = importlib.import_module(package)
    if hasattr(module, "__all__"):
        return list(module.__all__)
    functions = inspect.getmembers(module, lambda value: getattr(value, "__module__", None) == package)
    return [name for name, _ in functions if not name.startswith("_")]


def test_all_packages_with_public_names_are_tested() -> None:
    packages = {f"wsss_contrast.{path.parent.name}" for path in (ROOT / "wsss_contrast").glob("*/__init__.py")}
    assert packages <= set(PACKAGES)
    assert _public("wsss_contrast.distributed")


def test_the_first_example_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "index.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], "docs/index.md", "exec"), {})


def test_contributors_are_told_the_command() -> None:
    assert COMMAND in (ROOT / "CONTRIBUTING.md").read_text()
