"""Command ``genmeasures new-plugin``: a plugin of three files, made from the template."""

from __future__ import annotations

import importlib.resources
import keyword
import re
from collections.abc import Sequence
from importlib.resources.abc import Traversable
from pathlib import Path

from genmeasures.errors import OptionError
from genmeasures.registry import registry
from genmeasures.version import __version__

_SUFFIX = ".tmpl"


def new_plugin_command(name: str, folder: str, kind: str = "feature") -> int:
    """Write module, ``pyproject.toml`` and test of a plugin to ``folder/genmeasures-NAME``.

    Args:
        name: Name of the measure, also as the name of the distribution, ``genmeasures-NAME``.
        folder: Folder in which the folder of the plugin is created.
        kind: "feature" for a measure of the features of layers, "output" for one of the outputs of models.

    Returns:
        The exit status, 0.

    Raises:
        OptionError: If the name is not valid or is taken, or the folder exists or cannot be written.

    Example:
        >>> new_plugin_command("class", ".")
        Traceback (most recent call last):
            ...
        genmeasures.errors.OptionError: 'class' is not a valid name for a measure: it must consist of ...
    """
    measure = name.removeprefix("genmeasures-").replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", measure) or keyword.iskeyword(measure):
        raise OptionError(
            f"{name!r} is not a valid name for a measure: it must consist of lowercase letters, digits and "
            "underscores, begin with a letter, and not be a keyword of Python"
        )
    if measure in registry().names("measure"):
        raise OptionError(f"the measure {measure!r} exists already: choose another name")
    target = Path(folder) / f"genmeasures-{measure.replace('_', '-')}"
    if target.exists():
        raise OptionError(f"{target} exists already: choose another name, or another folder with --folder")
    words = {
        "{{name}}": measure,
        "{{distribution}}": target.name,
        "{{package}}": f"genmeasures_{measure}",
        "{{class}}": "".join(part.capitalize() for part in measure.split("_")),
        "{{requirement}}": compatible_requirement(__version__),
    }
    try:
        template = _template()
        _write([*template.iterdir(), *(template / kind).iterdir()], target, words)
    except OSError as error:
        raise OptionError(f"{target} cannot be written: {error}") from error
    module = target / f"{words['{{package}}']}.py"
    print(
        f"created {target}\n\n  genmeasures check {module}  # before it is installed\n  pip install -e {target}\n"
        f"  pytest {target}\n  genmeasures check {measure}\n  genmeasures run measure=[{measure}]"
    )
    return 0


def compatible_requirement(version: str) -> str:
    """Return the requirement that allows the versions compatible with this one.

    Example:
        >>> compatible_requirement("0.3.1")
        'genmeasures>=0.3,<0.4'
    """
    major, minor = map(int, version.split(".")[:2])
    return f"genmeasures>={major}.{minor},<{major}.{minor + 1}"


def _template() -> Traversable:
    """The folder of the template, in the wheel or in the repository."""
    packaged = importlib.resources.files("genmeasures") / "template"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "plugins" / "template"


def _write(entries: Sequence[Traversable], target: Path, words: dict[str, str]) -> None:
    """Write the files of the template with its placeholders replaced, in names and in texts."""
    target.mkdir(parents=True)
    for entry in entries:
        if not entry.name.endswith(_SUFFIX):
            continue
        name, text = entry.name.removesuffix(_SUFFIX), entry.read_text(encoding="utf-8")
        for word, value in words.items():
            name = name.replace(word.replace("{{", "__").replace("}}", "__"), value)
            text = text.replace(word, value)
        (target / name).write_text(text, encoding="utf-8")
