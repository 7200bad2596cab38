"""The words of the source and the documentation: standard terms instead of circumlocutions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TERMS = {
    "picture": "image",
    "whole number": "integer",
    "stands here": "is a duplicate",
    "goes with": "correlates with",
    "goes on": "continues or resumes",
    "was due": "expected …, got …",
    "broken off": "interrupted",
    "a value a layer": "a value per layer",
}
"""Phrases that earlier versions used, with the term of the field. Spelling is left to codespell."""
FOLDERS = (
    "genmeasures",
    "benchmarks",
    "conf",
    "docs",
    *(str(path.relative_to(ROOT)) for path in ROOT.glob("plugins/*/src")),
    "plugins/template",
)
SUFFIXES = {".py", ".md", ".rst", ".yaml", ".tmpl"}


def files() -> list[Path]:
    return [ROOT / "README.md", *(path for f in FOLDERS for path in (ROOT / f).rglob("*") if path.suffix in SUFFIXES)]


@pytest.mark.parametrize("phrase", TERMS)
def test_the_standard_term_is_used(phrase: str) -> None:
    # A phrase may be broken over two lines of prose, also of a comment.
    pattern = re.compile(r"\b" + phrase.replace(" ", r"[\s#]+") + r"s?\b", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}"
        for path in files()
        for text in [path.read_text()]
        for match in pattern.finditer(text)
    ]
    assert not found, f"{phrase!r} in {', '.join(found)}: write {TERMS[phrase]!r}"


def test_files_are_found() -> None:
    suffixes = {path.suffix for path in files()}
    assert suffixes == SUFFIXES
    assert len(files()) > 100
