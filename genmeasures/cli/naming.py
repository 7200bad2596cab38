"""Names of result files: readable, valid on every file system, of limited length, with a hash."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from genmeasures.cli.overrides import PATHS

_LONGEST = 120
"""Maximum bytes of a name before its hash: suffixes are appended, and file systems allow 255."""
_WORD = 40
"""Maximum bytes of one part."""
_IN_THE_NAME = ("task", "extractor")
"""Settings in the first parts of a name."""


def result_path(folder: Path, task: str, extractor: str, overrides: Sequence[str], digest: str) -> Path:
    """Return the path of the result of a configuration.

    The hash identifies the configuration: an existing result, or an unfinished run, with this hash is found under any
    name.

    Args:
        folder: Folder for results.
        task: Label of the task.
        extractor: Name of the extractor.
        overrides: Other overrides of the command line, see :func:`shown_overrides`.
        digest: Hash of everything that the values depend on.

    Example:
        >>> result_path(Path("results"), "digits", "whole_tensor", ["seed=1"], "9f8e7d").name
        'digits-whole_tensor-seed=1-9f8e7d.nc'
    """
    for ending in (".nc", ".parts"):
        for existing in sorted(folder.glob(f"*-{digest}{ending}")):
            if not existing.name.startswith("."):
                return existing.with_suffix(".nc")
    return folder / f"{readable_name([task, extractor, *overrides])}-{digest}.nc"


def shown_overrides(overrides: Sequence[str], without: Collection[str]) -> list[str]:
    """Return the overrides that a name shows, sorted: without paths, and without settings that do not change values.

    Args:
        overrides: Overrides as Hydra lists them, such as ``task.path=nets``.
        without: First words of the keys that are left out.

    Example:
        >>> shown_overrides(["task.path=nets", "output=x", "seed=1", "measure.roughness.labeler.k=8"], ["output"])
        ['roughness.labeler.k=8', 'seed=1']
    """
    shown = {}
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        words = re.split(r"[./]", key)
        if words[0] in without or key in _IN_THE_NAME or words[-1] in PATHS:
            continue
        short = ".".join(words[1:]) if len(words) > 1 and words[0] in ("task", "extractor", "measure") else key
        shown[key] = f"{short}={value}"
    return sorted(shown.values())


def readable_name(parts: Sequence[str]) -> str:
    """Return the parts joined by dashes, as many whole parts as fit.

    Letters, digits and ``_ . = + -`` are kept, other characters become ``_``; names do not begin with a dot or a dash.

    Example:
        >>> readable_name(["my nets", "receptive_field", "layers=[0,-1]"])
        'my_nets-receptive_field-layers=0+-1'
    """
    name = ""
    for part in parts:
        text = part.encode("utf-8", "replace").decode()
        text = re.sub(r"[\[\]{}'\"\s]*,[\[\]{}'\"\s]*", "+", text)
        text = re.sub(r"[\[\]{}'\"]", "", text)
        text = re.sub(r"[^\w.=+-]+", "_", text).lstrip(".-")
        word = text.encode()[:_WORD].decode("utf-8", "ignore")
        longer = f"{name}-{word}" if name else word or "_"
        if len(longer.encode()) > _LONGEST:
            break
        name = longer if word or not name else name
    return name


__all__ = ["readable_name", "result_path", "shown_overrides"]
