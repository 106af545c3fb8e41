"""Sphinx settings. Build from the root: `sphinx-build -W --keep-going -b html docs docs/_build/html`."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from wsss_contrast import __version__  # noqa: E402

project = "wsss_contrast"
author = "the wsss_contrast contributors"
version = release = __version__

# No intersphinx: the build needs no network.
extensions = ["sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "myst_nb"]
exclude_patterns = ["_build", "notebooks/README.md"]  # `notebooks` is a link to `examples`, whose README is for GitHub
html_theme = "furo"
html_title = f"wsss_contrast {release}"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are stored with the outputs of a real run; the tests run them

# A package's page has what its `__all__` names, in that order.
autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_inherit_docstrings = False  # Lightning's and torchmetrics' own are theirs to render
autodoc_preserve_defaults = True  # `THRESHOLDS`, not its sixty numbers
autodoc_typehints = "signature"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Every reference must resolve, but for names that belong to other packages or are no part of the public ones.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|lightning|torchmetrics|albumentations|A|L|nn|np|numpy)\..*"),
    (r"py:.*", r"(collections|contextlib|typing|pathlib|abc)\..*"),
    (r"py:class", r"Tensor|Path"),
    (r"py:class", r"wsss_contrast\.(\w+\.)*_\w+"),  # private bases
]
