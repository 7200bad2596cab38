"""Names of result files: readable, safe on every file system, bounded, and told apart by a hash."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from genmeasures.cli.overrides import PATHS

_LONGEST = 120
"""Bytes of a name before its hash: others are made of it with endings, and file systems take 255."""
_WORD = 40
"""Bytes of one part."""
_IN_THE_NAME = ("task", "extractor")
"""Settings that the first parts of a name tell."""


def result_path(folder: Path, task: str, extractor: str, overrides: Sequence[str], digest: str) -> Path:
    """Where the result of a configuration is kept.

    The hash alone tells configurations apart: a result, or an unfinished run, that has it is found under whatever
    name it began with.

    Args:
        folder: of the results.
        task, extractor: the label of the task and the name of the extractor.
        overrides: what else was chosen on the command line, see :func:`telling`.
        digest: hash of everything that the values depend on.
    """
    for ending in (".nc", ".parts"):
        for found in sorted(folder.glob(f"*-{digest}{ending}")):
            if not found.name.startswith("."):
                return found.with_suffix(".nc")
    return folder / f"{readable_name([task, extractor, *overrides])}-{digest}.nc"


def telling(overrides: Sequence[str], without: Collection[str]) -> list[str]:
    """The overrides that a name shows, sorted: not the task's place, nor settings that change no value.

    Args:
        overrides: as Hydra lists them, ``task.path=nets`` for one.
        without: first words of the keys that are left out.

    Example:
        >>> telling(["task.path=nets", "output=x", "seed=1", "measure.roughness.labeler.k=8"], ["output"])
        ['roughness.labeler.k=8', 'seed=1']
    """
    made = {}
    for one in overrides:
        key, _, value = one.lstrip("+~").partition("=")
        words = re.split(r"[./]", key)
        if words[0] in without or key in _IN_THE_NAME or words[-1] in PATHS:
            continue
        short = ".".join(words[1:]) if len(words) > 1 and words[0] in ("task", "extractor", "measure") else key
        made[key] = f"{short}={value}"
    return sorted(made.values())


def readable_name(parts: Sequence[str]) -> str:
    """The parts with dashes between, as far as there is room for whole ones.

    Letters, digits and ``_ . = + -`` stay, others become ``_``, and no name begins with a dot or a dash.

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


__all__ = ["readable_name", "result_path", "telling"]
