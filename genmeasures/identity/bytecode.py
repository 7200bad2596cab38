"""Global names and imports in compiled code."""

from __future__ import annotations

import dis
import functools
from dataclasses import dataclass
from types import CodeType


@dataclass(frozen=True)
class Read:
    """A global name that code reads, with the attributes that follow it: ``torch.nn.functional.relu``."""

    name: str
    """``torch``"""
    attributes: tuple[str, ...]
    """``("nn", "functional", "relu")``"""


@dataclass(frozen=True)
class Import:
    """An import statement inside a function."""

    module: str
    level: int
    """Number of leading dots of a relative import."""
    names: tuple[str, ...]
    """``names`` of ``from module import names``, else empty."""


@functools.lru_cache(maxsize=20_000)
def reads(code: CodeType) -> tuple[Read | Import, ...]:
    """Return the global names and imports of a code object, in order and without duplicates.

    Functions defined inside the code are not included: they are code objects among its constants.

    Args:
        code: Code of a function.

    Example:
        >>> reads((lambda x: math.cos(x) + pi).__code__)
        (Read(name='math', attributes=('cos',)), Read(name='pi', attributes=()))
    """
    names_read: dict[Read | Import, None] = {}
    instructions = list(dis.get_instructions(code))
    for index, instruction in enumerate(instructions):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            attributes = []
            for following in instructions[index + 1 :]:
                if following.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                    break
                attributes.append(str(following.argval))
            names_read[Read(str(instruction.argval), tuple(attributes))] = None
        elif instruction.opname == "IMPORT_NAME":
            level, names = (previous.argval for previous in instructions[index - 2 : index])
            names_read[Import(str(instruction.argval), int(level or 0), tuple(names or ()))] = None
    return tuple(names_read)
