"""The public names of a package, and which of them another lacks or has otherwise."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from benchmarks.peers.outcomes import Row
from benchmarks.peers.signatures import compared

ABSENT = object()


def compare(package: str, under: str, private: tuple[str, ...] = ()) -> list[Row]:
    """Every public name of `package`, with what the module of that path below `under` has for it.

    Names are those of modules, what modules define or hand on, and of classes the methods and
    attributes that the package itself gives them, with those that ``self`` is given.

    Args:
        package: its name, such as "higher"; all of its modules are imported.
        under: where the other's modules are, such as "fastmaml.compat".
        private: names with an underscore that scripts use all the same, by their whole paths.

    Raises:
        LookupError: the package has no such private name.
    """
    rows, classes = [], {}
    for module in modules(package):
        for name, theirs in members_of_module(module, private).items():
            path = f"{module.__name__}.{name}"
            ours = lookup(f"{under}.{module.__name__}", name)
            rows.append(Row(path, verdict(theirs, ours)))
            # Under the path where it is defined if the other has it there, else the first.
            if inspect.isclass(theirs) and inspect.isclass(ours):
                known = classes.setdefault(theirs, (path, ours))
                classes[theirs] = (path, ours) if origin(theirs) == module.__name__ else known
    unknown = {p for p in private if p.startswith(f"{package}.")} - {row.name for row in rows}
    if unknown:
        raise LookupError(f"the real {package} has no {sorted(unknown)}")
    for theirs, (path, ours) in classes.items():
        rows += compare_classes(path, theirs, ours)
    return sorted(rows)


def modules(package: str) -> Iterator[ModuleType]:
    """The package and all that is in it; one that cannot be imported is an error."""
    root = importlib.import_module(package)
    yield root
    for found in pkgutil.walk_packages(root.__path__, f"{package}."):
        if not found.name.rpartition(".")[2].startswith("_"):
            yield importlib.import_module(found.name)


def members_of_module(module: ModuleType, private: tuple[str, ...]) -> dict[str, Any]:
    """What it defines, and a package hands on of its own; not what it imports for its own use."""
    hands_on = hasattr(module, "__path__")
    root = module.__name__.partition(".")[0]
    found = {}
    for name, value in vars(module).items():
        home = origin(value)
        own = home.partition(".")[0] == root if hands_on else home == module.__name__
        constant = type(value).__module__ == "builtins" and not callable(value)
        public = not name.startswith("_") and not isinstance(value, ModuleType)
        if f"{module.__name__}.{name}" in private or (public and (own or constant)):
            found[name] = value
    return found


def origin(value: Any) -> str:
    """The module of a class or function, empty for other values."""
    named = inspect.isclass(value) or callable(value)
    return str(getattr(value, "__module__", "") or "") if named else ""


def lookup(module: str, name: str) -> Any:
    """What the module has under that name, the reason if it cannot be imported, or ABSENT."""
    try:
        return getattr(importlib.import_module(module), name, ABSENT)
    except ModuleNotFoundError as error:
        if error.name and module.startswith(error.name):
            return ABSENT
        raise


def verdict(theirs: Any, ours: Any) -> str:
    """In a word or in words."""
    if ours is ABSENT:
        return "missing"
    if inspect.isclass(theirs) != inspect.isclass(ours):
        return f"a {type(theirs).__name__} there, a {type(ours).__name__} here"
    if inspect.isclass(theirs) or inspect.isroutine(theirs):
        return compared(theirs, ours) if callable(ours) else "not callable"
    if isinstance(theirs, int | float | str | tuple | list | dict):
        return "equal" if theirs == ours else "another value"
    return "equal"


def compare_classes(path: str, theirs: type, ours: type) -> Iterator[Row]:
    """The public methods and attributes."""
    given = attributes(ours)
    for name, value in sorted(attributes(theirs).items()):
        mine = getattr(ours, name, given.get(name, ABSENT))
        if mine is ABSENT:
            yield Row(f"{path}.{name}", "missing")
        elif inspect.isroutine(value) and not isinstance(mine, property):
            yield Row(f"{path}.{name}", verdict(getattr(theirs, name), mine))
        else:
            yield Row(f"{path}.{name}", "equal")


def attributes(given: type) -> dict[str, Any]:
    """Those that its own package defines, with None for what only instances have."""
    root = given.__module__.partition(".")[0]
    found: dict[str, Any] = {}
    for one in given.__mro__:
        if one.__module__.partition(".")[0] == root:
            for name in given_to_self(one):
                found.setdefault(name, None)
            found = {**vars(one), **dict.fromkeys(inspect.get_annotations(one)), **found}
    return {name: value for name, value in found.items() if not name.startswith("_")}


def given_to_self(given: type) -> Iterator[str]:
    """``self.NAME = ...``, ``self.register_buffer("NAME", ...)``; none where there is no source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(given)))
    except (OSError, TypeError):
        return
    waiting: list[ast.AST] = list(tree.body[0].body)
    while waiting:
        node = waiting.pop()
        match node:
            case ast.ClassDef():
                continue  # its self is another
            case ast.Attribute(ast.Name("self"), name, ast.Store()):
                yield name
            case ast.Call(
                ast.Attribute(ast.Name("self"), "register_buffer" | "register_parameter"),
                [ast.Constant(str(name)), *_],
            ):
                yield name
        waiting += ast.iter_child_nodes(node)
