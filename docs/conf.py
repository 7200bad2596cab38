"""Sphinx settings: ``make docs`` writes the pages to ``build/docs``."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

import genmeasures
from genmeasures.interfaces import Aggregator, Component, Extractor, Labeler, Measure, Task

project = "genmeasures"
version = release = genmeasures.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_parser"]
html_theme = "alabaster"
html_theme_options = {"description": "Generalization measures of trained networks", "page_width": "1100px"}
autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
# Types stand in the docstrings, with shapes, where they say more than the signature.
autodoc_typehints = "signature"
# A return type is prose with a shape, not a list of names to link.
napoleon_use_rtype = False
autodoc_typehints_format = "short"


def as_text(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Shapes such as (n, *S) are no emphasis, and what stands before an attribute's colon is no type."""
    lines[:] = [re.sub(r"(?<![*\w])\*(?=\w)", r"\\*", line) for line in lines]
    if what in ("attribute", "property") and lines:
        lines[0] = lines[0].replace(": ", " – ", 1)


_TYPED = {
    Measure: 'measures=["{}"]`` in Python, ``measure=[{}]',
    Extractor: 'extractor="{}"`` in Python, ``extractor={}',
    Labeler: "labeler={}()`` in Python, ``+labeler@measure.MEASURE.labeler={}",
    Aggregator: 'aggregate(ds, "{}")`` in Python, ``aggregator={}',
    Task: 'load_task("{}")`` in Python, ``task={}',
}


def with_name(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Each component is headed by its name as users type it."""
    if not (what == "class" and isinstance(obj, type) and issubclass(obj, Component) and "name" in vars(obj)):
        return
    for kind, typed in _TYPED.items():
        if issubclass(obj, kind):
            python = obj.__name__ if kind is Labeler else obj.name
            lines[:0] = [f"**{obj.name}** – ``{typed.format(python, obj.name)}`` on the command line.", ""]


def setup(app: Sphinx) -> None:
    # Before napoleon reads them.
    app.connect("autodoc-process-docstring", as_text, priority=400)
    app.connect("autodoc-process-docstring", with_name, priority=450)
