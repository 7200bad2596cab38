"""Conversion of the arguments of ``genmeasures run`` to Hydra's grammar."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from genmeasures.errors import OptionError

PATHS = ("path", "volumes", "cache", "output")
"""Last words of the keys whose values are paths."""

_OPTIONAL = ("--info", "-i")
_WITH_VALUE = (
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    *("--experimental-rerun", *_OPTIONAL),
)
"""Hydra's options that a value follows; it may be left out after the optional ones."""

_KEY = re.compile(r"\+{0,2}[\w./@:-]+")


def readable(arguments: Sequence[str]) -> list[str]:
    """Put quotes around values that Hydra cannot read, and around paths that it would read as something else.

    A path may so have any characters: ``task.path=epoch=3``, ``task.path=nets (1)``, ``output=modèles``. With
    ``-m`` commas separate the values of a sweep, as usual. Values that are in quotes stay as they are.

    Raises:
        OptionError: a list or mapping that cannot be read, with a way to write it.

    Example:
        >>> readable(["task.path=epoch=3", "seed=1"])
        ["task.path='epoch=3'", 'seed=1']
    """
    sweeping = any(
        argument in ("-m", "--multirun") or argument.startswith(("hydra.mode=", "experiment="))
        for argument in arguments
    )
    return [_readable(argument, sweeping) for argument in arguments]


def flags_first(arguments: Sequence[str]) -> list[str]:
    """Move options before settings: Hydra takes no settings on both sides of ``-m``.

    Example:
        >>> flags_first(["seed=0,1", "-m", "extractor=whole_tensor", "--cfg", "job"])
        ['-m', '--cfg', 'job', 'seed=0,1', 'extractor=whole_tensor']
    """
    flags: list[str] = []
    settings: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-"):
            settings.append(argument)
            continue
        flags.append(argument)
        if argument in _WITH_VALUE and rest and not (argument in _OPTIONAL and "=" in rest[0]):
            flags.append(rest.pop(0))
    return [*flags, *settings]


def text_of(arguments: Sequence[str], key: str, otherwise: str) -> str:
    """The text that the arguments give for a key, the last one where they give several.

    Args:
        arguments: overrides and flags of Hydra.
        key: dotted name of the setting.
        otherwise: returned where no argument sets it.

    Example:
        >>> text_of(["seed=1", "output=here"], "output", "results")
        'here'
    """
    for argument in reversed(arguments):
        if argument.lstrip("+").startswith(f"{key}="):
            parsed = _parsed(argument)
            value = parsed.value() if parsed is not None and not parsed.is_sweep_override() else None
            return str(value or otherwise)
    return otherwise


def _readable(argument: str, sweeping: bool) -> str:
    key, equals, value = argument.partition("=")
    if not equals or argument.startswith("-") or not _KEY.fullmatch(key):
        return argument
    is_path = re.split(r"[./]", key.lstrip("+"))[-1] in PATHS
    parsed = _parsed(argument)
    if parsed is None:
        if value.startswith(("[", "{")):
            raise OptionError(
                f"{argument}: this cannot be read: put texts with special characters in quotes, "
                f'"{key}={_with_quotes(value)}"'
            )
        if value.startswith(("'", '"')):
            return argument  # Hydra says what is wrong with the quotes
        if sweeping and "," in value:
            return f"{key}={','.join(map(_quoted, value.split(',')))}"
        return f"{key}={_quoted(value)}"
    return f"{key}={_quoted(value)}" if is_path and not _is_meant(parsed, value, sweeping) else argument


def _is_meant(parsed: Override, value: str, sweeping: bool) -> bool:
    """Whether Hydra reads a path as it is written."""
    if parsed.is_sweep_override():
        return sweeping
    text = parsed.value()  # without its quotes
    if text is None or value.startswith(("'", '"')) or "${" in value:
        return True
    return isinstance(text, str) and (text == value or "\\" in value)


def _parsed(argument: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def _quoted(value: str) -> str:
    """The value in single quotes; backslashes count only where a quote follows them."""
    return "'" + re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + ("\\'" if match[2] else ""), value) + "'"


def _with_quotes(value: str) -> str:
    """A list whose elements are all in quotes that need them, for an error."""
    words = re.split(r"([\[\]{},])", value)
    return "".join(w if not w or w in "[]{}," or _parsed(f"key={w}") is not None else _quoted(w.strip()) for w in words)
