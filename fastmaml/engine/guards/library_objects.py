"""Objects of libraries: what their code reads has names that no user's code shows."""

from __future__ import annotations

import os
import sys
import types
from typing import Any

import torch

from fastmaml.engine.guards.attributes import own_dict
from fastmaml.engine.guards.sight import of_a_library, root

_MACHINERY = frozenset(
    {"logging", "warnings", "re", "pathlib", "typing", "abc", "inspect", "importlib", "traceback",
     "_thread", "_abc", "_csv", "asyncio", "tqdm", "pdb"}
)  # fmt: skip
"""Packages whose objects say nothing of numbers but by what the user's code reads of them."""

_WATCHING = ("torch.utils.tensorboard", "torch.profiler", "torch.autograd.profiler")

_WITHOUT_CODE = frozenset({"builtins", "abc", "typing", "types", "fastmaml"})
"""Whose classes keep nothing by names of their own, or what the user's code names."""

_CONSTANT = frozenset(
    {"torch", "numpy", "functorch", "builtins", "types", "datetime", "decimal", "_decimal", "enum",
     "uuid", "zoneinfo", "struct", "_struct", "operator", "_operator", "_sre", "re", "functools",
     "_abc", "_csv", "_collections", "fractions", "_hashlib", "inspect", "pybind11_builtins"}
)  # fmt: skip
"""Packages whose objects without attributes never change."""


PARTS_OF_LIBRARIES = (
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    os._Environ,
)
"""They are theirs, and not a user's that hangs there."""

SCRIPTS = (torch.jit.ScriptFunction, torch._C.ScriptMethod)
"""Functions of TorchScript."""

NOTHING = (
    bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size,
    slice, range, types.CodeType, types.WrapperDescriptorType, types.MethodDescriptorType,
    types.GetSetDescriptorType, types.MemberDescriptorType,
)  # fmt: skip
"""Nothing in these changes, or nothing that code can see."""


def nothing(kind: type) -> bool:
    """Whether objects of this class are plain values; those of a user's own may hold more."""
    return issubclass(kind, NOTHING) and (kind in NOTHING or of_a_library(kind.__module__))


def machinery(kind: type) -> bool:
    """Whether such objects are there for what they do besides, as loggers, locks and paths."""
    if kind.__name__ == "_local":  # threading's
        return False
    return root(kind.__module__) in _MACHINERY or kind.__module__.startswith(_WATCHING)


def run_by_a_library(kind: type) -> bool:
    """Whether a library's code reads what such objects hold: all of it then counts."""
    if issubclass(kind, types.SimpleNamespace):
        return True  # which C code compares and prints
    return any(
        of_a_library(each.__module__)
        and root(each.__module__) not in _WITHOUT_CODE
        and each.__module__ != "collections.abc"
        for each in kind.__mro__
    )


def hidden(x: Any) -> bool:
    """Whether an object, which has no attributes that Python shows, may hold something else."""
    kind = type(x)
    if isinstance(x, type):
        return False  # whatever its metaclass
    shows = own_dict(x) is not None or any("__slots__" in each.__dict__ for each in kind.__mro__)
    return not shows and root(kind.__module__) not in _CONSTANT


def of_the_process(x: Any) -> bool:
    """Whether it is one of the generators behind `random.random` and `numpy.random.rand`.

    What they draw while the model runs is noted as such (`foreign_state`).
    """
    standard = sys.modules["random"]._inst
    numpy = sys.modules.get("numpy.random.mtrand")
    return x is standard or (numpy is not None and x is numpy._rand)
