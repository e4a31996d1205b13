"""Sparse matrices that a model holds, while it is differentiated forwards.

torch has no forward derivative of a product with a sparse matrix, and cannot even look at a
compressed one inside `torch.func`. A matrix that is constant needs neither: what is computed of
constants alone runs outside of `torch.func`, and a product with one is gathered and added up, which
has every derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

from fastmaml.engine.base import functorch


def with_sparse_constants(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """The result of a call that a sparse constant takes part in; NotImplemented of any other."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    sparse = [x for x in tensors if x.layout is not torch.strided]
    if not sparse and "sparse" not in getattr(func, "__name__", ""):
        return NotImplemented
    if all(map(_constant, tensors)):
        return outside(func, *args, **kwargs)
    product = _PRODUCTS.get(func) if len(sparse) == 1 and _constant(sparse[0]) else None
    found = NotImplemented if product is None else product(*args, **kwargs)
    return _refusing(func, args, kwargs) if found is NotImplemented else found


def _refusing(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """The result of a call, or an error that names the way out where torch has no derivative."""
    try:
        return func(*args, **kwargs)
    except RuntimeError as error:  # NotImplementedError is one
        first = str(error).partition("\n")[0][:200]
        raise RuntimeError(
            f"torch cannot differentiate {getattr(func, '__name__', func)} of sparse (or nested) "
            "tensors forwards, as MixedMode() does: use gradient=Unrolled() or Checkpointed(), or "
            f"torch.sparse.mm with a matrix that is constant ({first})"
        ) from error


def outside(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``func(*args)`` of constants, outside of every transform of `torch.func`."""
    with torch._C._DisableFuncTorch():
        return func(*args, **kwargs)


def _constant(x: Tensor) -> bool:
    if functorch.is_functorch_wrapped_tensor(x) or x.requires_grad:
        return False
    return x.layout is not torch.strided or forward_ad.unpack_dual(x).tangent is None


def _entries(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and values of a sparse constant."""
    found = outside(lambda: x.to_sparse_coo().coalesce())
    return *outside(found.indices), outside(found.values)


def _matmul(a: Tensor, b: Tensor) -> Any:
    """``a @ b``, one of them sparse."""
    if a.layout is torch.strided:
        return _by_columns(a, b)
    if a.ndim != 2 or b.ndim not in (1, 2) or a.shape[1] != b.shape[0]:
        return NotImplemented
    rows, columns, values = _entries(a)
    gathered = values.view(-1, *[1] * (b.ndim - 1)) * b[columns]
    return b.new_zeros(a.shape[0], *b.shape[1:]).index_add(0, rows, gathered)


def _by_columns(a: Tensor, b: Tensor) -> Any:
    """``a @ b`` with a sparse b."""
    if b.ndim != 2 or a.ndim == 0 or a.shape[-1] != b.shape[0]:
        return NotImplemented
    rows, columns, values = _entries(b)
    return a.new_zeros(*a.shape[:-1], b.shape[1]).index_add(-1, columns, a[..., rows] * values)


def _matmul_reversed(b: Tensor, a: Tensor) -> Any:
    return _matmul(a, b)


def _sparse_mm(mat1: Tensor, mat2: Tensor, reduce: str = "sum") -> Any:
    return _matmul(mat1, mat2) if reduce == "sum" else NotImplemented


def _addmm(input: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Any:
    """``beta * input + alpha * (a @ b)``."""
    found = _matmul(a, b)
    return found if found is NotImplemented else beta * input + alpha * found


def _sparse_addmm(mat: Tensor, mat1: Tensor, mat2: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Any:
    return _addmm(mat, mat1, mat2, beta=beta, alpha=alpha)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    if weight.layout is torch.strided or weight.ndim != 2:
        return NotImplemented
    found = _by_columns(input, outside(weight.t))
    return found if found is NotImplemented or bias is None else found + bias


_PRODUCTS: dict[Any, Callable[..., Any]] = {
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    Tensor.__rmatmul__: _matmul_reversed,
    torch.mm: _matmul,
    Tensor.mm: _matmul,
    torch.mv: _matmul,
    Tensor.mv: _matmul,
    torch.sparse.mm: _sparse_mm,
    torch.addmm: _addmm,
    Tensor.addmm: _addmm,
    torch.sparse.addmm: _sparse_addmm,
    F.linear: _linear,
}
