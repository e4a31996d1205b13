"""Numbers, containers and configuration objects that a module holds."""

from __future__ import annotations

import array
import collections
import enum
import types
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from properties.readers.base import Made, Reader, attribute, replaced


class DotDict(dict):
    __getattr__ = dict.get
    __setattr__ = dict.__setitem__


class OwnList(list):
    pass


class Slots:
    __slots__ = ("k",)

    def __init__(self) -> None:
        self.k = 1.0


@dataclass
class Config:
    k: float = 1.0
    inner: dict[str, Any] = field(default_factory=lambda: {"k": [1.0]})


@dataclass(slots=True)
class SlotConfig:
    k: float = 1.0


@dataclass(frozen=True)
class Frozen:
    k: float = 1.0


class Pair(NamedTuple):
    k: float
    rest: list[float]


class Mode(enum.Enum):
    A = 1.0
    B = 2.5


class Plain:
    k = 1.0

    def __len__(self) -> int:
        return int(self.k * 2)

    def __bool__(self) -> bool:
        return self.k > 1

    def __getitem__(self, i: int) -> float:
        return self.k + i

    def __contains__(self, x: float) -> bool:
        return x <= self.k

    def __iter__(self) -> Any:
        return iter([self.k, self.k])

    def __call__(self, y: Tensor) -> Tensor:
        return y * self.k

    def __float__(self) -> float:
        return float(self.k)

    def __eq__(self, other: object) -> bool:
        return self.k == other

    def __hash__(self) -> int:
        return hash(self.k)


def _deep() -> Any:
    space = types.SimpleNamespace
    return space(a=space(b={"c": [space(d=space(e=(space(k=1.0),)))]}))


def _dataclass_extra() -> Config:
    config = Config()
    config.extra = 1.0  # type: ignore[attr-defined]
    return config


def _mapping() -> Any:
    under = {"k": 1.0}
    proxy = types.MappingProxyType(under)
    return types.SimpleNamespace(proxy=proxy, under=under)


def _item(key: Any) -> Any:
    return lambda m, v: m.own.__setitem__(key, v)


def _attr(name: str) -> Any:
    return lambda m, v: setattr(m.own, name, v)


def _k(own: Any, y: Tensor) -> Tensor:
    return y * own.k


def _at(key: Any) -> Any:
    return lambda own, y: y * own[key]


def _whole(v: float) -> int:
    return int(2 * v)


SIMPLE: dict[str, Reader] = {
    "float": attribute(lambda: 1.0, lambda k, y: y * k, replaced(lambda v: v)),
    "int": attribute(lambda: 1, lambda k, y: y * k, replaced(_whole)),
    "bool branch": attribute(
        lambda: False, lambda k, y: y.sin() if k else y, replaced(lambda v: v > 1)
    ),
    "none branch": attribute(
        lambda: None,
        lambda k, y: y if k is None else y * k,
        replaced(lambda v: v),
        replaced(lambda v: None),
    ),
    "string": attribute(
        lambda: "tanh", lambda k, y: getattr(y, k)(), replaced(lambda v: "sin" if v > 1 else "cos")
    ),
    "enum": attribute(
        lambda: Mode.A, lambda k, y: y * k.value, replaced(lambda v: Mode.B if v > 1 else Mode.A)
    ),
    "complex number": attribute(lambda: 1 + 0j, lambda k, y: y * k.real, replaced(complex)),
    "range": attribute(
        lambda: range(1), lambda k, y: y * (1 + len(k)), replaced(lambda v: range(_whole(v)))
    ),
    "slice": attribute(
        lambda: slice(0, 1), lambda k, y: y + y[:, k].sum(), replaced(lambda v: slice(0, _whole(v)))
    ),
    "tuple": attribute(lambda: (1.0, 2.0), _at(0), replaced(lambda v: (v, 2.0))),
    "bytes": attribute(lambda: b"\x01", _at(0), replaced(lambda v: bytes([_whole(v)]))),
    "numpy scalar": attribute(
        lambda: np.float64(1), lambda k, y: y * float(k), replaced(np.float64)
    ),
    "frozen dataclass": attribute(Frozen, _k, replaced(Frozen)),
    "frozenset": attribute(
        lambda: frozenset([1.0]), lambda k, y: y * sum(k), replaced(lambda v: frozenset([v]))
    ),
}
CONTAINERS: dict[str, Reader] = {
    "dict": attribute(lambda: {"k": 1.0}, _at("k"), _item("k"), replaced(lambda v: {"k": v})),
    "dict.get": attribute(
        dict, lambda k, y: y * k.get("k", 1.0), _item("k"), lambda m, v: m.own.clear()
    ),
    "dict items": attribute(
        lambda: {"a": 1.0}, lambda k, y: y * sum(v for _, v in k.items()), _item("b"), _item("a")
    ),
    "dict membership": attribute(dict, lambda k, y: y.sin() if "k" in k else y, _item("k")),
    "ordered dict": attribute(lambda: collections.OrderedDict(k=1.0), _at("k"), _item("k")),
    "ordered dict order": attribute(
        lambda: collections.OrderedDict(a=1.0, b=2.0),
        lambda k, y: y * next(iter(k.values())),
        lambda m, v: m.own.move_to_end("a" if v > 1 else "b"),
    ),
    "default dict": attribute(lambda: collections.defaultdict(float, k=1.0), _at("k"), _item("k")),
    "user dict": attribute(lambda: collections.UserDict(k=1.0), _at("k"), _item("k")),
    "chain map": attribute(lambda: collections.ChainMap({}, {"k": 1.0}), _at("k"), _item("k")),
    "counter": attribute(
        lambda: collections.Counter(k=1), _at("k"), lambda m, v: m.own.update(k=2)
    ),
    "dot dict": attribute(lambda: DotDict(k=1.0), _k, _item("k"), _attr("k")),
    "list": attribute(lambda: [1.0], _at(0), _item(0), lambda m, v: m.own.insert(0, v)),
    "list length": attribute(lambda: [1.0], lambda k, y: y * len(k), lambda m, v: m.own.append(v)),
    "list loop": attribute(
        lambda: [1.0], lambda k, y: y * sum(x for x in k), lambda m, v: m.own.append(v)
    ),
    "own list": attribute(lambda: OwnList([1.0]), _at(0), _item(0)),
    "user list": attribute(
        lambda: collections.UserList([1.0]), _at(-1), lambda m, v: m.own.append(v)
    ),
    "list in tuple": attribute(
        lambda: ([1.0],), lambda k, y: y * k[0][0], lambda m, v: m.own[0].__setitem__(0, v)
    ),
    "named tuple": attribute(
        lambda: Pair(1.0, [1.0]),
        lambda k, y: y * k.k * k.rest[0],
        lambda m, v: m.own.rest.__setitem__(0, v),
    ),
    "set": attribute(lambda: {1.0}, lambda k, y: y * max(k), lambda m, v: m.own.add(v)),
    "deque": attribute(lambda: collections.deque([1.0]), _at(0), lambda m, v: m.own.appendleft(v)),
    "bytearray": attribute(lambda: bytearray(b"\x01"), _at(0), lambda m, v: _item(0)(m, _whole(v))),
    "array": attribute(lambda: array.array("d", [1.0]), _at(0), _item(0)),
    "mapping proxy": attribute(
        _mapping, lambda k, y: y * k.proxy["k"], lambda m, v: m.own.under.__setitem__("k", v)
    ),
    "numpy array": attribute(lambda: np.ones(2), lambda k, y: y * float(k[0]), _item(0)),
    "numpy sum": attribute(lambda: np.ones(2), lambda k, y: y * k.sum(), _item(1)),
    "numpy to tensor": attribute(lambda: np.ones(3), lambda k, y: y * torch.tensor(k), _item(1)),
    "numpy shared": attribute(lambda: np.ones(3), lambda k, y: y * torch.from_numpy(k), _item(1)),
    "numpy view": attribute(
        lambda: np.ones((2, 3))[1],
        lambda k, y: y * torch.as_tensor(k),
        lambda m, v: m.own.base.__setitem__((1, 0), v),
    ),
    "numpy objects": attribute(lambda: np.array([1.0, None]), lambda k, y: y * k[0], _item(0)),
}
OBJECTS: dict[str, Reader] = {
    "namespace": attribute(lambda: types.SimpleNamespace(k=1.0), _k, _attr("k")),
    "deep": attribute(
        _deep,
        lambda c, y: y * c.a.b["c"][0].d.e[0].k,
        lambda m, v: setattr(m.own.a.b["c"][0].d.e[0], "k", v),
        lambda m, v: m.own.a.b.__setitem__("c", _deep().a.b["c"]),
    ),
    "slots": attribute(Slots, _k, _attr("k")),
    "dataclass": attribute(Config, _k, _attr("k")),
    "dataclass inside": attribute(
        Config, lambda c, y: y * c.inner["k"][0], lambda m, v: m.own.inner["k"].__setitem__(0, v)
    ),
    "dataclass slots": attribute(SlotConfig, _k, _attr("k")),
    "dataclass no field": attribute(_dataclass_extra, lambda c, y: y * c.extra, _attr("extra")),
    "object": attribute(Plain, _k, _attr("k")),
    "object called": attribute(Plain, lambda c, y: c(y), _attr("k")),
    "object length": attribute(Plain, lambda c, y: y * len(c), _attr("k")),
    "object truth": attribute(Plain, lambda c, y: y.sin() if c else y, _attr("k")),
    "object item": attribute(Plain, lambda c, y: y * c[1], _attr("k")),
    "object contains": attribute(Plain, lambda c, y: y.sin() if 1.5 in c else y, _attr("k")),
    "object iterated": attribute(Plain, lambda c, y: y * sum(c), _attr("k")),
    "object as number": attribute(Plain, lambda c, y: y * float(c), _attr("k")),
    "object equality": attribute(Plain, lambda c, y: y.sin() if c == 1.5 else y, _attr("k")),
    "module object": attribute(
        lambda: types.ModuleType("settings"), lambda c, y: y * getattr(c, "k", 1.0), _attr("k")
    ),
    "optimizer": attribute(
        lambda: torch.optim.SGD([torch.zeros(1)], lr=1.0),
        lambda c, y: y * c.param_groups[0]["lr"],
        lambda m, v: m.own.param_groups[0].__setitem__("lr", v),
    ),
    "vars": attribute(
        lambda: types.SimpleNamespace(k=1.0), lambda c, y: y * vars(c)["k"], _attr("k")
    ),
    "getattr": attribute(Plain, lambda c, y: y * getattr(c, "".join(["k"])), _attr("k")),
    "hasattr": attribute(Plain, lambda c, y: y.sin() if hasattr(c, "extra") else y, _attr("extra")),
    "sorted dict": attribute(lambda: {"a": 1.0}, lambda c, y: y * c[sorted(c)[-1]], _item("b")),
}


def address_reuse() -> Made:
    """A container that is dropped, and another one that gets its address."""

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = {1.0}

        def forward(self, y: Tensor) -> Tensor:
            return y * max(self.own)

    reads = Reads()

    def change(v: float) -> None:
        address = id(reads.own)
        for _ in range(200):
            reads.own = None
            reads.own = {v}
            if id(reads.own) == address:
                return

    return reads, [change]


ATTRIBUTES: dict[str, Reader] = {**SIMPLE, **CONTAINERS, **OBJECTS, "address reuse": address_reuse}
