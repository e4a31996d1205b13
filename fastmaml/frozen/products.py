"""Products with a weight that is fetched for each of them, and in no graph of autograd's.

``x Wᵀ`` is linear in x, and so is its derivative, ``g W``: each is the other's, forwards and
backwards, however often one differentiates. Of W a graph keeps where it lies, and no copy: the
second derivative fetches it anew, as does the first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from fastmaml.frozen.kept import Kept


def product(x: Tensor, kept: Kept, columns: bool, dtype: torch.dtype) -> Tensor:
    """``x Wᵀ``, or with `columns` ``x W``.

    Args:
        x: ``[..., columns of W]``, or ``[..., rows of W]`` with `columns`; of the dtype below.
        kept: W, ``[rows, columns]``.
        columns: which of both.
        dtype: of the product; W is converted.
    """
    found: Tensor = _Product.apply(x, kept, columns, dtype)
    return found


def lookup(numbers: Tensor, kept: Kept) -> Tensor:
    """``W[numbers]``, ``[..., columns]``; a constant.

    Raises:
        IndexError: one of the numbers is negative, or too large.
    """
    found: Tensor = _Lookup.apply(numbers, kept)
    return found


@contextlib.contextmanager
def _unwatched() -> Iterator[None]:
    """How a weight comes here is no business of the model's, nor of modes that watch that."""
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        yield


@final
class _Product(Function):
    @staticmethod
    def forward(x: Tensor, kept: Kept, columns: bool, dtype: torch.dtype) -> Tensor:
        # The dtype was decided when the layer ran; backwards it must be the same.
        with torch.autocast(x.device.type, enabled=False):
            with _unwatched():
                w = kept.whole(x.device)
            w = w.to(dtype)
            return F.linear(x, w.mT if columns else w)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.kept, ctx.columns, ctx.dtype = inputs

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return product(g, ctx.kept, not ctx.columns, ctx.dtype), None, None, None

    @staticmethod
    def jvp(ctx: Any, t: Tensor, *_: Any) -> Tensor:
        return product(t, ctx.kept, ctx.columns, ctx.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, *rest: Any) -> tuple[Tensor, int]:
        return product(x.movedim(in_dims[0], 0), *rest), 0


@final
class _Lookup(Function):
    @staticmethod
    def forward(numbers: Tensor, kept: Kept) -> Tensor:
        with _unwatched():
            kept.require_rows(numbers)
            return kept.rows(numbers)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return None, None

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> None:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: Any, numbers: Tensor, kept: Kept) -> tuple[Tensor, int]:
        return lookup(numbers.movedim(in_dims[0], 0), kept), 0
