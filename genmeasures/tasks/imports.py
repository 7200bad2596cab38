"""Import of classes and functions by their dotted path."""

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
    """Whether the value is a string of the form ``package.module.Name``.

    Args:
        value: any object.

    Returns:
        True for a dotted path, which need not exist.

    Example:
        >>> is_dotted_path("torchvision.models.resnet18"), is_dotted_path("resnet18")
        (True, False)
    """
    return isinstance(value, str) and _DOTTED.fullmatch(value) is not None


def locate(path: str, folders: Sequence[Path] = ()) -> Callable[..., Any]:
    """Import the callable of a dotted path.

    Args:
        path: ``package.module.Class``, ``package.module.function`` or ``package.module.Class.method``.
        folders: folders that are searched for modules after Python's path. They are added to the path, so that
            processes that are started later find them too. If a later call has other folders with modules of the same
            names, those replace the modules in ``sys.modules`` until a call has the first folders again.

    Returns:
        The callable.

    Raises:
        OptionError: a part of the path cannot be imported; the message says which.

    Example:
        >>> locate("collections.OrderedDict")
        <class 'collections.OrderedDict'>
    """
    _take_turns([str(folder.resolve()) for folder in folders])
    module, attributes = _import_longest(path)
    _check_origin(module, folders)
    target: Any = module
    done = module.__name__
    for attribute in attributes:
        if not hasattr(target, attribute):
            public = [name for name in vars(target) if not name.startswith("_")] if hasattr(target, "__dict__") else []
            close = difflib.get_close_matches(attribute, public, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            where = getattr(module, "__file__", None) or "no file"
            raise OptionError(f"cannot import {path!r}: {done} ({where}) has no {attribute!r}{hint}")
        target = getattr(target, attribute)
        done += f".{attribute}"
    if not callable(target):
        raise OptionError(f"{path!r} must be a class or function, got {type(target).__name__}")
    called: Callable[..., Any] = target
    return called


_aside: dict[str, dict[str, ModuleType]] = {}
"""Modules per folder, while modules of other folders have their names in ``sys.modules``."""
_added: set[str] = set()
"""Folders that :func:`locate` added to Python's path."""


def _take_turns(folders: Sequence[str]) -> None:
    """Add the folders to Python's path, and set modules of other folders with the same names aside."""
    offered = {name for folder in folders for name in _modules_in(folder)}
    rivals = [other for other in _aside if other not in folders and not offered.isdisjoint(_modules_in(other))]
    for rival in rivals:
        if any(_home(sys.modules.get(name)) == rival for name in offered):
            # All modules of the folder: those with other names may have imported these.
            loaded = {name for name, module in [*sys.modules.items()] if "." not in name and _home(module) == rival}
            for name in [name for name in sys.modules if name.partition(".")[0] in loaded]:
                _aside[rival][name] = sys.modules.pop(name)
    for folder in folders:
        if folder not in sys.path:
            sys.path.append(folder)
            _added.add(folder)
        indices = [sys.path.index(rival) for rival in rivals if rival in sys.path]
        if indices and sys.path.index(folder) > min(indices):
            sys.path.remove(folder)
            sys.path.insert(min(indices), folder)
        for name, module in _aside.get(folder, {}).items():
            sys.modules.setdefault(name, module)
        _aside[folder] = {}


def _modules_in(folder: str) -> set[str]:
    """Names of the modules and packages in a folder."""
    try:
        entries = list(Path(folder).iterdir())
    except OSError:  # the folder was removed
        return set()
    return {path.name.removesuffix(".py") for path in entries if path.suffix == ".py" or path.is_dir()}


def _home(module: ModuleType | None) -> str | None:
    """The folder of a module; None for a module without a file."""
    try:
        path = next(iter(getattr(module, "__path__", ())), None) or getattr(module, "__file__", None)
    except Exception:  # some modules compute their attributes
        return None
    return str(Path(path).resolve().parent) if isinstance(path, str) else None


def _import_longest(path: str) -> tuple[ModuleType, list[str]]:
    """Import the longest leading part that is a module; returns it and the remaining names."""
    parts = path.split(".")
    importlib.invalidate_caches()  # a module may have been written since the last import
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
                    "or set python_path in the manifest to the folder that contains it"
                ) from error
            return module, parts[count - 1 :]
        except Exception as error:  # a module's own code can fail in any way
            raise OptionError(
                f"cannot import {path!r}: importing {name} failed: {type(error).__name__}: {error}"
            ) from error
    assert module is not None  # a dotted path has two parts or more
    return module, parts[-1:]


def _check_origin(module: ModuleType, folders: Sequence[Path]) -> None:
    """Refuse a module that hides one of ``folders``, or that only the folders of another manifest contain."""
    top = module.__name__.partition(".")[0]
    root = sys.modules[top]
    paths = [getattr(root, "__file__", None) or "", *getattr(root, "__path__", [])]
    holders = [folder for folder in folders if (folder / f"{top}.py").is_file() or (folder / top).is_dir()]
    if holders and not any(Path(path).resolve().is_relative_to(f.resolve()) for path in paths for f in holders):
        raise OptionError(f"the module {top!r} in {holders[0]} is hidden by {paths[0] or paths[-1]}: rename it")
    home = _home(root)
    if home in _added and home not in [str(folder.resolve()) for folder in folders]:
        raise OptionError(
            f"the module {top!r} is only in {home}, a folder of another manifest: set python_path in this "
            "manifest to the folder that contains it"
        )
