"""``genmeasures new-plugin``: a working plugin, made from the template."""

from __future__ import annotations

import importlib.resources
import keyword
import re
from importlib.resources.abc import Traversable
from pathlib import Path

from genmeasures.errors import OptionError
from genmeasures.registry import registry

_SUFFIX = ".tmpl"


def new_plugin_command(name: str, folder: str) -> int:
    """Make ``folder/genmeasures-NAME``; returns the exit status."""
    given = name
    name = name.removeprefix("genmeasures-").replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise OptionError(
            f"{given!r} is no name for a measure: lowercase letters, digits and underscores, a letter first, and no "
            "keyword of Python"
        )
    if name in registry().names("measure"):
        raise OptionError(f"there is a measure {name!r} already: choose another name")
    target = Path(folder) / f"genmeasures-{name.replace('_', '-')}"
    if target.exists():
        raise OptionError(f"{target} is already there: choose another name, or --folder")
    words = {
        "{{name}}": name,
        "{{distribution}}": target.name,
        "{{package}}": f"genmeasures_{name}",
        "{{class}}": "".join(part.capitalize() for part in name.split("_")),
    }
    try:
        _write(_template(), target, words)
    except OSError as error:
        raise OptionError(f"{target} cannot be written: {error}") from error
    source = target / "src" / words["{{package}}"] / "measure.py"
    print(
        f"made {target}\n\n  genmeasures check {source}:{words['{{class}}']}\n  pip install -e {target}\n"
        f"  pytest {target}\n  genmeasures check {name}"
    )
    return 0


def _template() -> Traversable:
    """The template, in the wheel or in the repository."""
    inside = importlib.resources.files("genmeasures") / "template"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "plugins" / "template"


def _write(source: Traversable, target: Path, words: dict[str, str]) -> None:
    target.mkdir(parents=True)
    for entry in source.iterdir():
        name = entry.name
        for word, value in words.items():
            name = name.replace(word.replace("{{", "__").replace("}}", "__"), value)
        if entry.is_dir():
            _write(entry, target / name, words)
        elif name.endswith(_SUFFIX):
            text = entry.read_text(encoding="utf-8")
            for word, value in words.items():
                text = text.replace(word, value)
            (target / name.removesuffix(_SUFFIX)).write_text(text, encoding="utf-8")
