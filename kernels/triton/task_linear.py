"""`task_linear` and its two gradients: each is one matrix product a task."""

from __future__ import annotations

import torch

from . import checks, tuning
from .activations import SAVES_INPUT
from .gemm import gemm, gemm_kernel
from .launch import Launch, Product, precision
from .tiles import Tile

ACTIVATIONS = range(7)


def product(op: str, a: torch.Tensor, b: torch.Tensor, splittable: bool = False) -> Product:
    """Of a [T, M, K] and b [T, K, N]."""
    (tasks, m, k), n = a.shape, b.shape[2]
    checks.limits(op, rows=m, columns=n, terms=k)
    return Product(op, tasks, m, n, k, a.dtype, precision(a.dtype), a.device, splittable)


@torch.library.custom_op("fastmaml_triton::task_linear", mutates_args=())
def task_linear(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, act: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """y = act(x wᵀ + b) and s, the input of the activation where its derivative needs that.

    Args:
        x: [tasks, examples, inputs], any strides; a task stride of 0 shares it.
        w: [tasks, outputs, inputs], likewise.
        b: [tasks, outputs] or None.
        act: 0 none, 1 relu, 2 tanh, 3 gelu, 4 gelu (tanh), 5 sigmoid, 6 silu.

    Returns:
        y [tasks, examples, outputs] and s, like y for act 3, 4 and 6, else without elements.

    Raises:
        ValueError: shapes, dtypes, devices or ``act`` do not fit.
    """
    checks.tensors("task_linear", gemm_kernel, {"x": 3, "w": 3, "b": 2}, x=x, w=w, b=b)
    checks.sizes("task_linear", "w's number of inputs", w.shape[2:], x.shape[2:])
    if b is not None:
        checks.sizes("task_linear", "the shape of b", b.shape, w.shape[:2])
    if act not in ACTIVATIONS:
        raise ValueError(f"task_linear: act is {act}, not one of 0 to 6.")
    if x.dtype == torch.float64:
        return linear_float64(x, w, b, act)
    y = x.new_empty((x.shape[0], x.shape[1], w.shape[1]))
    s = torch.empty_like(y) if act in SAVES_INPUT else None

    def plan(tile: Tile) -> list[Launch]:
        return gemm(work, tile, x, w.mT, y, saved=s, bias=b, act=act)

    work = product("task_linear", x, w.mT)
    tuning.run(work, plan)
    return y, x.new_empty(0) if s is None else s


@task_linear.register_fake
def _(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, act: int
) -> tuple[torch.Tensor, torch.Tensor]:
    y = x.new_empty((x.shape[0], x.shape[1], w.shape[1]))
    return y, torch.empty_like(y) if act in SAVES_INPUT else x.new_empty(0)


@torch.library.custom_op("fastmaml_triton::task_linear_dgrad", mutates_args=())
def task_linear_dgrad(g: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """The gradient of x: g w, of g [tasks, examples, outputs] and w [tasks, outputs, inputs].

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    checks.tensors("task_linear_dgrad", gemm_kernel, {"g": 3, "w": 3}, g=g, w=w)
    checks.sizes("task_linear_dgrad", "w's number of outputs", w.shape[1:2], g.shape[2:])
    if g.dtype == torch.float64:
        return torch.bmm(g, w)
    gx = g.new_empty((g.shape[0], g.shape[1], w.shape[2]))
    work = product("task_linear_dgrad", g, w)
    tuning.run(work, lambda tile: gemm(work, tile, g, w, gx))
    return gx


@task_linear_dgrad.register_fake
def _(g: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return g.new_empty((g.shape[0], g.shape[1], w.shape[2]))


@torch.library.custom_op("fastmaml_triton::task_linear_wgrad", mutates_args=())
def task_linear_wgrad(
    g: torch.Tensor, x: torch.Tensor, bias: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of w, gᵀ x [tasks, outputs, inputs], and of b, the sum of g over examples.

    Args:
        g: [tasks, examples, outputs].
        x: [tasks, examples, inputs].
        bias: whether the second is wanted; without, it has no elements.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    checks.tensors("task_linear_wgrad", gemm_kernel, {"g": 3, "x": 3}, g=g, x=x)
    checks.sizes("task_linear_wgrad", "x's number of examples", x.shape[1:2], g.shape[1:2])
    if g.dtype == torch.float64:
        return torch.bmm(g.mT, x), g.sum(1) if bias else g.new_empty(0)
    gw = g.new_empty((g.shape[0], g.shape[2], x.shape[2]))
    gb = g.new_empty((g.shape[0], g.shape[2])) if bias else None
    if bias and gw.numel() == 0:  # no tile of gw exists that would sum the rows
        return gw, g.sum(1)
    work = product("task_linear_wgrad", g.mT, x, splittable=True)
    tuning.run(work, lambda tile: gemm(work, tile, g.mT, x, gw, row_sum=gb))
    return gw, g.new_empty(0) if gb is None else gb


@task_linear_wgrad.register_fake
def _(g: torch.Tensor, x: torch.Tensor, bias: bool) -> tuple[torch.Tensor, torch.Tensor]:
    gb = (g.shape[0], g.shape[2]) if bias else (0,)
    return g.new_empty((g.shape[0], g.shape[2], x.shape[2])), g.new_empty(gb)


def linear_float64(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, act: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, by PyTorch's batched products."""
    s = torch.bmm(x, w.mT) if b is None else torch.baddbmm(b.unsqueeze(1), x, w.mT)
    functional = torch.nn.functional
    y = {
        0: lambda: s,
        1: lambda: torch.relu(s),
        2: lambda: torch.tanh(s),
        3: lambda: functional.gelu(s),
        4: lambda: functional.gelu(s, approximate="tanh"),
        5: lambda: torch.sigmoid(s),
        6: lambda: functional.silu(s),
    }[act]()
    return y, s if act in SAVES_INPUT else x.new_empty(0)
