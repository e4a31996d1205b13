"""What a function's code may read from outside of itself, from its bytecode."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Sequence
from dataclasses import dataclass

_BY_NAME = frozenset({"getattr", "hasattr", "attrgetter", "methodcaller"})
_WHOLE = frozenset(
    {
        "vars",
        "dir",
        "__dict__",
        "__getattribute__",
        "getmembers",
        "getattr_static",
        "asdict",
        "astuple",
        "deepcopy",
        "model_dump",
        "dump",
        "dumps",
        "__reduce__",
        "__reduce_ex__",
        "__getstate__",
    }
)
_FORMATS = frozenset({"format", "format_map", "vformat"})
"""Which look up what their string names: one of another place may name anything."""

_COPIES = frozenset({"copy", "replace", "fields"})
"""The same, as functions of these modules; methods of many things have such names, too."""

_COPIERS = frozenset({"copy", "dataclasses"})
_DUPLICATES = frozenset({"COPY", "DUP_TOP"})
_OTHERS = ("attributes", "written", "appended", "imports")
_READS = frozenset({"LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "IMPORT_FROM"})
_LOADS = {
    "LOAD_GLOBAL": "STORE_GLOBAL",
    "LOAD_NAME": "STORE_NAME",
    "LOAD_DEREF": "STORE_DEREF",
    "LOAD_CLASSDEREF": "STORE_DEREF",
    "LOAD_FROM_DICT_OR_DEREF": "STORE_DEREF",
    "LOAD_FROM_DICT_OR_GLOBALS": "STORE_GLOBAL",
}
_GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_CELLS = ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF")
_OF_CLASSES = frozenset({"__class__", "mro", "__mro__", "__base__", "__bases__", "getmro"})
_CONSTANT_OF_CALL = frozenset({"PRECALL", "KW_NAMES", "CACHE", "EXTENDED_ARG"})
"""What lies between the last argument of a call and the call."""


@dataclass(frozen=True)
class CodeReads:
    """The names in a function's code, and in the functions that are written inside it.

    A name that is only counted up (``self.calls += 1``) or appended to (``log.append(x)``) is none
    that is read.

    Attributes:
        of_globals: looked up among the module's globals (or built-in).
        of_cells: looked up in what the function closes over.
        of_attributes: looked up on objects; those of modules and methods are told apart when they
            are looked up. Constant names that ``getattr`` is given are among them.
        written: attributes that are set, counted up or appended to.
        appended: what is appended to: variables of the module, and attributes.
        imports: modules that the code itself imports when it runs.
        strings: constants that may name something (for ``globals()["name"]``).
        whole: whether it may look at all attributes of an object, or at some by names that are
            made up as it runs.
        of_all_globals: whether it asks for the dict of globals.
    """

    of_globals: frozenset[str]
    of_cells: frozenset[str]
    of_attributes: frozenset[str]
    written: frozenset[str]
    appended: frozenset[str]
    imports: frozenset[str]
    strings: frozenset[str]
    whole: bool
    of_all_globals: bool

    @property
    def by_class(self) -> bool:
        """Whether it may ask the class of an object, where that has an attribute of its own."""
        return bool({"type", "super"} & self.of_globals or _OF_CLASSES & self.of_attributes)

    @property
    def within(self) -> frozenset[str] | None:
        """The attributes that matter of what the code reaches; None if they may be any."""
        return None if self.whole else self.of_attributes


@functools.lru_cache(maxsize=4096)
def code_reads(code: types.CodeType) -> CodeReads:
    """The names that `code` and the code within it read, by how they are read."""
    found: dict[str, set[str]] = {name: set() for name in (*_LOADS, *_OTHERS)}
    strings: set[str] = set()
    fields: list[str] = []
    whole = False
    for each in _nested(code):
        strings.update(_strings(each.co_consts))
        fields += [x for x in each.co_consts if isinstance(x, str) and "{" in x]
        steps = list(dis.get_instructions(each))
        for i, step in enumerate(steps):
            name = step.opname
            if (name in _LOADS or name in _READS) and _appended(steps, i):
                found["appended"].add(step.argval)
            if name in _LOADS:
                if not _only_counts(steps, i):
                    found[name].add(step.argval)
                whole |= step.argval in _BY_NAME and _made_up(steps, i)
                whole |= name not in _CELLS and step.argval in _COPIES
            elif name in _READS and not _only_written(steps, i):
                found["attributes"].add(step.argval)
                whole |= step.argval in _BY_NAME and _made_up(steps, i)
                whole |= step.argval in _COPIES and steps[i - 1].argval in _COPIERS
            elif name in _READS or name == "STORE_ATTR":
                found["written"].add(step.argval)
            elif name == "MATCH_CLASS":  # by keywords, and by position, which the class decides
                named = steps[i - 1].argval
                found["attributes"].update(named if isinstance(named, tuple) else ())
                whole |= bool(step.arg)
            elif name == "IMPORT_NAME":
                found["imports"].add(step.argval)
    of_globals = frozenset().union(*(found[name] for name in _GLOBALS))
    attributes = frozenset(found["attributes"])
    whole |= bool(attributes & _FORMATS) and (not fields or any("." in x for x in fields))
    if (of_globals | attributes) & _BY_NAME:
        attributes |= {part for text in strings for part in text.split(".")}
    return CodeReads(
        of_globals,
        frozenset().union(*(found[name] for name in _CELLS)),
        attributes,
        frozenset(found["written"]),
        frozenset(found["appended"]),
        frozenset(found["imports"]),
        frozenset(strings),
        whole or bool((of_globals | attributes) & _WHOLE),
        bool(of_globals & {"globals", "eval", "exec"}),
    )


def _only_written(steps: Sequence[dis.Instruction], i: int) -> bool:
    """Whether it is the attribute of ``x.name += ...`` or of ``x.name.append(...)``."""
    return (i > 0 and steps[i - 1].opname in _DUPLICATES) or _appended(steps, i)


def _appended(steps: Sequence[dis.Instruction], i: int) -> bool:
    """Whether its method ``append`` is called, and what that returns is of no interest."""
    following = steps[i + 1] if i + 1 < len(steps) else None
    if following is None or following.opname not in _READS or following.argval != "append":
        return False
    called = _call(steps, i + 1)
    return called is not None and called + 1 < len(steps) and steps[called + 1].opname == "POP_TOP"


def _only_counts(steps: Sequence[dis.Instruction], i: int) -> bool:
    """Whether it is ``name += constant`` or ``name.append(...)``, of a variable from outside."""
    loaded, following = steps[i], steps[i + 1 : i + 4]
    if _appended(steps, i):
        return True
    if len(following) < 3:
        return False
    constant, operation, store = following
    in_place = operation.opname.startswith("INPLACE_") or operation.argrepr.endswith("=")
    same = store.opname == _LOADS[loaded.opname] and store.argval == loaded.argval
    return constant.opname.startswith("LOAD_CONST") and in_place and same


def _made_up(steps: Sequence[dis.Instruction], i: int) -> bool:
    """Whether the name that ``getattr`` is given from here may be no constant."""
    given = _arguments(steps, i)
    if given is None:
        return True
    count, before = given
    if steps[i].argval in ("attrgetter", "methodcaller"):
        return not all(map(_is_name, before))
    default = count - 2
    if default == 1:  # a constant, a variable or an attribute of one
        while before and before[-1].opname in _READS:
            before = before[:-1]
        before = before[:-1] if before and before[-1].opname.startswith("LOAD_") else []
    return default not in (0, 1) or not before or not _is_name(before[-1])


def _arguments(
    steps: Sequence[dis.Instruction], i: int
) -> tuple[int, Sequence[dis.Instruction]] | None:
    """How many arguments what is loaded here is called with, and the code that makes them.

    None where that is not to be seen (`_call`).
    """
    called = _call(steps, i)
    if called is None:
        return None
    before = [x for x in steps[i + 1 : called] if x.opname not in _CONSTANT_OF_CALL]
    while before and before[0].opname == "PUSH_NULL":
        before = before[1:]
    return steps[called].arg or 0, before


def _call(steps: Sequence[dis.Instruction], i: int) -> int | None:
    """Where what is loaded here is called; None if not at once, or after a branch."""
    depth = 1
    for j in range(i + 1, len(steps)):
        step = steps[j]
        if "JUMP" in step.opname or step.opname.startswith(("FOR_", "SEND", "YIELD", "RETURN")):
            return None
        depth += _effect(step)
        if depth <= 1 and step.opname.startswith("CALL"):
            return j
        if depth < 1:
            return None
    return None


def _effect(step: dis.Instruction) -> int:
    with_argument = step.opcode >= dis.HAVE_ARGUMENT and step.arg is not None
    return dis.stack_effect(step.opcode, step.arg if with_argument else None, jump=False)


def _is_name(step: dis.Instruction) -> bool:
    return step.opname.startswith("LOAD_CONST") and isinstance(step.argval, str)


def _strings(constants: Sequence[object]) -> set[str]:
    return {x for x in constants if isinstance(x, str) and x.replace(".", "_").isidentifier()}


def _nested(code: types.CodeType) -> list[types.CodeType]:
    found = [code]
    for each in found:  # grows while it is walked
        found += [x for x in each.co_consts if isinstance(x, types.CodeType)]
    return found
