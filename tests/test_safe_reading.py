"""No code of ours runs what a file says: no pickle, no unsafe YAML, no `eval`."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("wsss_contrast", "examples", "benchmarks")
PICKLES = ("cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve")
LOADERS = ("load", "loads", "Unpickler", "open")
UNSAFE_YAML = (
    *(f"{kind}load{of}" for kind in ("", "full_", "unsafe_") for of in ("", "_all")),
    *("Loader", "FullLoader", "UnsafeLoader"),
)
ALLOWED = {"benchmarks/gathered_bytes.py": {"eval"}}
"""It evaluates formulas of its own, so that what it prints is what it holds."""


def code(path: Path) -> str:
    """Of a script, or of a notebook's cells without the lines that IPython reads."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return "\n".join(line for line in "\n".join(cells).splitlines() if not line.startswith(("%", "!")))


def unsafe(source: str) -> list[str]:
    """What may run what it reads, by line."""
    tree, meant, found = ast.parse(source), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            of = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            meant |= {name.asname or name.name: of + name.name for name in node.names}

    def full_name(node: ast.AST) -> str:
        if isinstance(node, ast.Name):
            return meant.get(node.id, node.id)
        return f"{full_name(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""

    for node in ast.walk(tree):
        name = full_name(node)
        module, _, last = name.rpartition(".")
        if (module in PICKLES and last in LOADERS) or (module == "yaml" and last in UNSAFE_YAML):
            found.append((node.lineno, name))
        if name in ("eval", "exec"):
            found.append((node.lineno, name))
        if isinstance(node, ast.Call):
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            if full_name(node.func) == "torch.load" and options.get("weights_only") != "True":
                found.append((node.lineno, "torch.load without weights_only=True"))
            if full_name(node.func) == "numpy.load" and options.get("allow_pickle", "False") != "False":
                found.append((node.lineno, "np.load with allow_pickle"))
    return [f"line {line}: {what}" for line, what in sorted(found)]


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_read_is_not_run(folder: str) -> None:
    paths = sorted(path for kind in ("py", "ipynb") for path in (ROOT / folder).rglob(f"*.{kind}"))
    assert len(paths) > 5
    found = {
        f"{name}, {line}"
        for name, path in ((path.relative_to(ROOT).as_posix(), path) for path in paths)
        for line in unsafe(code(path))
        if line.partition(": ")[2] not in ALLOWED.get(name, ())
    }
    assert not found


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import numpy as np\nnp.load(x, allow_pickle=True)", "np.load with allow_pickle"),
        ("import numpy\nnumpy.load(x, allow_pickle=flag)", "np.load with allow_pickle"),
        ("from numpy import load\nload(x, allow_pickle=1)", "np.load with allow_pickle"),
        ("import torch\ntorch.load(x)", "torch.load without weights_only=True"),
        ("import torch\ntorch.load(x, weights_only=False)", "torch.load without weights_only=True"),
        ("import torch\ndef f():\n    return torch.load(x, weights_only=flag)", "torch.load without weights_only=True"),
        ("import yaml\nyaml.load(x, yaml.SafeLoader)", "yaml.load"),
        ("import yaml\nyaml.unsafe_load(x)", "yaml.unsafe_load"),
        ("from yaml import full_load\nfull_load(x)", "yaml.full_load"),
        ("import pickle\npickle.loads(x)", "pickle.loads"),
        ("import pickle as p\nwith f: p.load(f)", "pickle.load"),
        ("from pickle import Unpickler as U\nU(f).load()", "pickle.Unpickler"),
        ("import joblib\njoblib.load(x)", "joblib.load"),
        ("eval(x)", "eval"),
        ("list(map(exec, x))", "exec"),
    ],
)
def test_it_is_found(source: str, what: str) -> None:
    assert any(line.endswith(f": {what}") for line in unsafe(source)), unsafe(source)


def test_what_is_safe_is_not_found() -> None:
    source = (
        "import pickle, re, torch, yaml\nimport numpy as np\nnp.load(x)\nnp.load(x, allow_pickle=False)\nnet.eval()\n"
        "torch.load(x, weights_only=True)\nyaml.safe_load(x)\nre.compile(x)\njson.loads(x)\npickle.UnpicklingError\n"
    )
    assert unsafe(source) == []
