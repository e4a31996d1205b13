"""What functions read: globals, closures, classes, defaults, the environment."""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from properties.readers.base import Change, Made, Reader, attribute

K = 1.0
BOX = types.SimpleNamespace(k=1.0)
TABLE: dict[str, Any] = {"f": lambda y: y * K, "k": 1.0}
VARIABLE = "FASTMAML_TEST_READER"


def set_k(v: float) -> None:
    global K
    K = v


def _times(y: Tensor) -> Tensor:
    return y * K


def _deep(y: Tensor, depth: int = 7) -> Tensor:
    return _times(y) if depth == 0 else _deep(y, depth - 1)


def _default(y: Tensor, k: float = 1.0, *, plus: float = 0.0) -> Tensor:
    return y * k + plus


def _decorated(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(function)
    def inner(*args: Any) -> Tensor:
        return function(*args) * K

    return inner


@_decorated
def _wrapped(y: Tensor) -> Tensor:
    return y + 1


def _generated(y: Tensor) -> Iterator[Tensor]:
    for i in range(2):
        yield y * (K + i)


@contextlib.contextmanager
def _entered() -> Iterator[float]:
    yield K


class Helper:
    k = 1.0

    @staticmethod
    def static(y: Tensor) -> Tensor:
        return y * K

    @classmethod
    def of_class(cls, y: Tensor) -> Tensor:
        return y * cls.k

    @property
    def own(self) -> float:
        return K

    def method(self, y: Tensor) -> Tensor:
        return y * K


class Function(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * K

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.k = K

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.k

    @staticmethod
    def jvp(ctx: Any, t: Tensor) -> Tensor:
        return t * ctx.k

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor) -> Any:
        return x * K, dims[0]


def _lists(y: Tensor) -> Tensor:
    return sum([y * K for _ in range(2)])


def _inner_function(y: Tensor) -> Tensor:
    def inner() -> Tensor:
        return y * K

    return inner()


def _try(y: Tensor) -> Tensor:
    try:
        return y * TABLE["k"]
    except KeyError:
        return y.sin()


def _import(y: Tensor) -> Tensor:
    from properties.readers.code import BOX as BOX_AGAIN

    return y * BOX_AGAIN.k


def reset() -> None:
    """As at the beginning."""
    set_k(1.0)
    BOX.k = TABLE["k"] = Helper.k = 1.0
    TABLE["f"] = _times
    os.environ.pop(VARIABLE, None)


def reads(use: Callable[[Tensor], Tensor], *changes: Change) -> Reader:
    """A module that calls `use`; all of these globals are as at the beginning."""

    def reader() -> Made:
        reset()

        class Reads(nn.Module):
            def forward(self, y: Tensor) -> Tensor:
                return use(y)

        return Reads(), list(changes)

    return reader


def _set_item(v: float) -> None:
    TABLE["k"] = v


def _swap(v: float) -> None:
    TABLE["f"] = (lambda y: y.sin()) if v > 1 else (lambda y: y.cos())


GLOBALS: dict[str, Reader] = {
    "global": reads(_times, set_k),
    "global deep": reads(_deep, set_k),
    "globals()": reads(lambda y: y * globals()["K"], set_k),
    "eval": reads(lambda y: y * eval("K"), set_k),
    "module attribute": reads(lambda y: y * sys.modules[__name__].K, set_k),
    "global object": reads(lambda y: y * BOX.k, lambda v: setattr(BOX, "k", v)),
    "global imported": reads(_import, lambda v: setattr(BOX, "k", v)),
    "global dict": reads(lambda y: y * TABLE["k"], _set_item),
    "global missing": reads(_try, _set_item, lambda v: TABLE.pop("k", None)),
    "function in a dict": reads(lambda y: TABLE["f"](y), _swap, set_k),
    "decorated": reads(_wrapped, set_k),
    "generator": reads(lambda y: sum(_generated(y)), set_k),
    "comprehension": reads(_lists, set_k),
    "inner function": reads(_inner_function, set_k),
    "static method": reads(Helper.static, set_k),
    "class method": reads(Helper.of_class, lambda v: setattr(Helper, "k", v)),
    "helper property": reads(lambda y: y * Helper().own, set_k),
    "helper method": reads(lambda y: Helper().method(y), set_k),
    "autograd function": reads(Function.apply, set_k),
    "map": reads(lambda y: sum(map(_times, [y, y])), set_k),
    "sorted key": reads(lambda y: y * sorted([1.0, 2.0], key=lambda x: x * (K - 1.2))[0], set_k),
    "reduce": reads(lambda y: functools.reduce(lambda a, b: a + b * K, [y, y]), set_k),
    "partial": reads(functools.partial(_times), set_k),
    "attrgetter": reads(
        lambda y: y * operator.attrgetter("k")(BOX), lambda v: setattr(BOX, "k", v)
    ),
    "format": reads(
        lambda y: y * len(f"{BOX.k:.1f}" * int(2 * BOX.k)), lambda v: setattr(BOX, "k", v)
    ),
    "environment": reads(
        lambda y: y * float(os.environ.get(VARIABLE, 1)),
        lambda v: os.environ.__setitem__(VARIABLE, str(v)),
    ),
    "getenv": reads(
        lambda y: y * float(os.getenv(VARIABLE, "1")),
        lambda v: os.environ.__setitem__(VARIABLE, str(v)),
    ),
    "default argument": reads(_default, lambda v: setattr(_default, "__defaults__", (v,))),
    "keyword default": reads(_default, lambda v: _default.__kwdefaults__.__setitem__("plus", v)),
    "nested vmap": reads(lambda y: torch.vmap(lambda r: r * K)(y), set_k),
}


def _context(y: Tensor) -> Tensor:
    with _entered() as k:
        return y * k


GLOBALS["context manager"] = reads(_context, set_k)


def closure_cell() -> Made:
    k = 1.0

    def use(y: Tensor) -> Tensor:
        return y * k

    def change(v: float) -> None:
        nonlocal k
        k = v

    return reads(use, change)()


def function_attribute() -> Made:
    def use(y: Tensor) -> Tensor:
        return y * use.k

    use.k = 1.0
    return reads(use, lambda v: setattr(use, "k", v))()


def function_code() -> Made:
    def use(y: Tensor) -> Tensor:
        return y * 2

    def change(v: float) -> None:
        use.__code__ = (lambda y: y.sin()).__code__ if v > 1 else (lambda y: y.cos()).__code__

    return reads(use, change)()


def cached_table() -> Made:
    table = {"k": 1.0}

    def look(name: str) -> float:
        return table[name]

    def use(y: Tensor) -> Tensor:
        return y * look("k") * sum(look(n) for n in table)

    return reads(use, lambda v: table.__setitem__("k", v), lambda v: table.__setitem__("z", v))()


def bound_method() -> Made:
    helper = types.SimpleNamespace(k=1.0)
    use = types.MethodType(lambda self, y: y * self.k, helper)
    return reads(use, lambda v: setattr(helper, "k", v))()


def partial_keywords() -> Made:
    use = functools.partial(torch.mul, other=1.0)
    return reads(use, lambda v: use.keywords.__setitem__("other", v))()


def teacher() -> Made:
    other = nn.Linear(3, 3).double().requires_grad_(False)

    def swap(v: float) -> None:
        other.weight = nn.Parameter(other.weight * v, requires_grad=False)

    def load(v: float) -> None:
        state = {name: x * v for name, x in other.state_dict().items()}
        other.load_state_dict(state, assign=True)
        other.requires_grad_(False)

    return reads(lambda y: y + other(y), swap, load, lambda v: other.weight.mul_(v))()


def hidden_in_dict() -> Made:
    holder = {"net": nn.Sequential(nn.Linear(3, 3).double().requires_grad_(False), nn.Tanh())}

    def swap(v: float) -> None:
        holder["net"][1] = nn.Sigmoid() if v > 1 else nn.Hardtanh()

    return reads(lambda y: y + holder["net"](y), swap, lambda v: holder["net"][0].bias.fill_(v))()


def file() -> Made:
    import tempfile
    from pathlib import Path

    path = Path(tempfile.mkdtemp()) / "k"
    path.write_text("1.0")
    return reads(lambda y: y * float(path.read_text()), lambda v: path.write_text(str(v)))()


CODE: dict[str, Reader] = {
    **GLOBALS,
    "closure cell": closure_cell,
    "function attribute": function_attribute,
    "function code": function_code,
    "function chain": cached_table,
    "bound method": bound_method,
    "partial keywords": partial_keywords,
    "teacher": teacher,
    "hidden in a dict": hidden_in_dict,
    "file": file,
    "partial attribute": attribute(
        lambda: functools.partial(torch.mul, other=1.0),
        lambda f, y: f(y),
        lambda m, v: m.own.keywords.__setitem__("other", v),
    ),
}
