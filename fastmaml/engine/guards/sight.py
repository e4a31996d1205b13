"""Which of the user's functions ran, on which objects: what a recording or a plan depends on."""

from __future__ import annotations

import collections
import enum
import functools
import gc
import os
import sys
import threading
import types
import weakref
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

MACHINERY = frozenset({"torch", "numpy", "fastmaml", "functorch", "sympy", "mpmath"})
LIBRARIES = MACHINERY | {"transformers", "peft", "torchvision", "timm"}
"""Whose code reads no variables of the user's; what their objects hold is looked at as a whole."""

_STANDARD = (os.path.dirname(os.__file__), "<frozen", "<__array_function__")

_IMPORTS = sys.intern("<frozen importlib._bootstrap>")

_KERNELS = "fastmaml.kernels"
"""What runs below a function of these is Triton's: it compiles, with threads, and launches."""

_STARTS = frozenset({threading.Thread.start.__code__, ThreadPoolExecutor.submit.__code__})

_NO_OBJECTS = (bool, int, float, complex, str, bytes, type(None), Tensor, nn.Parameter)
"""Tensors are looked at where they are kept."""

_OF_THE_RUN = (types.FrameType, types.TracebackType, BaseException, Iterator, Collection)
"""What does not outlive a run; frames, and exceptions by theirs, keep all that it had alive."""

_CONTAINERS = (tuple, list, dict, set, frozenset, collections.deque)
"""They are reached from what holds them, and what they hold from here."""


@functools.lru_cache(maxsize=4096)
def root(module: str | None) -> str:
    """The package that a module belongs to."""
    return (module or "").partition(".")[0]


@functools.lru_cache(maxsize=4096)
def of_a_library(module: str | None) -> bool:
    """Whether what is defined in this module is no code of the user's."""
    if root(module) in LIBRARIES:
        return True
    # make_dataclass says "types" of what it makes; a user's file may be called statistics.py.
    standard = root(module) in sys.stdlib_module_names and module != "types"
    return standard and not _shadowed(sys.modules.get(module or ""))


def _shadowed(module: types.ModuleType | None) -> bool:
    """Whether it has the name of a standard module, and is none."""
    file = getattr(module, "__file__", None)
    return file is not None and not file.startswith((os.path.dirname(os.__file__), sys.prefix))


def own_code(code: types.CodeType, module: str | None) -> bool:
    """Whether it is the user's. A file of theirs may have the name of a standard module."""
    if root(module) in LIBRARIES or (module or "").startswith("namedtuple_"):
        return False
    return root(module) not in sys.stdlib_module_names or not code.co_filename.startswith(_STANDARD)


@dataclass
class Pool:
    """What one function saw when it ran.

    Attributes:
        globals: its module's.
        objects: its arguments, local variables and results, and those of what it called, as far as
            they are objects that others hold, too.
        kinds: the classes of all these, as far as they are the user's; many an object lives no
            longer than the function.
        strong: a user's own tuples and the like, to which nothing can refer weakly; all functions
            of a run have this dict in common.
    """

    globals: dict[str, Any]
    strong: dict[int, Any] = field(default_factory=dict)
    kinds: dict[type, None] = field(default_factory=dict)
    objects: dict[int, Any] = field(default_factory=dict)

    def add(self, x: Any) -> None:
        """An object, or those in a container; what was made on the way goes with its last user."""
        waiting, seen = [x], set()
        while waiting:
            x = waiting.pop()
            if type(x) in _NO_OBJECTS or id(x) in seen:
                continue
            if issubclass(type(x), _CONTAINERS):
                seen.add(id(x))
                waiting += dict.values(x) if issubclass(type(x), dict) else x
            elif type(x).__name__ == "ndarray" and x.dtype.hasobject:
                waiting += x.ravel().tolist()
            self._note(x)

    def _note(self, x: Any) -> None:
        if type(x) in _CONTAINERS:
            return
        own = not of_a_library(type(x).__module__)
        if own:
            self.kinds[type(x)] = None
        try:
            self.objects[id(x)] = weakref.ref(x)
        except TypeError:
            if not issubclass(type(x), _OF_THE_RUN):
                self.objects[id(x)] = functools.partial(_same, x)
            elif own:
                self.objects[id(x)] = functools.partial(self.strong.get, id(x))
                self.strong[id(x)] = x

    def alive(self) -> list[Any]:
        """Those that are still there."""
        return [x for ref in self.objects.values() if (x := ref()) is not None]


def _same(x: Any) -> Any:
    return x


def _let_go(held: dict[int, Any]) -> None:
    """Forget what nobody else holds: it was of the run that is over, and its tensors are large."""
    while True:
        own = [key for key in held if sys.getrefcount(held[key]) <= 2]  # `held` and the argument
        if not own:
            return
        for key in own:
            del held[key]


@final
class Sight:
    """A context that watches which functions of the user's run in this thread, and on what.

    A tracer (a debugger, a measurement of coverage) that is active meanwhile sees nothing of it.
    Costs about 0.2 us a call of any Python function, and more for the user's own.

    Attributes:
        pools: by code that ran.
        elsewhere: about a thread that was given work; empty if none was.
        raised: exceptions that the user's functions saw, caught or not: where, and of what class.
    """

    def __init__(self) -> None:
        self.pools: dict[types.CodeType, Pool] = {}
        self.elsewhere = ""
        self.raised: set[tuple[types.CodeType, int, type]] = set()
        self._kinds: dict[types.CodeType, _Kind] = {}
        self._stack: list[Pool] = []
        self._strong: dict[int, Any] = {}
        self._hidden = 0
        self._tracer = self._called  # one object, which can be told from another's
        self._before: Any = None
        self._collects = False

    def __enter__(self) -> Sight:
        self._before, self._collects = sys.gettrace(), gc.isenabled()
        gc.disable()  # finalizers run in whatever frame is there, and are none of the model's code
        sys.settrace(self._tracer)
        return self

    def __exit__(self, *error: Any) -> None:
        if sys.gettrace() is self._tracer:  # else a debugger was begun inside
            sys.settrace(self._before)
        if self._collects:
            gc.enable()
        self._stack.clear()
        _let_go(self._strong)

    def _called(self, frame: types.FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        kind = self._kinds.get(code)
        if kind is None:
            kind = self._kinds[code] = _kind(frame)
        if kind is _Kind.OTHER:  # nearly all are
            return None
        if kind is _Kind.HIDES:
            return self._hides(frame)
        if self._hidden:  # what modules do when they are loaded is done once
            return None
        if kind is _Kind.STARTS:
            self._starts(frame)
            return None
        pool = self.pools.get(code)
        if pool is None:
            pool = self.pools[code] = Pool(frame.f_globals, self._strong)
        for x in frame.f_locals.values():
            pool.add(x)
        self._stack.append(pool)
        frame.f_trace_lines = False
        return self._returned

    def _starts(self, frame: types.FrameType) -> None:
        kind = type(frame.f_locals["self"])
        if root(kind.__module__) not in MACHINERY | {"tqdm"}:
            self.elsewhere = (
                f"it starts a {kind.__name__}, and what other threads compute is not recorded"
            )

    def _returned(self, frame: types.FrameType, event: str, arg: Any) -> Any:
        if event == "exception":
            self.raised.add((frame.f_code, frame.f_lineno, arg[0]))
        if event == "return" and self._stack:
            pool = self._stack.pop()
            for x in frame.f_locals.values():
                pool.add(x)
            pool.add(arg)
            if self._stack:
                self._stack[-1].add(arg)
        return self._returned

    def _hides(self, frame: types.FrameType) -> Any:
        self._hidden += 1
        frame.f_trace_lines = False
        return self._shown

    def _shown(self, frame: types.FrameType, event: str, arg: Any) -> Any:
        self._hidden -= event == "return"
        return self._shown


class _Kind(enum.Enum):
    """What a function is to `Sight`."""

    OWN = enum.auto()
    """The user's."""
    STARTS = enum.auto()
    """It gives a thread work."""
    HIDES = enum.auto()
    """What it calls is no code of the model's."""
    OTHER = enum.auto()


def _kind(frame: types.FrameType) -> _Kind:
    if own_code(frame.f_code, frame.f_globals.get("__name__")):
        return _Kind.OWN
    if frame.f_code in _STARTS:
        return _Kind.STARTS
    return _Kind.HIDES if _hides_others(frame) else _Kind.OTHER


def _hides_others(frame: types.FrameType) -> bool:
    """Whether what it calls is no code of the model's: it imports a module, or runs a kernel."""
    code = frame.f_code
    if code.co_filename == _IMPORTS:
        return code.co_name == "_find_and_load"
    return str(frame.f_globals.get("__name__")).startswith(_KERNELS)


def of_function_class(kind: type) -> list[types.FunctionType]:
    """The rules of a `torch.autograd.Function`, which may run in another thread."""
    if not issubclass(kind, torch.autograd.Function):
        return []
    names = ("forward", "setup_context", "backward", "jvp", "vmap")
    found = (getattr(kind, name, None) for name in names)
    return [f for f in found if isinstance(f, types.FunctionType)]
