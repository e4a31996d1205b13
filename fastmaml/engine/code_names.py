"""Which names a function's code reads, from its bytecode."""

from __future__ import annotations

import dis
import functools
import types
from typing import NamedTuple


class CodeNames(NamedTuple):
    """The names in a function's code, and in the functions that are written inside it."""

    of_globals: tuple[str, ...]
    """Looked up among the module's globals (or built-in)."""
    of_attributes: tuple[str, ...]
    """Looked up on objects; those of modules and methods are told apart when they are looked up."""


@functools.lru_cache(maxsize=4096)
def code_names(code: types.CodeType) -> CodeNames:
    """Those of `code`, without duplicates, in their order."""
    of_globals: dict[str, None] = {}
    of_attributes: dict[str, None] = {}
    for each in _nested(code):
        for step in dis.get_instructions(each):
            if step.opname == "LOAD_GLOBAL":
                of_globals[step.argval] = None
            elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                of_attributes[step.argval] = None
    return CodeNames(tuple(of_globals), tuple(of_attributes))


def _nested(code: types.CodeType) -> list[types.CodeType]:
    found = [code]
    for each in found:  # grows while it is walked
        found += [x for x in each.co_consts if isinstance(x, types.CodeType)]
    return found
