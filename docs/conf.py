"""Sphinx's configuration: Markdown by MyST, the API from the docstrings; `nox -s docs` builds it offline."""

from __future__ import annotations

import tomllib
from pathlib import Path

_project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "llm_compression"
author = "llm_compression"
release = version = _project["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# anchors as the README's host makes them, so that one link serves both
myst_heading_anchors = 4
# docstrings mark a name by single backticks
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": False}
python_use_unqualified_type_names = True
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"llm_compression {release}"
html_show_sourcelink = False
