"""What forward over reverse would differentiate wrongly: constants, hooks, marked tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from fastmaml.engine.derivatives.own_derivatives import OwnDerivatives

TORCH_SAYS = {
    "Nested forward mode AD is not supported": "uses forward mode itself (torch.func.jvp, jacfwd, "
    "hessian, ...)",
    "it must override the setup_context staticmethod": "uses a torch.autograd.Function without "
    "setup_context and jvp",
    "You must implement the jvp function for custom": "uses a torch.autograd.Function without jvp",
}
"""What its own errors mean here."""


def constant(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Where gradients are off results are constants, which forward mode must be told."""
    with forward_ad._set_fwd_grad_enabled(False):
        return func(*args, **kwargs)


def _data(mode: OwnDerivatives, func: Any, input: Tensor) -> Tensor:
    found: Tensor = func(input)
    return found.detach()


def refuse_module_hooks(mode: OwnDerivatives) -> None:
    """They may change gradients, and torch refuses them here in words that do not say so."""
    found = nn.modules.module
    anywhere = found._global_backward_hooks or found._global_backward_pre_hooks
    if anywhere or any(m._backward_hooks or m._backward_pre_hooks for m in mode.model.modules()):
        mode.not_forwards("has a module with a backward hook")


FORWARDS: dict[Any, Callable[..., Any]] = {
    Tensor.data.__get__: _data,  # type: ignore[attr-defined]
}
