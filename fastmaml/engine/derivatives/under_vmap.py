"""What a tensor of one task answers under vmap, where the graph is that of all tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fastmaml.engine.derivatives.own_derivatives import OwnDerivatives


def _is_leaf(mode: OwnDerivatives, func: Any, input: Tensor, *_: Any) -> bool:
    return mode.below(input).is_leaf


def _wrong(mode: OwnDerivatives, func: Any, *_: Any, **__: Any) -> Any:
    """What torch's own rule for vmap differentiates wrongly (seen in 2.13)."""
    return mode.refuse(
        RuntimeError(f"it calls {func.__name__}, which torch differentiates wrongly under vmap")
    )


def _by_memory(mode: OwnDerivatives, func: Any, *_: Any, **__: Any) -> Any:
    """What lies elsewhere: adapted weights of all tasks are not laid out as a task's own are."""
    return mode.refuse(
        RuntimeError(f"it calls {func.__name__}, which depends on where numbers lie in memory")
    )


BATCHED: dict[Any, Callable[..., Any]] = {
    Tensor.is_leaf.__get__: _is_leaf,  # type: ignore[attr-defined]
    torch.select_scatter: _wrong,
    Tensor.select_scatter: _wrong,
    torch.ops.aten.select_scatter: _wrong,
    torch.ops.aten.select_scatter.default: _wrong,
    torch.as_strided: _by_memory,
    Tensor.as_strided: _by_memory,
    torch.ops.aten.as_strided: _by_memory,
    torch.ops.aten.as_strided.default: _by_memory,
    torch.as_strided_: _wrong,
    Tensor.as_strided_: _wrong,
    torch.ops.aten.as_strided_: _wrong,
    torch.ops.aten.as_strided_.default: _wrong,
}
