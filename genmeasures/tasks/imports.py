"""Importing what a user names by its dotted path."""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from genmeasures.errors import OptionError

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


def is_dotted_path(value: object) -> bool:
    """Whether the value is text of the form ``package.module.Name``."""
    return isinstance(value, str) and _DOTTED.fullmatch(value) is not None


def locate(path: str, folders: Sequence[Path] = ()) -> Callable[..., Any]:
    """Import the callable that a dotted path names: ``package.module.Class`` or ``….Class.method``.

    ``folders`` are searched for modules after Python's own path, and stay on it, so that processes
    started later find them too. Another call may name other folders with modules of the same names: these take
    their places in ``sys.modules``, until the first folders are named again. Raises OptionError saying which part
    could not be imported.
    """
    _take_turns([str(folder.resolve()) for folder in folders])
    module, attributes = _import_longest(path)
    _check_origin(module, folders)
    found: Any = module
    done = module.__name__
    for attribute in attributes:
        if not hasattr(found, attribute):
            public = [name for name in vars(found) if not name.startswith("_")] if hasattr(found, "__dict__") else []
            close = difflib.get_close_matches(attribute, public, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            where = getattr(module, "__file__", None) or "no file"
            raise OptionError(f"cannot import {path!r}: {done} ({where}) has no {attribute!r}{hint}")
        found = getattr(found, attribute)
        done += f".{attribute}"
    if not callable(found):
        raise OptionError(f"{path!r} is of type {type(found).__name__}, not a class or function")
    called: Callable[..., Any] = found
    return called


_aside: dict[str, dict[str, ModuleType]] = {}
"""By folder that was named once: its modules while those of others have their names."""
_added: set[str] = set()
"""The folders that are on Python's path because they were named."""


def _take_turns(folders: Sequence[str]) -> None:
    """Put the folders on Python's path, and modules of others with the same names out of the way."""
    offered = {name for folder in folders for name in _modules_in(folder)}
    rivals = [other for other in _aside if other not in folders and not offered.isdisjoint(_modules_in(other))]
    for rival in rivals:
        if any(_home(sys.modules.get(name)) == rival for name in offered):
            # All of them: those of other names may have imported these.
            loaded = {name for name, module in [*sys.modules.items()] if "." not in name and _home(module) == rival}
            for name in [name for name in sys.modules if name.partition(".")[0] in loaded]:
                _aside[rival][name] = sys.modules.pop(name)
    for folder in folders:
        if folder not in sys.path:
            sys.path.append(folder)
            _added.add(folder)
        places = [sys.path.index(rival) for rival in rivals if rival in sys.path]
        if places and sys.path.index(folder) > min(places):
            sys.path.remove(folder)
            sys.path.insert(min(places), folder)
        for name, module in _aside.get(folder, {}).items():
            sys.modules.setdefault(name, module)
        _aside[folder] = {}


def _modules_in(folder: str) -> set[str]:
    try:
        found = list(Path(folder).iterdir())
    except OSError:  # it is gone
        return set()
    return {path.name.removesuffix(".py") for path in found if path.suffix == ".py" or path.is_dir()}


def _home(module: ModuleType | None) -> str | None:
    """The folder that a module lies in, None for one without a file."""
    try:
        path = next(iter(getattr(module, "__path__", ())), None) or getattr(module, "__file__", None)
    except Exception:  # some modules make their attributes up
        return None
    return str(Path(path).resolve().parent) if isinstance(path, str) else None


def _import_longest(path: str) -> tuple[ModuleType, list[str]]:
    """Import the longest leading part that is a module; return it with the names that are left."""
    parts = path.split(".")
    importlib.invalidate_caches()  # a module may have been written since Python last looked
    module: ModuleType | None = None
    for count in range(1, len(parts)):
        name = ".".join(parts[:count])
        if (
            module is not None
            and hasattr(module, parts[count - 1])
            and not isinstance(getattr(module, parts[count - 1]), ModuleType)
        ):
            return module, parts[count - 1 :]
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise OptionError(f"cannot import {path!r}: importing {name} failed: {error}") from error
            if module is None:
                raise OptionError(
                    f"cannot import {path!r}: there is no module {name!r}; install it, "
                    "or name the folder that holds it with python_path in the manifest"
                ) from error
            return module, parts[count - 1 :]
        except Exception as error:  # a module's own code can fail in any way
            raise OptionError(
                f"cannot import {path!r}: importing {name} failed: {type(error).__name__}: {error}"
            ) from error
    assert module is not None  # a dotted path has two parts or more
    return module, parts[-1:]


def _check_origin(module: ModuleType, folders: Sequence[Path]) -> None:
    """Refuse a module of the same name as one in ``folders`` that was found elsewhere before, or for another only."""
    top = module.__name__.partition(".")[0]
    root = sys.modules[top]
    places = [getattr(root, "__file__", None) or "", *getattr(root, "__path__", [])]
    holders = [folder for folder in folders if (folder / f"{top}.py").is_file() or (folder / top).is_dir()]
    if holders and not any(Path(place).resolve().is_relative_to(f.resolve()) for place in places for f in holders):
        raise OptionError(
            f"the module {top!r} in {holders[0]} is hidden by another, {places[0] or places[-1]}: rename it"
        )
    home = _home(root)
    if home in _added and home not in [str(folder.resolve()) for folder in folders]:
        raise OptionError(
            f"the module {top!r} is found in {home} alone, which only another manifest names: name the folder that "
            "holds it with python_path in the manifest"
        )
