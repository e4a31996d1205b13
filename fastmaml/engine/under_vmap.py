"""What a tensor of one task answers under vmap, where the graph is that of all tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C import _functorch as functorch

from fastmaml.engine.under_forward_mode import marking

if TYPE_CHECKING:
    from fastmaml.engine.own_derivatives import OwnDerivatives


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
        with marking():
            below.requires_grad_()
    return input


def _wrong(mode: OwnDerivatives, func: Any, *_: Any, **__: Any) -> Any:
    """What torch's own rule for vmap differentiates wrongly (seen in 2.13)."""
    return mode.refuse(
        RuntimeError(f"it calls {func.__name__}, which torch differentiates wrongly under vmap")
    )


BATCHED: dict[Any, Callable[..., Any]] = {
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
