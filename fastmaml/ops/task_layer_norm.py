"""Layer normalisation of all tasks: `task_layer_norm`."""

from __future__ import annotations

from torch import Tensor

from fastmaml.ops._checks import prepared, shape
from fastmaml.ops._load import Kernels
from fastmaml.ops._norm import norm_function


def task_layer_norm(
    x: Tensor,
    w: Tensor | None = None,
    b: Tensor | None = None,
    *,
    eps: float = 1e-5,
    backend: str = "reference",
) -> Tensor:
    """``x̂ w + b``, x̂ normalised over the features of each row (Ba et al., 2016).

    `torch.nn.functional.layer_norm` with a weight and bias for every task. Derivatives go through
    the statistics.

    Args:
        x: ``[tasks, rows, features]``.
        w: ``[tasks, features]``, or None for 1.
        b: ``[tasks, features]``, or None for 0.
        eps: what is added to the (biased) variance.
        backend: ``"reference"``, ``"cpp"``, ``"cuda"`` or ``"triton"``.

    Returns:
        The shape and dtype of x.

    Raises:
        ValueError: a shape, dtype or device does not fit (the tensor is named), eps is negative, or
            the backend is unknown or cannot take them.
    """
    op = "task_layer_norm"
    shape(op, "x", x, "tasks", "rows", "features")
    shape(op, "w", w, "tasks", x.shape[2])
    shape(op, "b", b, "tasks", x.shape[2])
    if not eps >= 0:
        raise ValueError(f"{op}: eps={eps}; it must not be negative.")
    found = prepared(op, backend, x=x, w=w, b=b)
    if found is None:
        return reference_task_layer_norm(x, w, b, eps)
    return native_task_layer_norm(found, x, w, b, eps)


def reference_task_layer_norm(
    x: Tensor, w: Tensor | None = None, b: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """The definition in PyTorch."""
    centred = x - x.mean(2, keepdim=True)
    y = centred * (centred.square().mean(2, keepdim=True) + eps).rsqrt()
    if w is not None:
        y = y * w.unsqueeze(1)
    return y if b is None else y + b.unsqueeze(1)


def native_task_layer_norm(
    kernels: Kernels,
    x: Tensor,
    w: Tensor | None = None,
    b: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`task_layer_norm` by the kernels of a backend."""
    y: Tensor = LayerNorm.apply(kernels, x, w, b, eps)[0]
    return y


LayerNorm = norm_function("task_layer_norm", data=2)
"""What the derivatives read are mean and 1/std."""
