"""What forward over reverse would differentiate wrongly: constants, hooks, marked tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch._C import _functorch as functorch
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from fastmaml.engine.own_derivatives import OwnDerivatives

TORCH_SAYS = {
    "Nested forward mode AD is not supported": "uses forward mode itself (torch.func.jvp, jacfwd, "
    "hessian, ...)",
    "it must override the setup_context staticmethod": "uses a torch.autograd.Function without "
    "setup_context and jvp",
}
"""What its own errors mean here."""


def constant(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
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
    with marking():
        return func(input, requires_grad)


def refuse_module_hooks(mode: OwnDerivatives) -> None:
    """They may change gradients, and torch refuses them here in words that do not say so."""
    found = nn.modules.module
    anywhere = found._global_backward_hooks or found._global_backward_pre_hooks
    if anywhere or any(m._backward_hooks or m._backward_pre_hooks for m in mode.model.modules()):
        mode.not_forwards("has a module with a backward hook")


class marking:  # noqa: N801  # a context manager
    """Lets `requires_grad_` through, as torch.func does for its own transforms."""

    def __enter__(self) -> None:
        self.before = functorch.get_inplace_requires_grad_allowed()
        functorch.set_inplace_requires_grad_allowed(True)

    def __exit__(self, *_: object) -> None:
        functorch.set_inplace_requires_grad_allowed(self.before)


FORWARDS: dict[Any, Callable[..., Any]] = {
    Tensor.requires_grad_: _mark_forwards,
    Tensor.requires_grad.__set__: _mark_forwards,  # type: ignore[attr-defined]
    Tensor.data.__get__: _data,  # type: ignore[attr-defined]
}
