"""A frozen linear map that is kept in few bits, with every derivative."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import handle_torch_function, has_torch_function_unary


class Weight(ABC):
    """A weight ``[out, in]``, which is made dense where it is used, and let go again.

    Its numbers lie in tensors (`parts`), of which others of the same kind can be given in their
    place: so a recording reads them anew at each replay, like every other constant of a model.
    """

    kind: str
    """What the library calls it."""

    @abstractmethod
    def parts(self) -> Mapping[str, Tensor]:
        """The tensors that hold its numbers now."""

    @abstractmethod
    def dense(self, parts: Mapping[str, Tensor]) -> Tensor:
        """``[out, in]``, in a floating dtype of the library's."""

    @property
    def computes_in(self) -> torch.dtype | None:
        """Where that is not the inputs' dtype."""
        return None

    @final
    def linear(self, x: Tensor, names: tuple[str, ...], *parts: Tensor) -> Tensor:
        """``x @ dense(parts).T`` for ``[..., in]``, in x's dtype; linear in x to every order.

        Derivatives keep the parts only: a dense weight is made for each of them.

        Args:
            x: floating.
            names: of the parts.
            parts: are constants.
        """
        if has_torch_function_unary(x):  # a mode that is active sees this as one function
            found: Tensor = handle_torch_function(self.linear, (x,), x, names, *parts)
            return found
        result: Tensor = _Linear.apply(x, self, dict(zip(names, parts, strict=True)), False)
        return result


class _Linear(Function):
    """The product with a dense weight, or with its transpose; each is the other's derivative."""

    @staticmethod
    def forward(x: Tensor, weight: Weight, parts: Mapping[str, Tensor], transposed: bool) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            dense = weight.dense(parts).to(x.dtype)
            return x @ (dense if transposed else dense.t())

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, ctx.weight, ctx.parts, ctx.transposed = inputs

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        return _Linear.apply(cotangent, ctx.weight, ctx.parts, not ctx.transposed), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Any:
        return _Linear.apply(tangent, ctx.weight, ctx.parts, ctx.transposed)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, *others: Any) -> Any:
        return _Linear.apply(x.movedim(in_dims[0], 0), *others), 0
