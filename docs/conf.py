"""The documentation site: pages in Markdown, notebooks as text, the API from docstrings."""

from __future__ import annotations

import re
from importlib import metadata
from typing import Any

from sphinx.application import Sphinx

project = "nasi-jax"
author = copyright = "The nasi-jax authors"
release = metadata.version("nasi-jax")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", ".jupyter_cache"]
html_theme = "furo"
html_title = f"nasi-jax {release}"

# Pages that compute are run as the site is built, and what they raise is an error of the build.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds a cell, of a busy machine
nb_execution_show_tb = True

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # as GitHub makes them, for links to #headings

# Docstrings are of Google's form, with names and formulas in single backticks.
default_role = "code"
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True

nitpicky = True
# Types of other packages, whose indices are in the net alone, and names that have no entry here.
nitpick_ignore_regex = [(r"py:.*", r".*")]

# Pages link to one another as files of the repository, some of which have a page by another name.
_LINKS = {
    r"\]\((?:\.\./)*benchmarks/README\.md": "](/studies.md",
    r"\]\((?:\.\./)*docs/": "](/",
}


def _relink(content: list[str]) -> None:
    for link, target in _LINKS.items():
        content[0] = re.sub(link, target, content[0])


def _escape(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keeps formulas such as ||v^T J||^2 from being read as markup, outside of backticks."""
    parts = "\n".join(lines).split("`")
    for index in range(0, len(parts), 2):
        parts[index] = parts[index].replace("|", r"\|").replace("*", r"\*")
        # `num_steps: T.` is no list of twenty items.
        parts[index] = re.sub(r": (\w)\.$", r": \1\\.", parts[index], flags=re.MULTILINE)
    lines[:] = "`".join(parts).split("\n")


def setup(app: Sphinx) -> None:
    """Connects the above."""
    app.connect("source-read", lambda app, name, content: _relink(content))
    app.connect("include-read", lambda app, path, name, content: _relink(content))
    # Before napoleon reads the sections.
    app.connect("autodoc-process-docstring", _escape, priority=400)
