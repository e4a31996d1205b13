"""What no guard can watch: clocks, files, and the like."""

from __future__ import annotations

import builtins
import datetime
import importlib
import io
import os
import time
import types
from typing import Any

import torch

_CLOCKS = frozenset(
    {*(f for n in dir(time) if callable(f := getattr(time, n)) and n != "sleep"), os.urandom}
)
_FILES = frozenset({builtins.open, io.open, os.stat, os.listdir, os.scandir, torch.load})
_IMPORTS = frozenset({importlib.import_module, importlib.reload, builtins.__import__})
_THREADS = frozenset(
    {
        *("Thread", "ThreadPool", "ThreadPoolExecutor", "ProcessPoolExecutor", "submit"),
        *("start_new_thread", "apply_async", "map_async", "to_thread", "run_in_executor"),
    }
)
_MEMORY = frozenset({"data_ptr", "untyped_storage", "typed_storage", "share_memory_"})
_NOW = frozenset({"now", "today", "utcnow"})
_READING = frozenset(
    {
        *("read_text", "read_bytes", "readline", "readlines", "fromfile", "loadtxt"),
        *("exists", "lexists", "isfile", "is_file", "isdir", "is_dir", "iterdir", "getmtime"),
    }
)


def about_call(x: Any, names: frozenset[str]) -> str:
    """What the world outside decides, if code that reads these attributes has `x`; or nothing."""
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


def about_names(names: frozenset[str], own: dict[str, Any]) -> str:
    """The same of the names in a function's code, given the globals of its module."""
    if "open" in names and "open" not in own:
        return "it calls open(), and files may change"
    if "__import__" in names and "__import__" not in own:
        return "it calls __import__(), and of which module cannot be seen"
    if memory := _MEMORY & names:
        return f"it calls {min(memory)}(), and what is done with a tensor's memory cannot be seen"
    if threads := _THREADS & names:
        return f"it calls {min(threads)}(), and what other threads compute is not recorded"
    if "input" in names and "input" not in own:
        return "it calls input(), which a replay would not"
    if reading := _READING & names:
        return f"it calls {min(reading)}(), and files may change"
    return ""
