"""What a model runs inside of `torch.utils.checkpoint.checkpoint(..., use_reentrant=False)`.

PyTorch keeps nothing of such a region and runs it again when its derivative is wanted. By then the
model holds other parameters, the user's or those of later inner steps, and a vmap over tasks is
over. Inside a meta-step, and where a learner is called by hand, its hooks are therefore set aside:
a region gives what it would give without them. What is to run again in a meta-step is for
`step.layer_checkpoint` to say.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, NoReturn, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastmaml.engine.base import functorch

_MODULE = "torch.utils.checkpoint"
_hooks = torch._C._autograd._top_saved_tensors_default_hooks
_push = torch._C._autograd._push_saved_tensors_default_hooks
_pop = torch._C._autograd._pop_saved_tensors_default_hooks


def inside() -> bool:
    """Whether what runs now is part of a region."""
    top = _hooks(False)
    return top is not None and top[0].__module__ == _MODULE


@contextlib.contextmanager
def set_aside() -> Iterator[None]:
    """As if this were no part of a region, nor of one around that."""
    own = []
    while inside():
        own.append(_hooks(False))
        _pop()
        _disarm(own[-1][0])
    try:
        yield
    finally:
        for pack, unpack in reversed(own):
            _push(pack, unpack)


def _disarm(pack: Any) -> None:
    """Let the region raise where it would run again: something was kept that nobody saw."""
    held = dict(zip(pack.__code__.co_freevars, pack.__closure__ or (), strict=True))
    if "frame" not in held:
        _refuse()
    held["frame"].cell_contents.recompute_fn = _refuse


def _refuse(*_: Any) -> NoReturn:
    raise ValueError(
        "the model uses torch.utils.checkpoint around something that is differentiated without a "
        "call to PyTorch's functions (an autograd.Function of its own): it would run again without "
        "the adapted parameters. Put that into a module, whose derivative fastmaml sees to, or "
        "leave torch.utils.checkpoint away."
    )


def keeps_inputs(func: Any, args: Any) -> bool:
    """Whether a region begins so: until torch 2.11 by an autograd.Function, which vmap refuses."""
    return func is functorch.custom_function_call and args[0].__module__ == _MODULE


def kept_without_vmap(function: type[torch.autograd.Function]) -> Tensor:
    """What a region asks for a ``grad_fn``. It keeps no inputs, which it needs to run again alone.

    Args:
        function: which would keep them.
    """
    with functorch.temporarily_clear_interpreter_stack():
        found: Tensor = function.apply(torch.empty((0,), requires_grad=True), {})
    return found


def refuse_reentrant(func: Any, caller: FrameType) -> None:
    """Raise ValueError where a region with ``use_reentrant=True`` begins.

    Args:
        func: that a function mode sees.
        caller: that called it.
    """
    if func == _REQUIRES_GRAD and caller.f_globals.get("__name__") == _MODULE:
        raise ValueError(
            "the model uses torch.utils.checkpoint with use_reentrant=True, through which "
            "torch.autograd.grad cannot go, and no second derivative can: give "
            "use_reentrant=False."
        )


@final
class Regions(TorchFunctionMode):
    """Notes whether there are regions, and refuses those that no derivative goes through.

    Active above all other modes while a model runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func`."""
        refuse_reentrant(func, sys._getframe(1))
        self.seen = self.seen or inside()
        return func(*args, **(kwargs or {}))


_REQUIRES_GRAD = torch.Tensor.requires_grad.__get__  # type: ignore[attr-defined]
"""What `use_reentrant=True` asks of its inputs, and the other kind does not."""
