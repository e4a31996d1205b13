"""What no guard can watch: clocks, files, and the like."""

from __future__ import annotations

import builtins
import datetime
import importlib
import io
import os
import time
import types
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import torch

_CLOCKS = frozenset(
    {*(f for n in dir(time) if callable(f := getattr(time, n)) and n != "sleep"), os.urandom}
)
_FILES = frozenset({builtins.open, io.open, os.stat, os.listdir, os.scandir, torch.load})
_IMPORTS = frozenset({importlib.import_module, importlib.reload, builtins.__import__})
_THREADS = frozenset(
    {
        *("Thread", "ThreadPool", "ThreadPoolExecutor", "ProcessPoolExecutor"),
        *("start_new_thread", "to_thread"),
    }
)
_MEMORY = frozenset({"data_ptr", "untyped_storage", "typed_storage", "share_memory_"})
_NOW = frozenset({"now", "today", "utcnow"})
_READING = frozenset(
    {"read_text", "read_bytes", "readline", "readlines", "fromfile", "loadtxt", "iterdir"}
)
_THERE = frozenset({"exists", "lexists", "isfile", "is_file", "isdir", "is_dir", "getmtime"})
_ENVIRONMENT = frozenset({"environ", "environb", "getenv", "getenvb", "expandvars", "expanduser"})
_OF_ENVIRONMENT = (os.environ, os.getenv, os.path.expandvars, os.path.expanduser)
_PATHS = frozenset({"os", "path", "pathlib"})
_BUILT_IN = {
    "open": "and files may change",
    "input": "which a replay would not",
    "__import__": "and of which module cannot be seen",
}


def about_call(x: Any, names: frozenset[str]) -> str:
    """What the world outside decides, if code that reads these attributes has `x`; or nothing."""
    if isinstance(x, PurePath) and (there := _THERE & names):
        return f"it calls {min(there)}() of {x}, and files may change"
    if isinstance(x, type):
        if issubclass(x, datetime.date) and (now := _NOW & names):
            return (
                f"it asks {x.__name__}.{min(now)}() for the time, which is another one every call"
            )
        return ""
    if not isinstance(x, types.BuiltinFunctionType | types.FunctionType):
        return ""
    if x in _CLOCKS:
        return f"it calls {x.__qualname__}(), which is another one at every call"
    if x in _IMPORTS:
        return f"it calls {x.__qualname__}(), and of which module cannot be seen"
    if x in _FILES:
        return f"it calls {x.__qualname__}(), and files may change"
    return ""


def about_names(names: frozenset[str], attributes: frozenset[str], own: dict[str, Any]) -> str:
    """The same of a function's code.

    Args:
        names: that it looks up among the globals of its module, or built in.
        attributes: that it reads, of whatever.
        own: the globals.
    """
    for name, what in _BUILT_IN.items():
        if name in names and name not in own:
            return f"it calls {name}(), {what}"
    every = names | attributes
    if memory := _MEMORY & every:
        return f"it calls {min(memory)}(), and what is done with a tensor's memory cannot be seen"
    if threads := _THREADS & every:
        return f"it calls {min(threads)}(), and what other threads compute is not recorded"
    reading = _READING & every
    if _PATHS & {name.lower() for name in every}:
        reading |= _THERE & every
    return f"it calls {min(reading)}(), and files may change" if reading else ""


def asks_environment(
    names: frozenset[str], attributes: frozenset[str], own: Mapping[str, Any]
) -> bool:
    """Whether code with these names, globals or attributes, may read environment variables."""
    if _ENVIRONMENT & (names | attributes):
        return True
    return any(own.get(name) is x for name in names for x in _OF_ENVIRONMENT)
