"""Sphinx settings: ``make docs`` writes the pages to ``build/docs``."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

import genmeasures

project = "genmeasures"
version = release = genmeasures.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_parser"]
html_theme = "alabaster"
html_theme_options = {"description": "Generalization measures of trained networks", "page_width": "1100px"}
autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
# Types stand in the docstrings, with shapes, where they say more than the signature.
autodoc_typehints = "signature"
autodoc_typehints_format = "short"


def as_text(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Shapes such as (n, *S) are no emphasis, and what stands before an attribute's colon is no type."""
    lines[:] = [re.sub(r"(?<![*\w])\*(?=\w)", r"\\*", line) for line in lines]
    if what in ("attribute", "property") and lines:
        lines[0] = lines[0].replace(": ", " – ", 1)


def setup(app: Sphinx) -> None:
    # Before napoleon reads them.
    app.connect("autodoc-process-docstring", as_text, priority=400)
