"""Origins of code: installed distributions, identified by their version, and user code, which is hashed."""

from __future__ import annotations

import functools
import importlib.metadata
import site
import sys
import sysconfig
from pathlib import Path

PYTHON = "python"
"""Origin of the standard library."""
CORE = "genmeasures"
"""Origin of this package."""


def origin(module: str | None) -> str | None:
    """Return the distribution that a module belongs to.

    Editable installs count as user code, because their version does not change with their code.

    Args:
        module: Full name of an imported module.

    Returns:
        Name of the distribution, ``"python"`` for the standard library, None for user code.

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
    imported = sys.modules.get(module)
    spec = getattr(imported, "__spec__", None)
    if getattr(spec, "origin", None) == "frozen":
        return PYTHON
    file = getattr(imported, "__file__", None) or getattr(sys.modules.get(root), "__file__", None)
    if file is None:
        # Parts of compiled packages, such as torch._C._nn, have no file.
        return None if imported is None or root == module else origin(root)
    return _of_file(file, root)


@functools.cache
def _of_file(file: str, root: str) -> str | None:
    """Origin of the file of a module in the top-level package ``root``."""
    path = Path(file).resolve()
    if any(path.is_relative_to(folder) for folder in _site_folders()):
        return _distribution(root)
    if any(path.is_relative_to(folder) for folder in _standard_folders()):
        return PYTHON
    return None


@functools.cache
def version(distribution: str) -> str:
    """Return the version of a distribution.

    Args:
        distribution: Its name, or ``"python"`` for the version of Python.

    Returns:
        The version, ``"?"`` for a folder in site-packages that does not belong to a distribution.

    Example:
        >>> version("python").count("."), version("no-such-distribution")
        (1, '?')
    """
    if distribution == PYTHON:
        return f"{sys.version_info.major}.{sys.version_info.minor}"
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "?"


@functools.cache
def _distribution(root: str) -> str | None:
    """Name of the distribution of an installed top-level package."""
    try:
        return str(importlib.metadata.distribution(root).metadata["Name"])
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(root)  # reads the files of all distributions
        return names[0] if names else None


@functools.cache
def _site_folders() -> list[Path]:
    """Folders of installed distributions."""
    paths = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    paths += [*site.getsitepackages(), site.getusersitepackages()]
    # Linux distributions have further ones next to the standard library.
    paths += [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return list(dict.fromkeys(Path(path).resolve() for path in paths))


@functools.cache
def _standard_folders() -> list[Path]:
    """Folders of the standard library."""
    return [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]
