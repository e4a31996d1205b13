"""FLOPs of an operator from the shapes that it is called with.

Counted are matrix products, convolutions and attention, a multiply-add as two, as is usual where a
machine's peak is the yardstick; elementwise work is not. For PyTorch's own operators the formulas
are mostly those of `torch.utils.flop_counter`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Formula = Callable[[Any, Any], int]
"""Of arguments and result."""


def flops_of(func: Any, args: Any, kwargs: Any, result: Any) -> int | None:
    """How many, 0 for what has no products in it, None where no formula is known.

    Args:
        func: an operator as a dispatch mode sees it.
        args, kwargs: that it is called with.
        result: of the call.
    """
    package, _, name = func._schema.name.partition("::")
    if package == "aten":
        formula = _ATEN.get(name)
        known = _registry()
        if formula is None and func.overloadpacket in known:
            return int(known[func.overloadpacket](*args, **kwargs, out_val=result))
        if formula is None:
            return None if name.removeprefix("_").startswith(_UNKNOWN) else 0
    elif package in _BOOKKEEPING:
        return 0
    else:
        formula = _OWN.get(name) if package in ("fastmaml", "fastmaml_triton") else None
    return None if formula is None else formula(args, result)


@functools.cache
def _registry() -> Mapping[Any, Callable[..., Any]]:
    """PyTorch's formulas; loading them loads Triton where there is one."""
    from torch.utils.flop_counter import flop_registry

    return flop_registry


_BOOKKEEPING = ("prim", "prims", "profiler", "c10d", "_c10d_functional")

_UNKNOWN = (
    "linalg", "cholesky", "lu_", "triangular_solve", "ormqr", "cdist", "pdist", "fft", "thnn",
    "mkldnn_rnn", "cudnn_rnn", "miopen_rnn", "sparse", "addr", "trilinear", "embedding_bag",
    "scaled_dot_product", "int_mm", "grouped_mm", "addbmm",
)  # fmt: skip
"""Operators that hold products, beside those with a formula."""


def _none(args: Any, result: Any) -> int:
    return 0


def _linear(args: Any, result: Any) -> int:
    return 2 * result[0].numel() * args[0].shape[-1]


def _linear_dgrad(args: Any, result: Any) -> int:
    return 2 * result.numel() * args[0].shape[-1]


def _linear_wgrad(args: Any, result: Any) -> int:
    return 2 * args[0].numel() * args[1].shape[-1]


def _conv(args: Any, result: Any) -> int:
    return 2 * result.numel() * math.prod(args[1].shape[2:])


def _conv_dgrad(args: Any, result: Any) -> int:
    return 2 * args[0].numel() * math.prod(args[1].shape[2:])


def _conv_wgrad(args: Any, result: Any) -> int:
    return 2 * args[0].numel() * math.prod(result[0].shape[2:])


def _attention(args: Any, result: Any) -> int:
    return 2 * _product(args[0], args[1])


def _attention_bwd(args: Any, result: Any) -> int:
    """dV, dP, dQ and dK; that the kernel computes P again is its own affair."""
    return 4 * _product(args[1], args[2])


def _attention_bwd2(args: Any, result: Any) -> int:
    """The products of ``J h`` and of the gradients of ``<g, J h>``, of those that are wanted."""
    hq, hk, hv, _, q, k = args[:6]
    need, scores, values = args[-1], hq is not None or hk is not None, hv is not None
    along = (hq is not None) + (hk is not None)
    products = along
    if need & 0b0001:
        products += scores + values
    if need & 0b1110:
        products += scores + values
    if need & 0b0010:
        products += 1 + (hk is not None)
    if need & 0b0100:
        products += 1 + (hq is not None)
    if need & 0b1000:
        products += scores
    return products * _product(q, k)


def _product(q: Tensor, k: Tensor) -> int:
    """One product of all queries with all keys; values are of the same size."""
    return 2 * q.numel() * k.shape[-2]


def _convolution(args: Any, result: Any) -> int:
    x, w, transposed = args[0], args[1], args[6]
    return 2 * (x if transposed else result).numel() * math.prod(w.shape[1:])


def _convolution_backward(args: Any, result: Any) -> int:
    """Of any number of groups: tasks are groups under vmap."""
    g, x, w, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
    return 2 * sum(wanted[:2]) * (x if transposed else g).numel() * math.prod(w.shape[1:])


def _vectors(args: Any, result: Any) -> int:
    return 2 * args[0].numel()


def _add_vectors(args: Any, result: Any) -> int:
    return 2 * args[1].numel()


_ATEN: dict[str, Formula] = {
    "mv": _vectors,
    "dot": _vectors,
    "vdot": _vectors,
    "addmv": _add_vectors,
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_bwd,
}
"""What `torch.utils.flop_counter` leaves out, or counts otherwise where there are groups."""

_OWN: dict[str, Formula] = {
    "task_linear": _linear,
    "task_linear_dgrad": _linear_dgrad,
    "task_linear_wgrad": _linear_wgrad,
    "task_conv2d": _conv,
    "task_conv2d_dgrad": _conv_dgrad,
    "task_conv2d_wgrad": _conv_wgrad,
    "task_attention": _attention,
    "task_attention_bwd": _attention_bwd,
    "task_attention_bwd2": _attention_bwd2,
    **dict.fromkeys(
        (
            *(f"task_act{part}" for part in ("", "_bwd", "_bwd2")),
            *(f"task_batch_norm{part}" for part in ("", "_bwd", "_bwd2")),
            *(f"task_layer_norm{part}" for part in ("", "_bwd", "_bwd2")),
            *(f"task_cross_entropy{part}" for part in ("", "_bwd", "_bwd2")),
            *(f"task_mse{part}" for part in ("", "_bwd", "_bwd2")),
            "task_embedding",
            "task_embedding_grad",
            "dropout_mask",
            "inner_update",
            "inner_scale",
            "inner_rate_grad",
            "inner_momentum",
            "all_finite",
            "channels_first",
        ),
        _none,
    ),
}
"""The raw ops of fastmaml, of every backend."""
