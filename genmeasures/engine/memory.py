"""Memory budget of a run and its division."""

from __future__ import annotations

import math
from dataclasses import dataclass

from genmeasures.errors import OptionError

DEFAULT_MEMORY = 2176
"""Default of the setting ``memory``, in MiB."""

_PARTS = 17
"""Equal parts of the budget: 9 for training samples, 6 for the cache, 2 for activations."""
_BLOCK_BYTES = 8 * 2**20
"""Patches unfolded at a time: they stay in the processor's cache between gathering and use."""


@dataclass(frozen=True)
class Memory:
    """What a run may keep in memory besides the model and the data, divided by purpose.

    A smaller budget costs more passes over the data, and does not change values: layers are fitted in more groups,
    fewer layers are cached for their next pass, and batches are split.

    Args:
        mib: the budget in MiB.

    Raises:
        OptionError: the budget is not a positive number.

    Example:
        >>> memory = Memory(2176)
        >>> [size // 2**20 for size in (memory.record, memory.cache, memory.activations)]  # MiB
        [1152, 768, 256]
    """

    mib: float = DEFAULT_MEMORY

    def __post_init__(self) -> None:
        number = isinstance(self.mib, int | float) and not isinstance(self.mib, bool)
        if not number or not 0 < self.mib < math.inf:
            raise OptionError(f"memory must be a number of MiB > 0, got {self.mib!r}")

    @property
    def total(self) -> int:
        """The budget in bytes."""
        return int(self.mib * 2**20)

    @property
    def record(self) -> int:
        """Bytes for the training samples that are recorded in one pass."""
        return self.total * 9 // _PARTS

    @property
    def cache(self) -> int:
        """Bytes for what one pass keeps for the next."""
        return self.total * 6 // _PARTS

    @property
    def activations(self) -> int:
        """Bytes for the activations of the inputs that run at a time."""
        return self.total * 2 // _PARTS

    @property
    def chunk(self) -> int:
        """Bytes of patches that are unfolded at a time."""
        return min(_BLOCK_BYTES, self.total // _PARTS)

    @property
    def large_input(self) -> int:
        """Elements of an input from which only few may fit into memory at once."""
        return self.activations // 1024
