"""Objects of libraries: what their code reads has names that no user's code shows."""

from __future__ import annotations

import sys
from typing import Any

from fastmaml.engine.sight import of_a_library, root

_MACHINERY = frozenset(
    {"logging", "warnings", "re", "pathlib", "contextlib", "typing", "abc", "inspect", "importlib",
     "traceback", "string", "io", "_io", "_thread", "asyncio", "tqdm", "pdb"}
)  # fmt: skip
"""Packages whose objects say nothing of numbers."""

_WATCHING = ("torch.utils.tensorboard", "torch.profiler", "torch.autograd.profiler")

_WITHOUT_CODE = frozenset({"builtins", "abc", "typing", "types", "contextlib", "fastmaml"})
"""Whose classes keep nothing by names of their own, or what the user's code names."""

_CONSTANT = frozenset(
    {"torch", "numpy", "functorch", "builtins", "types", "datetime", "decimal", "_decimal", "enum",
     "uuid", "zoneinfo", "struct", "_struct", "operator", "_operator", "_sre", "functools",
     "fractions", "_hashlib", "inspect"}
)  # fmt: skip
"""Packages whose objects without attributes never change."""

_OF_FILES = frozenset({"read", "readinto", "getvalue", "getbuffer", "seek", "tell", "recv", "get"})


def machinery(kind: type) -> bool:
    """Whether such objects are there for what they do besides, as loggers, locks and paths."""
    if kind.__name__ == "_local":  # threading's
        return False
    return root(kind.__module__) in _MACHINERY or kind.__module__.startswith(_WATCHING)


def run_by_a_library(kind: type) -> bool:
    """Whether a library's code reads what such objects hold: all of it then counts."""
    return any(
        of_a_library(each.__module__)
        and root(each.__module__) not in _WITHOUT_CODE
        and each.__module__ != "collections.abc"
        for each in kind.__mro__
    )


def hidden(x: Any) -> bool:
    """Whether an object, which has no attributes that Python shows, may hold something else."""
    kind = type(x)
    shows = hasattr(x, "__dict__") or any("__slots__" in each.__dict__ for each in kind.__mro__)
    return not shows and root(kind.__module__) not in _CONSTANT


def reads_files(names: frozenset[str] | None) -> bool:
    """Whether code that reads these attributes may read what comes from a stream."""
    return bool(_OF_FILES & (names or frozenset()))


def of_the_process(x: Any) -> bool:
    """Whether it is one of the generators behind `random.random` and `numpy.random.rand`.

    What they draw while the model runs is noted as such (`foreign_state`).
    """
    standard = sys.modules["random"]._inst
    numpy = sys.modules.get("numpy.random.mtrand")
    return x is standard or (numpy is not None and x is numpy._rand)
