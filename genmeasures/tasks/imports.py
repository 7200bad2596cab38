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
    started later find them too. Raises OptionError saying which part could not be imported.
    """
    for folder in map(str, folders):
        if folder not in sys.path:
            sys.path.append(folder)
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
    """Refuse a module of the same name as one in ``folders`` that was found elsewhere before."""
    top = module.__name__.partition(".")[0]
    root = sys.modules[top]
    places = [getattr(root, "__file__", None) or "", *getattr(root, "__path__", [])]
    holders = [folder for folder in folders if (folder / f"{top}.py").is_file() or (folder / top).is_dir()]
    if holders and not any(Path(place).resolve().is_relative_to(f.resolve()) for place in places for f in holders):
        raise OptionError(
            f"the module {top!r} in {holders[0]} is hidden by another, {places[0] or places[-1]}: rename it"
        )
