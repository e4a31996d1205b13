"""Classes, sub-modules, hooks, modes and settings of layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from properties.readers.base import Made, Reader, module
from properties.readers.code import reset, set_k


def _double(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: make().double()


def class_attribute() -> Made:
    class Reads(nn.Module):
        k = 1.0

        def forward(self, y: Tensor) -> Tensor:
            return y * self.k

    reads = Reads()
    return reads, [lambda v: setattr(Reads, "k", v), lambda v: setattr(reads, "k", v)]


def parent() -> Made:
    class Mixin:
        k = 1.0

        def by(self, y: Tensor) -> Tensor:
            return y * self.k

    class Parent(nn.Module, Mixin):
        def forward(self, y: Tensor) -> Tensor:
            return self.by(y)

    class Child(Parent):
        def forward(self, y: Tensor) -> Tensor:
            return super().forward(y) + 1

    return Child(), [
        lambda v: setattr(Mixin, "k", v),
        lambda v: setattr(Child, "k", v),
        lambda v: setattr(Mixin, "by", lambda self, y: y * v),
        lambda v: setattr(Parent, "forward", lambda self, y: y * v),
        lambda v: setattr(Child, "by", lambda self, y: y.sin() * v),
    ]


def class_of_class() -> Made:
    class Meta(type):
        k = 1.0

    class Config(metaclass=Meta):
        class Inner:
            k = 1.0

    class Reads(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            return y * Config.k * Config.Inner.k * len(type(self).__name__)

    return Reads(), [
        lambda v: setattr(Meta, "k", v),
        lambda v: setattr(Config.Inner, "k", v),
        lambda v: setattr(Reads, "__name__", "x" * int(2 * v)),
    ]


def a_property() -> Made:
    class Descriptor:
        def __get__(self, owner: Any, kind: Any = None) -> float:
            return owner._k * 2

    class Reads(nn.Module):
        d = Descriptor()

        def __init__(self) -> None:
            super().__init__()
            self._k = 1.0

        @property
        def k(self) -> float:
            return self._k

        def forward(self, y: Tensor) -> Tensor:
            return y * self.k * self.d

    reads = Reads()
    return reads, [
        lambda v: setattr(reads, "_k", v),
        lambda v: setattr(Reads, "k", property(lambda s: s._k * v)),
        lambda v: setattr(Descriptor, "__get__", lambda s, owner, kind=None: owner._k * v),
    ]


def dynamic_attribute() -> Made:
    store = {"k": 1.0}

    class Reads(nn.Module):
        def __getattr__(self, name: str) -> Any:
            return store[name] if name in store else super().__getattr__(name)

        def forward(self, y: Tensor) -> Tensor:
            return y * self.k

    return Reads(), [lambda v: store.__setitem__("k", v)]


def swapped_class() -> Made:
    class First(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            return y.tanh()

    class Second(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            return y.sin()

    reads = First()
    return reads, [
        lambda v: setattr(reads, "__class__", Second if v > 1 else First),
        lambda v: setattr(reads, "forward", lambda y: y * v),
        lambda v: reads.__dict__.pop("forward", None),
        lambda v: setattr(First, "forward", lambda self, y: y * v),
    ]


def mode() -> Made:
    class Reads(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            return y.sin() if self.training else y

    reads = Reads()
    return reads, [lambda v: reads.train(v > 1), lambda v: setattr(reads, "training", v <= 1)]


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.items = nn.ModuleList([nn.Linear(3, 3), nn.Tanh()])
        self.chosen = nn.ModuleDict({"a": nn.Tanh(), "b": nn.Sigmoid()})
        self.key = "a"

    def forward(self, y: Tensor) -> Tensor:
        for item in self.items:
            y = item(y)
        return self.chosen[self.key](y) * sum(1 for _ in self.children())


def _hook(m: nn.Module, v: float) -> None:
    m.register_forward_hook(lambda mod, args, out: out * v)


def _pre_hook(m: nn.Module, v: float) -> None:
    m.register_forward_pre_hook(lambda mod, args: (args[0] * v,))


def _unhook(m: nn.Module, v: float) -> None:
    m._forward_hooks.clear()
    m._forward_pre_hooks.clear()


def hook_reads() -> Made:
    import properties.readers.code as code

    reset()
    layer = nn.Linear(3, 3).double()
    layer.register_forward_hook(lambda mod, args, out: out * code.K)
    return layer, [set_k, lambda v: _hook(layer, v), lambda v: _unhook(layer, v)]


def _weight_norm(m: nn.Linear, v: float) -> None:
    if parametrize.is_parametrized(m):
        parametrize.remove_parametrizations(m, "weight")
    else:
        nn.utils.parametrizations.weight_norm(m)


def parametrized() -> Made:
    class Times(nn.Module):
        k = 1.0

        def forward(self, w: Tensor) -> Tensor:
            return w * self.k + w.t()

    layer = nn.Linear(3, 3).double()
    parametrize.register_parametrization(layer, "weight", Times())
    return layer, [
        lambda v: setattr(Times, "k", v),
        lambda v: setattr(layer.parametrizations.weight[0], "k", v),
    ]


def _put(name: str, value: Callable[[float], Any]) -> Callable[[nn.Module, float], None]:
    return lambda m, v: setattr(m, name, value(v))


def _no_affine(m: nn.BatchNorm1d, v: float) -> None:
    m.weight = m.bias = None


_float = float
STRUCTURE: dict[str, Reader] = {
    "class attribute": class_attribute,
    "parent": parent,
    "class of class": class_of_class,
    "property": a_property,
    "dynamic attribute": dynamic_attribute,
    "swapped class": swapped_class,
    "mode": mode,
    "hook reads": hook_reads,
    "parametrized": parametrized,
    "layers": module(
        _double(Layers),
        lambda m, v: m.items.append(nn.Sigmoid()),
        _put("key", lambda v: "ab"[v > 1]),
        lambda m, v: m.items.__setitem__(1, nn.ReLU() if v > 1 else nn.GELU()),
        lambda m, v: m.items.__setitem__(0, nn.Linear(3, 3).double()),
        lambda m, v: m.chosen.__setitem__("a", nn.Softplus(beta=v)),
        lambda m, v: m.add_module(f"extra{int(2 * v)}", nn.Identity()),
    ),
    "hooks": module(_double(lambda: nn.Linear(3, 3)), _hook, _pre_hook, _unhook, _weight_norm),
    "dropout": module(
        lambda: nn.Dropout(0.0), _put("p", lambda v: v / 4), lambda m, v: m.train(v > 1)
    ),
    "batch norm": module(
        _double(lambda: nn.BatchNorm1d(3)),
        _put("eps", _float),
        lambda m, v: m.train(v > 1),
        _no_affine,
        _put("momentum", lambda v: v / 4),
    ),
    "layer norm": module(
        _double(lambda: nn.LayerNorm(3)), _put("eps", _float), _put("bias", lambda v: None)
    ),
    "group norm": module(
        _double(lambda: nn.GroupNorm(3, 3)), _put("num_groups", lambda v: 3 if v > 1 else 1)
    ),
    "softplus": module(nn.Softplus, _put("beta", _float), _put("threshold", _float)),
    "leaky relu": module(
        nn.LeakyReLU, _put("negative_slope", _float), _put("inplace", lambda v: v > 1)
    ),
    "softmax": module(lambda: nn.Softmax(1), _put("dim", lambda v: int(v > 1))),
    "gelu": module(nn.GELU, _put("approximate", lambda v: "tanh" if v > 1 else "none")),
    "hardtanh": module(nn.Hardtanh, _put("max_val", _float)),
    "flatten": module(
        lambda: nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Flatten(1)),
        lambda m, v: m.append(nn.Tanh()),
        lambda m, v: m.insert(0, nn.Sigmoid()),
    ),
    "threshold": module(
        lambda: nn.Threshold(0.0, 0.0), _put("value", _float), _put("threshold", _float)
    ),
}


def _global_hook(v: float) -> Any:
    return torch.nn.modules.module.register_module_forward_hook(
        lambda mod, args, out: out * v if isinstance(mod, nn.Tanh) else None
    )


def global_hook() -> Made:
    """A hook on every module, taken off again by the change after."""
    handles: list[Any] = []

    def change(v: float) -> None:
        if handles:
            handles.pop().remove()
        else:
            handles.append(_global_hook(v))

    made = nn.Tanh()
    made.cleanup = lambda: [h.remove() for h in handles]
    return made, [change]


STRUCTURE["global hook"] = global_hook
