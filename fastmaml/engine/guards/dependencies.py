"""What a recording, or a plan, depends on besides its arguments: from what ran to guards."""

from __future__ import annotations

import builtins
import collections
import functools
import gc
import logging
import os
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fastmaml.engine.guards.answers import guard_answer, guard_flags
from fastmaml.engine.guards.attributes import content, own_dict, slot, slots
from fastmaml.engine.guards.code_reads import CodeReads, code_reads
from fastmaml.engine.guards.guards import Guards
from fastmaml.engine.guards.hidden_values import Names, UnguardableError, require, way_to_look
from fastmaml.engine.guards.left_behind import left_behind
from fastmaml.engine.guards.library_objects import (
    SCRIPTS,
    hidden,
    machinery,
    nothing,
    run_by_a_library,
)
from fastmaml.engine.guards.modules import guard_module
from fastmaml.engine.guards.namespaces import (
    guard_class,
    guard_class_attribute,
    guard_every_class,
    guard_module_names,
    guard_sayings,
    guard_special_methods,
    own_names,
)
from fastmaml.engine.guards.outside_world import about_call, about_names, asks_environment
from fastmaml.engine.guards.sight import Pool, Sight, own_code, root

MAX_SETTINGS = 2**16  # that are looked at in every call


@final
class Dependencies:
    """What functions that ran depend on, and whether it is as it was.

    Of an object, that is each attribute whose name is in the code of a function that saw it: its
    own, and those of the classes where it is looked up before it is found; and so on from what is
    found there, with the same names. Of a module of a library and of other objects that only
    libraries read, all attributes.

    Attributes:
        guards: what is checked.
        restless: what changes whenever the model runs, and is read there, too, or nothing; it is
            not guarded.
        unguardable: what is read that nothing can watch; empty if there is nothing.
        raised: the exceptions that the functions saw (`Sight.raised`).
        unreached: as `Program.unreached`, of the last run that was watched.
        scripted: whether TorchScript runs, where no mode of torch's functions sees anything.
        left: where runs leave tensors behind, as kept activations: what gives them, and its name.
    """

    def __init__(self) -> None:
        self.guards = Guards()
        self.inputs: set[int] = set()
        self.only_written: frozenset[str] = frozenset()
        self.scripted = False
        self.unreached = ""
        self.restless = self.unguardable = ""
        self.raised: set[tuple[types.CodeType, int, type]] = set()
        self.left: list[tuple[Callable[[], Any], str]] = []
        self._codes: set[types.CodeType] = set()
        self._seen: set[Any] = set()
        self._wanted: dict[int, tuple[Mapping[str, Any], str, set[str], set[str]]] = {}
        self._of_classes: dict[type, Mapping[str, Any]] = {}
        self._others: tuple[int, list[Tensor]] = 0, []
        self._alive: list[Any] = []  # an address must not be used again meanwhile

    @classmethod
    def worn_out(cls) -> Dependencies:
        """Of something that was another thing at each of the last calls."""
        found = cls()
        found.unguardable = "it depends on a setting that changes with every call"
        return found

    @property
    def refusal(self) -> str:
        """Why nothing that depends on all this may be used again without running; mostly empty."""
        if self.restless:
            return f"{self.restless} is read while it runs, and changes whenever it runs"
        return self.unguardable

    def tensors(self) -> list[Tensor]:
        """Those that were come across."""
        return [x for x in self._alive if isinstance(x, Tensor)]

    def others(self) -> list[Tensor]:
        """The same, but for inputs; looked for where something new was come across."""
        if len(self._alive) != self._others[0]:
            found = [x for x in self.tensors() if id(x) not in self.inputs]
            self._others = len(self._alive), found
        return self._others[1]

    def hold(self, call: Any = None) -> bool:
        """Whether everything is as it was; asked once a call (`Guards.hold`)."""
        return self.guards.hold(call)

    def changed(self) -> str:
        """What is not as it was, besides tensors that each run leaves behind; or nothing."""
        return self.guards.changed_beside_tensors() or ""

    def settle(self, first: bool = False) -> None:
        """Note, and guard no more, what changed by running again.

        Args:
            first: a tensor that each run leaves behind is no reason by itself: whether a later run
                reads it is for `LeftBehind` to see.
        """
        while (found := self.guards.forget_changed()) is not None:
            if first and found.tensors is not None:
                self.left.append((found.tensors, found.label))
            else:
                self.restless = self.restless or found.label

    def add(self, sight: Sight, roots: Iterable[Any], inputs: Iterable[Tensor]) -> None:
        """What was seen to run, and what libraries read of these objects.

        Args:
            sight: of a run.
            roots: the model, the loss and so on.
            inputs: tensors whose identity does not matter, as they are read at every call.
        """
        self.inputs |= {id(x) for x in inputs}
        self.raised |= sight.raised
        self.unguardable = self.unguardable or sight.elsewhere
        try:
            self._add(sight, roots)
        except UnguardableError as error:
            self.unguardable = str(error)
        except RecursionError:
            self.unguardable = "it depends on structures that are too deep to look through"
        self._enter()

    def knows(self, sight: Sight) -> bool:
        """Whether a run showed nothing but code and exceptions that are known."""
        seen = self._codes.issuperset(sight.pools) and self.raised.issuperset(sight.raised)
        return seen and not sight.elsewhere

    def _add(self, sight: Sight, roots: Iterable[Any]) -> None:
        every = [code_reads(code) for code in sight.pools]
        written = frozenset().union(*(reads.written for reads in every))
        self.only_written = written.difference(*(reads.of_attributes for reads in every))
        for x in roots:
            self.visit(x, None, type(x).__name__)
        pools = dict(sight.pools)
        if new := pools.keys() - self._codes:
            self._codes |= new
            for function in gc.get_referrers(*new):  # a frame does not say whose code it runs
                if isinstance(function, types.FunctionType) and function.__code__ in new:
                    self.visit(function, frozenset(), function.__qualname__)
        for code, pool in pools.items():
            self._ran(code, pool)

    def _enter(self) -> None:
        """Guard the entries of dicts that were asked for, those of a dict together."""
        for of, label, names, entered in self._wanted.values():
            if new := names - entered:
                entered |= new
                self.guards.items(of, new, label)

    def _ran(self, code: types.CodeType, pool: Pool) -> None:
        reads = code_reads(code)
        self._from_globals(pool.globals, reads)
        names = reads.of_attributes | {code.co_name}
        for kind in pool.kinds:
            self.visit(kind, None if reads.whole else names, kind.__name__)
            guard_special_methods(self, kind)
            if reads.by_class:
                guard_every_class(self, kind, names)
        for x in pool.alive():
            if hidden(x):
                continue  # whatever holds it is looked at
            self.visit(x, names, type(x).__name__)
            self._appended_to(own_dict(x) or {}, reads, f"{type(x).__name__}.")
            if reads.by_class and isinstance(x, type):
                guard_every_class(self, x, names)
            if reads.whole and not isinstance(x, type | types.ModuleType | types.FunctionType):
                self._attributes(x, None, type(x).__name__)

    def _from_globals(self, of: dict[str, Any], reads: CodeReads) -> None:
        names = reads.of_globals
        if reads.of_all_globals:
            names |= reads.strings & of.keys()
        require(about_names(names, reads.of_attributes, of))
        within = reads.within
        if within and "site-packages" in (of.get("__file__") or ""):
            within -= {"modules"}  # packages ask sys.modules whether others are there
        self._entries(of, names, f"{of.get('__name__')}.", within)
        self._appended_to(of, reads, f"{of.get('__name__')}.")
        for x in (of.get(name) for name in names if reads.by_class):
            if isinstance(x, type):
                guard_every_class(self, x, reads.of_attributes)
        self._entries(vars(builtins), names - of.keys(), "builtins.", reads.within)
        package = of.get("__package__") or ""
        for name in reads.imports:
            for whole in (name, f"{package}.{name}", package):
                self.visit(sys.modules.get(whole), reads.within, whole)
                if whole in sys.modules:
                    self._wanted_of(sys.modules, "sys.modules ").add(whole)
        if asks_environment(names, reads.of_attributes, of):
            self._dict(vars(os.environ)["_data"], frozenset(), "os.environ")

    def _entries(
        self, of: Mapping[str, Any], names: Iterable[str], label: str, within: Names
    ) -> None:
        """Entries of a dict, which functions read that read attributes of these names."""
        wanted = self._wanted_of(of, label)
        for name in list(names):
            if isinstance(x := of.get(name), Tensor) and left_behind(x):
                self.left.append((functools.partial(of.get, name), f"{label}{name}"))
                continue
            wanted.add(name)
            if name in of:
                require(about_call(of[name], within or frozenset()))
                guard_answer(self.guards, of[name], within or frozenset(), f"{label}{name}")
                self.visit(of[name], within, f"{label}{name}")

    def _appended_to(self, of: Mapping[str, Any], reads: CodeReads, label: str) -> None:
        """What is no list may do anything when something is appended to it."""
        for name in reads.appended:
            if name in of and not isinstance(of[name], list | collections.deque):
                self._entries(of, (name,), label, reads.within)

    def _wanted_of(self, of: Mapping[str, Any], label: str) -> set[str]:
        """The names of a dict's entries that are asked for."""
        return self._wanted.setdefault(id(of), (of, label, set(), set()))[2]

    def _count(self) -> None:
        if len(self.guards) > MAX_SETTINGS:
            raise UnguardableError(
                f"it depends on more than {MAX_SETTINGS:,} settings, too many to look at in every "
                "call"
            )

    # ------------------------------------------------------------------------------- by kind

    def visit(self, x: Any, names: Names, label: str) -> None:
        """What `x` holds, as far as functions look at attributes of these names."""
        if nothing(type(x)):
            return
        key = (id(x), names)
        if key in self._seen:
            return
        self._seen.add(key)
        self._alive.append(x)
        self._kind(x)(x, names, label)

    def _kind(self, x: Any) -> Callable[[Any, Names, str], None]:
        for kinds, method in _METHODS:
            if issubclass(type(x), kinds):  # whatever it says that it is
                return functools.partial(method, self)
        way = way_to_look(x)
        return self._object if way is None else functools.partial(way, self)

    def _tensor(self, x: Tensor, names: Names, label: str) -> None:
        if left_behind(x):
            return
        self._entries(x.__dict__, x.__dict__, f"{label}.", None)
        made_of_others = is_traceable_wrapper_subclass(x)
        if id(x) not in self.inputs and x.layout == torch.strided and not made_of_others:
            self.guards.place(x, label)

    def _function(self, x: types.FunctionType, names: Names, label: str) -> None:
        own = own_code(x.__code__, x.__globals__.get("__name__"))
        if not own and not x.__closure__:
            return
        if not own and root(x.__globals__.get("__name__")) in sys.stdlib_module_names:
            for cell in x.__closure__ or ():  # a registry, say
                self.visit(cell, None, label)
        reads = code_reads(x.__code__)
        within = reads.within
        if (id(x), "itself") not in self._seen:
            self._seen.add((id(x), "itself"))
            self.guards.read(lambda: (x.__code__, x.__defaults__, x.__kwdefaults__), f"{label}()")
            if own:
                self._from_globals(x.__globals__, reads)
                self._cells(x, reads, label)
            self.visit(x.__defaults__, within, label)
            self.visit(x.__kwdefaults__, within, label)
            self.visit(x.__dict__.get("__wrapped__"), within, label)
        guard_sayings(self, x, names, label)
        if names is None or names & x.__dict__.keys() or x.__dict__:
            self._entries(x.__dict__, x.__dict__ if names is None else names, f"{label}.", names)

    def _cells(self, x: types.FunctionType, reads: CodeReads, label: str) -> None:
        for name, cell in zip(x.__code__.co_freevars, x.__closure__ or (), strict=True):
            if name in reads.of_cells or name == "__class__":
                self.guards.read(functools.partial(content, cell), f"{label}'s {name}")
                self.visit(content(cell), reads.within, name)

    def _method(self, x: types.MethodType, names: Names, label: str) -> None:
        self.visit(x.__func__, names, label)
        self.visit(x.__self__, names, label)
        if isinstance(x.__func__, types.FunctionType):
            self.visit(x.__self__, code_reads(x.__func__.__code__).within, label)

    def _sequence(self, x: Any, names: Names, label: str) -> None:
        if x and all(isinstance(y, Tensor) and left_behind(y) for y in x):
            return  # to guard them would keep their graph
        if not isinstance(x, tuple) and (id(x), "entries") not in self._seen:
            self._seen.add((id(x), "entries"))
            self.guards.row(x, label)
            self._count()
        for i, y in enumerate(x):
            self.visit(y, names, f"{label}[{i}]")
        self._beside(x, names, label)

    def _set(self, x: Any, names: Names, label: str) -> None:
        self.guards.read(functools.partial(frozenset, x), label)
        for y in x:
            self.visit(y, names, label)
        self._beside(x, names, label)

    def _dict(self, x: Any, names: Names, label: str) -> None:
        if x is sys.modules:
            raise UnguardableError("it looks modules up in sys.modules")
        if (id(x), "entries") not in self._seen:
            self._seen.add((id(x), "entries"))
            self._alive.append(x)
            self.guards.whole(x, label)
            self._count()
        for key, y in x.items():
            self.visit(y, names, f"{label}[{key!r}]" if isinstance(key, str | int) else label)
        self._beside(x, names, label)

    def _beside(self, x: Any, names: Names, label: str) -> None:
        """The attributes of a user's own kind of container."""
        if type(x).__module__ not in ("builtins", "collections", "types"):
            self._attributes(x, names, label)

    def _object(self, x: Any, names: Names, label: str) -> None:
        kind = type(x)
        self.scripted |= issubclass(kind, SCRIPTS)
        if kind.__module__.startswith("fastmaml.engine"):
            return
        if machinery(kind):
            require(about_call(x, names or frozenset()))
            self._attributes(x, names or frozenset(), label)
            if isinstance(x, logging.Logger) and names and "isEnabledFor" in names:
                self.guards.read(x.getEffectiveLevel, label)
            return
        guard_flags(self.guards, x, names or frozenset(), label)
        if hidden(x):
            raise UnguardableError(
                f"{label} is a {kind.__module__}.{kind.__name__}, in which nothing can be seen"
            )
        self._attributes(x, None if run_by_a_library(kind) else names, label)
        if callable(x) and not isinstance(call := type(x).__call__, types.WrapperDescriptorType):
            self.visit(call, names, label)

    def _attributes(self, x: Any, names: Names, label: str) -> None:
        """The attributes of any object."""
        if (id(x), "kind") not in self._seen:
            self._seen.add((id(x), "kind"))
            self._alive.append(x)
            self.guards.kind(x)
        label = f"{label}." if label else ""
        own = own_dict(x)
        if own is not None:
            self._entries(own, list(own) if names is None else names, label, names)
            if names is None:
                self.guards.size(own)
        for name in slots(type(x), names is None):
            if names is None or name in names:
                look = functools.partial(slot, x, name)
                self.guards.read(look, f"{label}{name}")
                self.visit(look(), names, f"{label}{name}")
        for name in own_names(type(x)) if names is None else names:
            if own is None or name not in own:
                guard_class_attribute(self, type(x), name, names, label)


_METHODS: tuple[tuple[Any, Callable[..., None]], ...] = (
    (Tensor, Dependencies._tensor),
    (nn.Module, guard_module),
    (types.FunctionType, Dependencies._function),
    (types.MethodType, Dependencies._method),
    (type, guard_class),
    (types.ModuleType, guard_module_names),
    ((list, tuple, collections.deque), Dependencies._sequence),
    ((set, frozenset), Dependencies._set),
    ((dict, types.MappingProxyType), Dependencies._dict),
)
