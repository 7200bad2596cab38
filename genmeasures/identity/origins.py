"""Where code comes from: an installed distribution, which its version identifies, or the user, whose code is hashed."""

from __future__ import annotations

import functools
import importlib.metadata
import site
import sys
import sysconfig
from pathlib import Path

PYTHON = "python"
CORE = "genmeasures"


def origin(module: str | None) -> str | None:
    """The distribution that a module belongs to, ``"python"`` for the standard library, None for code of the user.

    Modules that are installed as links to a working copy ("editable") count as code of the user: their version
    does not change with their code.

    Example:
        >>> origin("torch.nn"), origin("math"), origin("__main__"), origin(None)
        ('torch', 'python', None, None)
    """
    if module is None or module == "__main__":
        return None
    root = module.partition(".")[0]
    if root == CORE:
        return CORE
    if module in sys.builtin_module_names:
        return PYTHON
    found = sys.modules.get(module)
    spec = getattr(found, "__spec__", None)
    if getattr(spec, "origin", None) == "frozen":
        return PYTHON
    file = getattr(found, "__file__", None) or getattr(sys.modules.get(root), "__file__", None)
    if file is None:
        # Parts of compiled packages, torch._C._nn for one, have no file.
        return None if found is None or root == module else origin(root)
    return _of_file(file, root)


@functools.cache
def _of_file(file: str, root: str) -> str | None:
    place = Path(file).resolve()
    if any(place.is_relative_to(folder) for folder in _site_folders()):
        return _distribution(root)
    if any(place.is_relative_to(folder) for folder in _standard_folders()):
        return PYTHON
    return None


@functools.cache
def version(distribution: str) -> str:
    """The version of a distribution; ``"?"`` for a folder of site-packages that belongs to none."""
    if distribution == PYTHON:
        return f"{sys.version_info.major}.{sys.version_info.minor}"
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "?"


@functools.cache
def _distribution(root: str) -> str | None:
    try:
        return str(importlib.metadata.distribution(root).metadata["Name"])
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(root)  # reads the files of all distributions
        return names[0] if names else None


@functools.cache
def _site_folders() -> list[Path]:
    paths = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    paths += [*site.getsitepackages(), site.getusersitepackages()]
    # Linux distributions keep theirs beside the standard library.
    paths += [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return list(dict.fromkeys(Path(path).resolve() for path in paths))


@functools.cache
def _standard_folders() -> list[Path]:
    return [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]
