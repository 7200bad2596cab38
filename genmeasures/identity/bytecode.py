"""What a piece of compiled code reads from outside itself."""

from __future__ import annotations

import dis
import functools
from dataclasses import dataclass
from types import CodeType


@dataclass(frozen=True)
class Read:
    """A global name that code reads, with the attributes that follow it: ``torch.nn.functional.relu``."""

    name: str
    attributes: tuple[str, ...]


@dataclass(frozen=True)
class Import:
    """An import statement inside a function; ``names`` of ``from module import names``, else empty."""

    module: str
    level: int
    names: tuple[str, ...]


@functools.lru_cache(maxsize=20_000)
def reads(code: CodeType) -> tuple[Read | Import, ...]:
    """The global names and imports of a code object, in order and without repetition.

    Those of functions defined inside it are not among them: they are code objects of its constants.

    Example:
        >>> reads((lambda x: math.cos(x) + pi).__code__)
        (Read(name='math', attributes=('cos',)), Read(name='pi', attributes=()))
    """
    found: dict[Read | Import, None] = {}
    instructions = list(dis.get_instructions(code))
    for place, instruction in enumerate(instructions):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            attributes = []
            for following in instructions[place + 1 :]:
                if following.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                    break
                attributes.append(str(following.argval))
            found[Read(str(instruction.argval), tuple(attributes))] = None
        elif instruction.opname == "IMPORT_NAME":
            level, names = (before.argval for before in instructions[place - 2 : place])
            found[Import(str(instruction.argval), int(level or 0), tuple(names or ()))] = None
    return tuple(found)
