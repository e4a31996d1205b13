"""In-place calls of a model (`nn.ReLU(inplace=True)`, ``x += y``), run as what they compute.

A call that overwrites an activation hides from everything else what it is: it cannot be fused with
what comes before it, and inner steps cannot share it. Where nobody else sees that memory, the
result is computed beside it and becomes what the tensor is. Where anybody might (a view, something
kept for a derivative, a tensor from outside), the call runs as it stands.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastmaml.engine.base import functorch

_WITH_ARGUMENT = (
    F.relu,
    F.relu6,
    F.leaky_relu,
    F.elu,
    F.selu,
    F.celu,
    F.silu,
    F.mish,
    F.hardtanh,
    F.hardswish,
    F.hardsigmoid,
    F.threshold,
)
_DRAWS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
"""They must not run twice, and so run as they stand where a derivative of theirs keeps the target:
without vmap it does."""

_PLACES = {
    f: list(inspect.signature(f).parameters).index("inplace") for f in (*_WITH_ARGUMENT, *_DRAWS)
}

_NAMES = (
    *("add", "sub", "mul", "div", "pow", "addcmul", "addcdiv", "lerp", "clamp", "clip"),
    *("clamp_min", "clamp_max", "neg", "abs", "square", "sqrt", "rsqrt", "reciprocal", "exp"),
    *("expm1", "log", "log1p", "sin", "cos", "tanh", "sigmoid", "relu", "erf", "masked_fill"),
)
_DUNDERS = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "ipow": "pow"}


def _methods() -> dict[Any, Callable[..., Any]]:
    """For each function that ends in an underscore, the one that does not."""
    found: dict[Any, Callable[..., Any]] = {F.relu_: F.relu}
    for name in _NAMES:
        for where in (torch, Tensor):
            plain, over = getattr(where, name, None), getattr(where, f"{name}_", None)
            if plain is not None and over is not None:
                found[over] = plain
    found |= {getattr(Tensor, f"__{over}__"): getattr(Tensor, n) for over, n in _DUNDERS.items()}
    return found


_METHODS = _methods()


class _Call(NamedTuple):
    """What computes the result of an in-place call, and the tensor that is to be it."""

    target: Any
    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]


class Follower(Protocol):
    """Whoever knows tensors by their identity."""

    def may_become(self, x: Tensor) -> bool:
        """Whether another tensor's numbers, memory and graph can become this one's."""

    def is_again(self, x: Tensor) -> bool:
        """Whether another pass has the same memory, and nothing else does in this one."""

    def exchanged(self, x: Tensor, y: Tensor) -> None:
        """Follow: each of the two is about to be what the other one was."""


@final
class InPlace(TorchFunctionMode):
    """Active while the model runs, above all other modes.

    Args:
        followers: who has to follow.
    """

    def __init__(self, followers: Sequence[Follower]) -> None:
        super().__init__()
        self.followers = followers
        self.level = functorch.maybe_current_level()
        self.made: set[int] = set()
        """Of tensors of this pass; no other one gets the id of one that is gone meanwhile."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func`, or what it computes."""
        kwargs = kwargs or {}
        call = _out_of_place(func, args, kwargs)
        if call is None or (self.level is None and func in _DRAWS) or not self._own(call.target):
            return self._noted(func(*args, **kwargs), func, args, kwargs)
        result = call.function(*call.args, **call.kwargs)
        if result is call.target:  # dropout that drops nothing
            return result
        with torch._C.DisableTorchFunction():  # other modes need not hear of what follows
            # Not where a derivative of the result keeps the target, or PyTorch raises below.
            if isinstance(result, Tensor) and _kind(result) == _kind(call.target):
                for follower in self.followers:
                    follower.exchanged(call.target, result)
                torch.utils.swap_tensors(call.target, result)
                return call.target
        return func(*args, **kwargs)

    def _own(self, x: Any) -> bool:
        """Whether it is a tensor of this pass, whose memory nothing else looks at.

        Nor one that keeps its graph while it is written to, as all do under `torch.no_grad`, or
        attributes of the user's.
        """
        if type(x) is not Tensor or id(x) not in self.made or weakref.getweakrefcount(x):
            return False
        if functorch.maybe_current_level() != self.level or not torch.is_grad_enabled():
            return False
        if x.__dict__ or not (_alone(x) or any(f.is_again(x) for f in self.followers)):
            return False
        return all(follower.may_become(x) for follower in self.followers)

    def _noted(self, result: Any, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        # An attribute was there before, and so was what is written to.
        if getattr(func, "__name__", "") == "__get__" or "out" in kwargs:
            return result
        for x in result if isinstance(result, tuple | list) else (result,):
            if type(x) is Tensor and not any(x is y for y in args):
                self.made.add(id(x))
        return result


def _out_of_place(func: Any, args: Any, kwargs: Mapping[str, Any]) -> _Call | None:
    """What computes the result of an in-place call elsewhere; None for any other call."""
    plain = _METHODS.get(func)
    if plain is not None:
        return _Call(args[0], plain, args, kwargs) if args else None
    place = _PLACES.get(func)
    if place is None or not args:
        return None
    if len(args) > place:
        if args[place] is True:
            return _Call(args[0], func, (*args[:place], False, *args[place + 1 :]), kwargs)
    elif kwargs.get("inplace") is True:
        return _Call(args[0], func, args, {**kwargs, "inplace": False})
    return None


def _kind(x: Any) -> tuple[Any, ...]:
    """What must be alike for one to become the other."""
    kind = type(x), x.shape, x.dtype, x.device, x.layout
    return *kind, x._use_count(), weakref.getweakrefcount(x)


def _alone(x: Any) -> bool:
    """Whether this object is all there is of its memory, but for the result that it is a view of.

    Anything else would go on seeing what was there before: another view of the same memory, or
    what autograd keeps for a derivative.
    """
    with torch._C.DisableTorchFunction():
        expected = 1
        while functorch.is_functorch_wrapped_tensor(x):
            if x._use_count() != expected:
                return False
            x, expected = functorch.get_unwrapped(x), 2  # the wrapper holds it, and the object here
        if x._use_count() != expected or x.layout is not torch.strided:
            return False
        if x.requires_grad and x.is_leaf:  # which PyTorch refuses to write to
            return False
        of_view = 0
        if x._is_view():
            of_view = 1
            if any(n > least for n, least in zip(_holders(x), _ONLY_ITS_VIEW, strict=True)):
                return False
        # Besides the two, the object that stands for the memory here.
        return bool(torch._C._storage_Use_Count(x.untyped_storage()._cdata) == 2 + of_view)


def _holders(view: Any) -> tuple[int, int]:
    """How many hold what this is a view of, in C++ and in Python."""
    base = view._base
    return base._use_count(), sys.getrefcount(base)


_ONLY_ITS_VIEW = _holders(torch.zeros(2, device="cpu")[:1])
"""The same where nobody else does; how Python's share is counted depends on PyTorch."""
