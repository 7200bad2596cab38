"""Reading the keyword arguments of one Keras layer out of a file, where nothing can be taken for granted."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from genmeasures.plugin import ModelError, nearest

LARGEST = 2**24
"""No size in a network is larger: what is came from a damaged file, and would not fit into memory."""

_IGNORED = frozenset({
    "name", "trainable", "dtype", "seed", "momentum", "noise_shape", "kernel_initializer", "bias_initializer",
    "beta_initializer", "gamma_initializer", "moving_mean_initializer", "moving_variance_initializer",
    "kernel_regularizer", "bias_regularizer", "beta_regularizer", "gamma_regularizer", "activity_regularizer",
    "kernel_constraint", "bias_constraint", "beta_constraint", "gamma_constraint",
})  # fmt: skip
"""Arguments that change training alone."""


class Options:
    """Keyword arguments of a layer, each taken once; ``done`` complains about those that nobody took.

    All methods raise ModelError naming the argument.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._rest = {name: value for name, value in given.items() if name not in _IGNORED}
        self._known: list[str] = []

    def done(self) -> None:
        """Raise ModelError for arguments that the layer does not know."""
        if self._rest:
            name = next(iter(self._rest))
            raise ModelError(f"it has no argument {name!r}{nearest(name, self._known)}")

    def take(self, name: str, default: Any) -> Any:
        """The argument as it stands in the file."""
        self._known.append(name)
        return self._rest.pop(name, default)

    def size(self, name: str, default: int | None = None, least: int = 1) -> int:
        """An integer; Keras files write some as floats. Without a default it must be there."""
        value = self.take(name, default)
        if value is None:
            raise ModelError(f"its {name} is missing")
        return whole(value, name, least)

    def number(self, name: str, default: float) -> float:
        """A finite number."""
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
            raise ModelError(f"its {name} is {reprlib.repr(value)}, not a number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise ModelError(f"its {name} is {value!r}, not true or false")
        return value

    def sizes(self, name: str, default: Any, dims: int) -> tuple[int, ...]:
        """``dims`` integers: a list of them, or one for all."""
        value = self.take(name, default)
        if value is None:
            raise ModelError(f"its {name} is missing")
        if not isinstance(value, list | tuple):
            return (whole(value, name, 1),) * dims
        if len(value) != dims:
            raise ModelError(f"its {name} is {value!r}, where {dims} numbers are needed")
        return tuple(whole(one, name, 1) for one in value)

    def choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        """One of the words allowed."""
        value = self.take(name, default)
        value = value.lower() if isinstance(value, str) else value
        if value not in allowed:
            raise ModelError(f"its {name} is {value!r}, not {' or '.join(map(repr, allowed))}")
        return str(value)


def whole(value: Any, name: str, least: int) -> int:
    """An integer from ``least``, which may be written as a float. Raises ModelError."""
    sound = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    if not sound or not least <= value <= LARGEST:
        raise ModelError(f"its {name} is {reprlib.repr(value)}, not an integer from {least} to {LARGEST}")
    return int(value)
