"""Keyword arguments of Keras layers, checked as they are read from a file."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from genmeasures.plugin import ModelError, nearest

LARGEST = 2**24
"""Largest size in a network: larger ones come from damaged files and would not fit into memory."""

_IGNORED = frozenset({
    "name", "trainable", "dtype", "seed", "momentum", "noise_shape", "kernel_initializer", "bias_initializer",
    "beta_initializer", "gamma_initializer", "moving_mean_initializer", "moving_variance_initializer",
    "kernel_regularizer", "bias_regularizer", "beta_regularizer", "gamma_regularizer", "activity_regularizer",
    "kernel_constraint", "bias_constraint", "beta_constraint", "gamma_constraint",
})  # fmt: skip
"""Arguments that only affect training."""


class Options:
    """Keyword arguments of a layer. Each is read once; :meth:`done` raises an error for those that were not.

    Args:
        arguments: the arguments by name, as in the file.

    Raises:
        ModelError: all methods raise it for an invalid argument, which the message names.

    Example:
        >>> options = Options({"filters": 8.0, "use_bias": False})
        >>> options.size("filters"), options.flag("use_bias", True), options.sizes("strides", 1, dims=2)
        (8, False, (1, 1))
        >>> options.done()
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._rest = {name: value for name, value in arguments.items() if name not in _IGNORED}
        self._known: list[str] = []

    def done(self) -> None:
        """Raise ModelError for an argument that has not been read: the layer does not have it."""
        if self._rest:
            name = next(iter(self._rest))
            raise ModelError(f"there is no argument {name!r}{nearest(name, self._known)}")

    def take(self, name: str, default: Any) -> Any:
        """The argument as it is in the file, unchecked."""
        self._known.append(name)
        return self._rest.pop(name, default)

    def size(self, name: str, default: int | None = None, least: int = 1) -> int:
        """An integer, which Keras may store as a float; required if there is no default."""
        value = self.take(name, default)
        if value is None:
            raise ModelError(f"{name} is missing")
        return integer(value, name, least)

    def number(self, name: str, default: float) -> float:
        """A finite number."""
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
            raise ModelError(f"{name} must be a number, got {reprlib.repr(value)}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """A Boolean."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise ModelError(f"{name} must be true or false, got {value!r}")
        return value

    def sizes(self, name: str, default: Any, dims: int) -> tuple[int, ...]:
        """``dims`` integers, from a list or from one integer for all dimensions."""
        value = self.take(name, default)
        if value is None:
            raise ModelError(f"{name} is missing")
        if not isinstance(value, list | tuple):
            return (integer(value, name, 1),) * dims
        if len(value) != dims:
            raise ModelError(f"{name} must have {dims} entries, got {value!r}")
        return tuple(integer(size, name, 1) for size in value)

    def choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        """One of the allowed strings, in lower case."""
        value = self.take(name, default)
        value = value.lower() if isinstance(value, str) else value
        if value not in allowed:
            raise ModelError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}")
        return str(value)


def integer(value: Any, name: str, least: int) -> int:
    """Check that a value is an integer from ``least`` to ``LARGEST``; it may be stored as a float.

    Args:
        value: the value from the file.
        name: name of the argument, for the error message.
        least: smallest allowed value.

    Raises:
        ModelError: the value is not such an integer.

    Example:
        >>> integer(8.0, "filters", 1)
        8
    """
    is_integer = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    if not is_integer or not least <= value <= LARGEST:
        raise ModelError(f"{name} must be an integer from {least} to {LARGEST}, got {reprlib.repr(value)}")
    return int(value)
