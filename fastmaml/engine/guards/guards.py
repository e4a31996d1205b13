"""A flat list of what must be as it was, checked at every call."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from itertools import chain
from operator import attrgetter, is_, is_not, itemgetter, ne
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from fastmaml.engine.guards.attributes import own_dict

_MISSING = object()
_ANYTHING = object()
"""Stands for an entry of a container that is not looked at any more, as others still are."""
_GET = itemgetter.__call__
_MRO = attrgetter("__mro__")
PLAIN = frozenset({bool, int, str, bytes, type(None)})

Items = tuple[Mapping[str, Any], Callable[[Any], Any], tuple[str, ...], list[Any], str]
Whole = tuple[Mapping[Any, Any], list[Any], list[Any], str]
Row = tuple[Any, list[Any], str]
Read = tuple[Callable[[], Any], Any, str]
Place = tuple[Tensor, tuple[Any, ...], str]


class Changed(NamedTuple):
    """Something that changed.

    Attributes:
        label: what.
        forget: to be called for it not to be looked at again.
        tensors: gives a tree of other tensors that are there now, if they are all that changed.
    """

    label: str
    forget: Callable[[], None]
    tensors: Callable[[], Any] | None = None


@final
class Guards:
    """What something depends on, and what was seen there.

    Objects count by identity, and are kept alive so that no other one gets their address; numbers
    and strings by value. What is checked first is identity, for all entries of a container at once;
    the rest is for entries that are not the very same.

    One check of a call is enough: `hold` remembers the call for which everything was as it was.
    """

    def __init__(self) -> None:
        self._items: list[Items] = []
        self._absent: list[tuple[Any, frozenset[str], str]] = []
        self._wholes: list[Whole] = []
        self._rows: list[Row] = []
        self._reads: list[Read] = []
        self._places: list[Place] = []
        self._objects: list[Any] = []
        self._kinds: list[type] = []
        self._classes: list[type] = []
        self._bases: list[tuple[type, ...]] = []
        self._holders: list[Any] = []
        self._dicts: list[Any] = []
        self._empty: list[Any] = []
        self._sized: list[Any] = []
        self._sizes: list[int] = []
        self._entries = 0
        self._flat: tuple[list[Any], list[Any], list[Any]] | None = None
        self._held: Any = None

    def __len__(self) -> int:
        return self._entries

    def items(self, of: Mapping[str, Any], names: Iterable[str], label: str) -> None:
        """These entries of a dict, or that they are not there."""
        found = tuple(sorted(n for n in names if n in of))
        if missing := frozenset(names) - frozenset(found):
            self._absent.append((of.keys(), missing, label))
        if found:
            seen = [of[n] for n in found]
            get = itemgetter(*found) if len(found) > 1 else itemgetter(found[0], found[0])
            self._items.append((of, get, found, seen, label))
            self._flat = None
            self._entries += len(found)

    def whole(self, of: Mapping[Any, Any], label: str) -> None:
        """All keys and values of a dict."""
        self._wholes.append((of, list(of), list(of.values()), label))
        self._entries += len(of)

    def row(self, of: Any, label: str) -> None:
        """All entries of a sequence."""
        self._rows.append((of, list(of), label))
        self._entries += len(of)

    def read(self, function: Callable[[], Any], label: str) -> None:
        """What a function returns, by value."""
        self._reads.append((function, function(), label))
        self._entries += 1

    def place(self, x: Tensor, label: str) -> None:
        """Where a tensor's elements are, and whether it is trained; their values may change."""
        self._places.append((x, _place(x), label))
        self._entries += 1

    def kind(self, x: Any) -> None:
        """Of what class an object is, and in what dict it has its attributes."""
        self._objects.append(x)
        self._kinds.append(type(x))
        self.bases(type(x))
        if own_dict(x) is not None:
            self._holders.append(x)
            self._dicts.append(vars(x))

    def bases(self, kind: type) -> None:
        """Of what classes a class is made."""
        if not any(kind is one for one in self._classes):
            self._classes.append(kind)
            self._bases.append(kind.__mro__)

    def empty(self, of: Any) -> None:
        """That a dict has no entries."""
        self._empty.append(of)

    def size(self, of: Any) -> None:
        """How many entries a dict has."""
        self._sized.append(of)
        self._sizes.append(len(of))

    def hold(self, call: Any = None) -> bool:
        """Whether everything is as it was.

        Args:
            call: any object that stands for the call of the user's during which this is asked.
        """
        if call is not None and call is self._held:
            return True
        if self.changed() is not None:
            return False
        self._held = call
        return True

    def changed(self) -> str | None:
        """What is not as it was; None if everything is."""
        found = self._changed()
        return None if found is None else found.label

    def changed_beside_tensors(self) -> str | None:
        """The same; where other tensors are there now, that is not looked at any more."""
        while (found := self._changed()) is not None and found.tensors is not None:
            found.forget()
        return None if found is None else found.label

    def forget_changed(self) -> Changed | None:
        """What changed, which is not looked at any more from now on."""
        found = self._changed()
        if found is not None:
            found.forget()
        return found

    def _changed(self) -> Changed | None:
        if any(self._empty):
            one = next(x for x in self._empty if x)
            return Changed("a module's hooks", partial(_remove, self._empty, one))
        if not all(map(is_, map(type, self._objects), self._kinds)):
            return self._changed_kind(self._objects, self._kinds, type, "class")
        if not all(map(is_, map(_MRO, self._classes), self._bases)):
            return self._changed_kind(self._classes, self._bases, _MRO, "bases")
        if not all(map(is_, map(vars, self._holders), self._dicts)):
            return self._changed_kind(self._holders, self._dicts, vars, "__dict__")
        for absent in self._absent:
            if not absent[0].isdisjoint(absent[1]):
                name = sorted(absent[1].intersection(absent[0]))[0]
                return Changed(f"{absent[2]}{name}", partial(_remove, self._absent, absent))
        if list(map(len, self._sized)) != self._sizes:
            return self._changed_kind(self._sized, self._sizes, len, "size", ne)
        if not self._same_items():
            for i in range(len(self._items)):
                if found := self._changed_item(i):
                    return found
        return self._changed_containers() or self._changed_values()

    def _same_items(self) -> bool:
        """Whether all entries are the very same, in one go, since this is asked at every call."""
        if self._flat is None:
            seen = [x for *_, own, _ in self._items for x in (own * 2 if len(own) == 1 else own)]
            self._flat = [get for _, get, *_ in self._items], [of for of, *_ in self._items], seen
        getters, dicts, seen = self._flat
        try:
            return all(map(is_, chain.from_iterable(map(_GET, getters, dicts)), seen))
        except KeyError:
            return False

    def _changed_kind(
        self,
        objects: list[Any],
        seen: list[Any],
        look: Callable[[Any], Any],
        what: str,
        other: Callable[[Any, Any], bool] = is_not,
    ) -> Changed:
        pairs = zip(map(look, objects), seen, strict=True)
        i = next(i for i, (x, y) in enumerate(pairs) if other(x, y))

        def forget() -> None:
            del objects[i], seen[i]

        return Changed(f"the {what} of a {type(objects[i]).__name__}", forget)

    def _changed_item(self, i: int) -> Changed | None:
        """Which entry is another one; None where they are alike, and are then known as they are."""
        of, _, names, seen, label = self._items[i]
        found = [of.get(name, _MISSING) for name in names]
        for j, (name, x, y) in enumerate(zip(names, found, seen, strict=True)):
            if not same(x, y):
                forget = partial(self._forget_item, i, j)
                moved = _only_tensors(x) and _only_tensors(y)
                return Changed(f"{label}{name}", forget, partial(of.get, name) if moved else None)
        seen[:] = found
        self._flat = None
        return None

    def _forget_item(self, i: int, j: int) -> None:
        of, _, names, seen, label = self._items.pop(i)
        self._flat = None
        if rest := [n for n in names if n != names[j]]:
            kept = {n: seen[names.index(n)] for n in rest}
            self.items(of, rest, label)
            self._items[-1][3][:] = [kept[n] for n in self._items[-1][2]]

    def _changed_containers(self) -> Changed | None:
        for whole in self._wholes:
            of, keys, values, label = whole
            if len(of) != len(keys) or not all(map(is_, of.values(), values)):
                found = list(of.values())
                if not _alike(found, values):
                    if moved := _moved(of.values(), values):
                        return Changed(label, partial(_overlook, values, found), moved)
                    return Changed(label, partial(_remove, self._wholes, whole))
                _renew(values, found)
            if not all(map(is_, of, keys)) and not all(map(same, of, keys)):
                return Changed(label, partial(_remove, self._wholes, whole))
        for line in self._rows:
            row, values, label = line
            if len(row) != len(values) or not all(map(is_, row, values)):
                found = list(row)
                if not _alike(found, values):
                    if _moved(found, values):
                        return Changed(label, partial(_overlook, values, found), partial(list, row))
                    return Changed(label, partial(_remove, self._rows, line))
                _renew(values, found)
        return None

    def _changed_values(self) -> Changed | None:
        for read in self._reads:
            function, value, label = read
            found = function()
            if found is not value and not same(found, value):
                return Changed(label, partial(_remove, self._reads, read))
        for place in self._places:
            x, where, label = place
            if _place(x) != where:
                return Changed(label, partial(_remove, self._places, place))
        return None


def _place(x: Tensor) -> tuple[Any, ...]:
    if type(x) not in (Tensor, nn.Parameter):
        with torch._C.DisableTorchFunctionSubclass():
            return (*_place(x.as_subclass(Tensor)), len(vars(x)))
    return x.data_ptr(), x.shape, x.stride(), x.dtype, x.requires_grad, len(x.__dict__)


def _remove(entries: list[Any], one: Any) -> None:
    """By identity: entries hold tensors, which compare element by element."""
    del entries[next(i for i, x in enumerate(entries) if x is one)]


def _overlook(values: list[Any], found: list[Any]) -> None:
    """Expect anything in place of the entries that are other ones now."""
    values[:] = [y if same(x, y) else _ANYTHING for x, y in zip(found, values, strict=True)]


def _renew(values: list[Any], found: list[Any]) -> None:
    """Know the entries as they are, which are alike."""
    values[:] = [y if y is _ANYTHING else x for x, y in zip(found, values, strict=True)]


def _alike(found: list[Any], seen: list[Any]) -> bool:
    return len(found) == len(seen) and all(map(same, found, seen))


def _moved(now: Collection[Any], seen: list[Any]) -> Callable[[], Any] | None:
    """What gives the entries, if all that are other ones are tensors, and were."""
    pairs = zip(now, seen, strict=False)
    moved = len(now) == len(seen) and all(
        same(x, y) or (_only_tensors(x) and _only_tensors(y)) for x, y in pairs
    )
    return partial(_entries, now) if moved else None


def _entries(of: Collection[Any]) -> list[Any]:
    return list(of)


def _only_tensors(x: Any) -> bool:
    if isinstance(x, list | tuple):
        return all(map(_only_tensors, x))
    return all(map(_only_tensors, x.values())) if isinstance(x, dict) else isinstance(x, Tensor)


def same(x: Any, y: Any) -> bool:
    """Whether two values are the same object, or equal numbers, strings, or tuples of such."""
    if x is y or y is _ANYTHING:
        return True
    kind = type(x)
    if kind is not type(y):
        return False
    if kind in PLAIN:
        return bool(x == y)
    if kind is float:
        return struct.pack("d", x) == struct.pack("d", y)  # 0.0 is no -0.0, and nan is nan
    if kind is complex:
        return same(x.real, y.real) and same(x.imag, y.imag)
    if kind is tuple:
        return len(x) == len(y) and all(map(same, x, y))
    if kind is frozenset:  # {1} is not {True}
        return x == y and {(type(e), e) for e in x} == {(type(e), e) for e in y}
    return _of_values(kind) and bool(x == y)


def _of_values(kind: type) -> bool:
    """Whether what is compared of such objects is all that they are."""
    if kind.__module__ == "torch":
        return kind.__name__ in ("Size", "device", "dtype")
    if kind.__module__ == "numpy":
        return kind.__name__ not in ("ndarray", "matrix")
    return kind in (range, slice, bytearray)
