"""Batch normalisation of all tasks, fused with ReLU and max-pooling: `task_batch_norm`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastmaml.ops._checks import prepared, shape
from fastmaml.ops._load import Kernels
from fastmaml.ops._norm import norm_function


def task_batch_norm(
    x: Tensor,
    w: Tensor | None = None,
    b: Tensor | None = None,
    *,
    eps: float = 1e-5,
    relu: bool = False,
    pool: bool = False,
    backend: str = "reference",
) -> Tensor:
    """``pool(relu(x̂ w + b))``, x̂ normalised over the examples and pixels of each task.

    Batch normalisation (Ioffe and Szegedy, 2015) with the batch's own statistics and the biased
    variance, as `torch.nn.functional.batch_norm` in training; derivatives go through the
    statistics. The ReLU and the pooling (the maximum of windows of 2 x 2, an odd last row or column
    left out) come in the same pass. Images are kept channels-last in memory.

    Args:
        x: ``[tasks, examples, channels, height, width]`` or, without `pool`,
            ``[tasks, examples, channels]``.
        w: ``[tasks, channels]``, or None for 1.
        b: ``[tasks, channels]``, or None for 0.
        eps: what is added to the variance.
        relu: whether a ReLU follows.
        pool: whether max-pooling follows that.
        backend: ``"reference"``, ``"cpp"``, ``"cuda"`` or ``"triton"``.

    Returns:
        The shape of x, with height and width halved (rounded down) by `pool`; of the dtype of x.

    Raises:
        ValueError: a shape, dtype or device does not fit (the tensor is named), eps is negative, or
            the backend is unknown or cannot take them.
    """
    op = "task_batch_norm"
    flat = x.ndim == 3
    if flat and not pool:
        x = x[..., None, None]
    shape(op, "x", x, "tasks", "examples", "channels", "height", "width")
    shape(op, "w", w, "tasks", x.shape[2])
    shape(op, "b", b, "tasks", x.shape[2])
    if pool and min(x.shape[3:]) < 2:
        raise ValueError(f"{op}: x has shape {list(x.shape)}; pool needs 2 x 2 pixels.")
    if not eps >= 0:
        raise ValueError(f"{op}: eps={eps}; it must not be negative.")
    found = prepared(op, backend, x=x, w=w, b=b)
    if found is None:
        y = reference_task_batch_norm(x, w, b, eps, relu, pool)
    else:
        y = native_task_batch_norm(found, x, w, b, eps, relu, pool)
    return y[..., 0, 0] if flat else y


def reference_task_batch_norm(
    x: Tensor,
    w: Tensor | None = None,
    b: Tensor | None = None,
    eps: float = 1e-5,
    relu: bool = False,
    pool: bool = False,
) -> Tensor:
    """The definition in PyTorch, of images."""
    over = (1, 3, 4)
    centred = x - x.mean(over, keepdim=True)
    y = centred * (centred.square().mean(over, keepdim=True) + eps).rsqrt()
    if w is not None:
        y = y * w[:, None, :, None, None]
    if b is not None:
        y = y + b[:, None, :, None, None]
    if relu:
        y = F.relu(y)
    if not pool:
        return y
    return F.max_pool2d(y.flatten(0, 1), 2).unflatten(0, y.shape[:2])


def native_task_batch_norm(
    kernels: Kernels,
    x: Tensor,
    w: Tensor | None = None,
    b: Tensor | None = None,
    eps: float = 1e-5,
    relu: bool = False,
    pool: bool = False,
) -> Tensor:
    """The op of a backend, of images."""
    y: Tensor = BatchNorm.apply(kernels, x, w, b, eps, relu, pool)[0]
    return y


BatchNorm = norm_function("task_batch_norm", data=3, fused=2)
"""What the derivatives read are mean, 1/std, and what the maxima and ReLU chose."""
