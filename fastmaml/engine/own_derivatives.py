"""Derivatives that a model or a loss takes by itself, and gradients that it looks at or changes.

For a task that runs alone PyTorch's autograd does all of this. Where a transform is active it does
not, and is not always heard: under vmap a tensor of one task has no graph, as the graph belongs to
the tensor of all tasks, and says that it requires no gradient; forward over reverse differentiates
through `torch.no_grad` and past hooks. A `TorchFunctionMode` answers for the task where that can be
answered, and raises where not: tasks then run one at a time, or the method is refused.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C import _functorch as functorch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.hooks import RemovableHandle

from fastmaml.rules.base import Tensors


class NeedsGraphError(RuntimeError):
    """A derivative was taken of, or by, a tensor that requires no gradient in this pass."""


class OwnDerivatives(TorchFunctionMode):
    """Active while a user's code runs on one task, or under vmap on all of them.

    Args:
        model: whose parameters must not be used past the meta-step.
        batched: whether vmap shows the code one task.
        shared: the parameters that do not adapt, as the code sees them.
        native: whether layers run as ops that are not PyTorch's.
    """

    def __init__(self, model: nn.Module, batched: bool, shared: Tensors, native: bool) -> None:
        super().__init__()
        self.model, self.batched, self.shared, self.native = model, batched, shared, native
        self.level = functorch.maybe_current_level()
        self.forwards = forward_ad._current_level >= 0
        self.refused: Exception | None = None
        self.own: list[Tensor] = []  # parameters that were used themselves
        self.handlers = {**_ALWAYS, **(_FORWARDS if self.forwards else {})}
        self.handlers |= _BATCHED if batched else {}
        if self.forwards:
            _refuse_module_hooks(self)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func`, or what is right for it here."""
        kwargs = kwargs or {}
        handler = self.handlers.get(func)
        if handler is not None:
            return handler(self, func, *args, **kwargs)
        if self.forwards and self.off():
            return _constant(func, args, kwargs)
        result = func(*args, **kwargs)
        for x in args:
            if type(x) is not Tensor and isinstance(x, nn.Parameter | tuple | list):
                self._note_own(x, result)
        return result

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Raise what was refused inside, also where the user's code caught it."""
        super().__exit__(kind, error, trace)
        if self.refused is not None and error is None:
            raise self.refused
        if self.own and error is None:
            self._check_own()
        if self.forwards and isinstance(error, RuntimeError):
            for words, what in _TORCH_SAYS.items():
                if words in str(error):
                    self.not_forwards(what)

    def below(self, x: Tensor) -> Tensor:
        """The tensor of all tasks that this one is a share of; without vmap the tensor itself."""
        batched = self.batched and functorch.is_batchedtensor(x)
        mine = batched and functorch.maybe_get_level(x) == self.level
        return functorch.get_unwrapped(x) if mine else x

    def off(self) -> bool:
        """Whether gradients are, here or where a transform of the code's own was entered."""
        if not torch.is_grad_enabled():
            return True
        if functorch.maybe_current_level() == self.level:
            return False
        return any(
            i.level() > self.level
            and i.key() == functorch.TransformType.Grad
            and not functorch.CGradInterpreterPtr(i).prevGradMode()
            for i in functorch.get_interpreter_stack() or ()
        )

    def refuse(self, error: Exception) -> Any:
        """Raise it, and once more at the end."""
        self.refused = error
        raise error

    def alone(self, what: str) -> Any:
        """Refuse what needs a graph of each task's own."""
        return self.refuse(
            RuntimeError(f"it {what}, for which each task needs an autograd graph of its own")
        )

    def check_graph(self, what: str, given: Any) -> None:
        """Refuse a derivative through these tensors, or ask for a pass with all of their graph."""
        tensors = [x for x in tree_leaves(given) if isinstance(x, Tensor)]
        if any(self.below(x) is not x for x in tensors):
            self.alone(f"calls {what}")
        if not all(x.requires_grad for x in tensors):
            self.refuse(
                NeedsGraphError(f"{what} was called for a tensor that requires no gradient")
            )

    def hooked(self, what: str) -> None:
        """Refuse a hook, where it would see another gradient than in PyTorch.

        A second derivative passes a hook on an activation where that is what PyTorch's layer keeps
        for its derivative; another op may keep something else.
        """
        if self.batched:
            self.alone(what)
        if self.native:
            self.refuse(RuntimeError(f"it {what}, which only PyTorch's own layers go through"))

    def not_forwards(self, what: str) -> Any:
        """Refuse what forward over reverse differentiates wrongly, or not at all."""
        return self.refuse(
            ValueError(
                f"the model or the loss {what}, through which MixedMode cannot differentiate: use "
                "gradient=Unrolled() or Checkpointed(), which can."
            )
        )

    def _note_own(self, given: Any, result: Any) -> None:
        """Note a parameter that was given itself, if the result would be learned through it."""
        own = [x for x in tree_leaves(given) if isinstance(x, nn.Parameter) and x.requires_grad]
        if own and any(_needs_gradient(x) for x in tree_leaves(result)):
            self.own += own

    def _check_own(self) -> None:
        """Refuse it, if it is the model's; only when the model holds its own parameters again."""
        for name, p in self.model.named_parameters():
            if any(p is x for x in self.own):
                raise ValueError(
                    f"the loss, or a function that the model holds, uses the parameter {name!r} "
                    "itself, which stays as it is while a task adapts its own copy: it would count "
                    "as a constant. Compute what needs it in forward(), from the module that holds "
                    "it, and return it beside the output; or detach() it, if a constant is meant."
                )


def _needs_gradient(x: Any) -> bool:
    """Whether a tensor does anywhere: one that is wrapped does not tell of what it wraps."""
    while isinstance(x, Tensor):
        if x.requires_grad:
            return True
        if not functorch.is_functorch_wrapped_tensor(x):
            return False
        x = functorch.get_unwrapped(x)
    return False


# ---------------------------------------------------------------------------------- without vmap


def _register_hook(mode: OwnDerivatives, func: Any, input: Tensor, hook: Any) -> Any:
    """A hook is never called where nothing requires a gradient, as when a model is evaluated."""
    if not mode.below(input).requires_grad:
        return RemovableHandle(OrderedDict())
    if mode.forwards:
        mode.not_forwards("registers a hook on a tensor (register_hook)")
    mode.hooked("registers a hook on a tensor (register_hook)")
    return func(input, hook)


def _grad_fn(mode: OwnDerivatives, func: Any, input: Tensor, *_: Any) -> Any:
    """A node of the graph, on which hooks can be registered too."""
    found = mode.below(input).grad_fn
    if found is not None:
        if mode.forwards:
            mode.not_forwards("asks for the grad_fn of a tensor")
        mode.hooked("asks for the grad_fn of a tensor")
    return found


def _retain_grad(mode: OwnDerivatives, func: Any, input: Tensor) -> None:
    if mode.forwards or not mode.below(input).requires_grad:
        return  # nothing would come
    if mode.batched:
        mode.alone("calls retain_grad()")
    func(input)


def _grad(
    mode: OwnDerivatives, func: Any, outputs: Any, inputs: Any, *args: Any, **kwargs: Any
) -> Any:
    """`torch.autograd.grad`, of parameters that may be constants to this pass."""
    for name, p in mode.shared.items():
        if any(x is p for x in tree_leaves(inputs)):
            mode.refuse(
                ValueError(
                    f"torch.autograd.grad() is called for the parameter {name!r}, which does not "
                    "adapt: adapted parameters depend on it too, so that a loop's result would "
                    "depend on how the loop is differentiated. Take the derivative with "
                    "torch.func.grad, or by a detached copy of the parameter."
                )
            )
    mode.check_graph("torch.autograd.grad()", (outputs, inputs))
    found = func(outputs, inputs, *args, **kwargs)
    create_graph = kwargs.get("create_graph", args[2] if len(args) > 2 else False)
    if mode.forwards and (mode.off() or not create_graph):  # constants, to forward mode too
        return tree_map_only(Tensor, torch.detach, found)
    return found


def _backward(mode: OwnDerivatives, func: Any, *args: Any, **kwargs: Any) -> Any:
    if mode.forwards:
        mode.not_forwards("calls backward()")
    mode.check_graph("backward()", (args[0] if args else kwargs.get("tensors"),))
    return func(*args, **kwargs)


def _chunked_loss(
    mode: OwnDerivatives, func: Any, *args: Any, options: Any = None, **kwargs: Any
) -> Any:
    """`F.linear_cross_entropy` in chunks has wrong second derivatives, and none under vmap."""
    if options is not None:
        mode.refuse(
            ValueError(
                "F.linear_cross_entropy(options=...), or its module, takes its gradient while it "
                "runs forward, which has no second derivative: leave options out, which gives the "
                "same loss."
            )
        )
    return func(*args, **kwargs)


_ALWAYS: dict[Any, Callable[..., Any]] = {
    Tensor.register_hook: _register_hook,
    Tensor.retain_grad: _retain_grad,
    Tensor.grad_fn.__get__: _grad_fn,  # type: ignore[attr-defined]
    Tensor.backward: _backward,
    torch.autograd.backward: _backward,
    torch.autograd.grad: _grad,
}
if hasattr(F, "linear_cross_entropy"):  # from torch 2.13
    _ALWAYS[F.linear_cross_entropy] = _chunked_loss


# ---------------------------------------------------------------------------- forward over reverse


_TORCH_SAYS = {
    "Nested forward mode AD is not supported": "uses forward mode itself (torch.func.jvp, jacfwd, "
    "hessian, ...)",
    "it must override the setup_context staticmethod": "uses a torch.autograd.Function without "
    "setup_context and jvp",
}
"""What its own errors mean here."""


def _constant(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Where gradients are off results are constants, which forward mode must be told."""
    with forward_ad._set_fwd_grad_enabled(False):
        return func(*args, **kwargs)


def _data(mode: OwnDerivatives, func: Any, input: Tensor) -> Tensor:
    found: Tensor = func(input)
    return found.detach()


def _mark_forwards(
    mode: OwnDerivatives, func: Any, input: Tensor, requires_grad: bool = True
) -> Any:
    """`requires_grad_`, on the level at which MixedMode differentiates."""
    if functorch.get_inplace_requires_grad_allowed():  # a transform of torch.func's own
        return func(input, requires_grad)
    if input.requires_grad != requires_grad and functorch.maybe_get_level(input) != mode.level:
        mode.not_forwards("marks an input with requires_grad_()")
    with _marking():
        return func(input, requires_grad)


def _refuse_module_hooks(mode: OwnDerivatives) -> None:
    """They may change gradients, and torch refuses them here in words that do not say so."""
    found = nn.modules.module
    anywhere = found._global_backward_hooks or found._global_backward_pre_hooks
    if anywhere or any(m._backward_hooks or m._backward_pre_hooks for m in mode.model.modules()):
        mode.not_forwards("has a module with a backward hook")


class _marking:  # noqa: N801  # a context manager
    """Lets `requires_grad_` through, as torch.func does for its own transforms."""

    def __enter__(self) -> None:
        self.before = functorch.get_inplace_requires_grad_allowed()
        functorch.set_inplace_requires_grad_allowed(True)

    def __exit__(self, *_: object) -> None:
        functorch.set_inplace_requires_grad_allowed(self.before)


_FORWARDS: dict[Any, Callable[..., Any]] = {
    Tensor.requires_grad_: _mark_forwards,
    Tensor.requires_grad.__set__: _mark_forwards,  # type: ignore[attr-defined]
    Tensor.data.__get__: _data,  # type: ignore[attr-defined]
}


# ------------------------------------------------------------------------------------- under vmap


_OBSERVERS = {"torch.utils.module_tracker", "torch.distributed._tools.mod_tracker"}
"""Modules of torch that would hook into backward passes only to note when they happen."""


def _requires_grad(mode: OwnDerivatives, func: Any, input: Tensor, *_: Any) -> bool:
    return mode.below(input).requires_grad and _asker() not in _OBSERVERS


def _asker() -> str:
    """The name of the module whose code made the call to torch that is being handled."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _module(frame).startswith("fastmaml."):
        frame = frame.f_back
    return _module(frame)


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _is_leaf(mode: OwnDerivatives, func: Any, input: Tensor, *_: Any) -> bool:
    return mode.below(input).is_leaf


def _mark(mode: OwnDerivatives, func: Any, input: Tensor, requires_grad: bool = True) -> Any:
    """Libraries mark activations: harmless, until a derivative is taken or asked for."""
    below = mode.below(input)
    if below is input or functorch.get_inplace_requires_grad_allowed():
        return func(input, requires_grad)
    if below.requires_grad != requires_grad:
        if not requires_grad:
            mode.alone(f"calls requires_grad_({requires_grad})")
        with _marking():
            below.requires_grad_()
    return input


def _wrong(mode: OwnDerivatives, func: Any, *_: Any, **__: Any) -> Any:
    """What torch's own rule for vmap differentiates wrongly (seen in 2.13)."""
    return mode.refuse(
        RuntimeError(f"it calls {func.__name__}, which torch differentiates wrongly under vmap")
    )


_BATCHED: dict[Any, Callable[..., Any]] = {
    Tensor.requires_grad.__get__: _requires_grad,  # type: ignore[attr-defined]
    Tensor.is_leaf.__get__: _is_leaf,  # type: ignore[attr-defined]
    Tensor.requires_grad_: _mark,
    Tensor.requires_grad.__set__: _mark,  # type: ignore[attr-defined]
    torch.select_scatter: _wrong,
    Tensor.select_scatter: _wrong,
    torch.ops.aten.select_scatter: _wrong,
    torch.ops.aten.select_scatter.default: _wrong,
    torch.as_strided_: _wrong,
    Tensor.as_strided_: _wrong,
    torch.ops.aten.as_strided_: _wrong,
    torch.ops.aten.as_strided_.default: _wrong,
}
