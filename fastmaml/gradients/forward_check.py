"""Whether forward over reverse gives the second derivatives of a model that reverse mode gives.

PyTorch has forward-mode formulas that are wrong, and nothing says so when they run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import vjp
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

ROUNDINGS = 10
"""Second derivatives lose up to half of the digits: what may differ is this times their root."""

NOISE = 1e-2
"""A part this much smaller than the whole may be rounding, and is held against the whole."""

WRONG = {
    "CholeskyInverse": "torch.cholesky_inverse",
    "TriangularSolve": "torch.triangular_solve",
    "AsStridedScatter": "torch.as_strided_scatter",
}
"""Nodes of the graph with wrong forward derivatives (seen in torch 2.13), and who makes them."""


def differ(
    forward: Iterable[Tensor | None], reverse: Iterable[Tensor | None], rounding: float = 0.0
) -> bool:
    """Whether two ways to the same derivatives differ beyond rounding; None is zero.

    Args:
        forward: one way.
        reverse: the other.
        rounding: of what computes them, where it may be larger than that of their dtype.
    """
    pairs = [
        (torch.zeros_like(b) if a is None else a, torch.zeros_like(a) if b is None else b)  # type: ignore[arg-type]
        for a, b in zip(forward, reverse, strict=True)
        if a is not None or b is not None
    ]
    if not all(bool(x.isfinite().all()) for pair in pairs for x in pair):
        return False  # somebody else's concern
    whole = sum(float(b.norm()) ** 2 for _, b in pairs) ** 0.5
    return any(
        float((a - b).norm())
        > ROUNDINGS
        * max(torch.finfo(a.dtype).eps, rounding) ** 0.5
        * max(float(b.norm()), NOISE * whole)
        for a, b in pairs
    )


def coarsest_rounding(loss: Tensor) -> float:
    """That of the lowest precision which a graph passes through, as where a norm is in float32."""
    kinds = {m.dtype for node in _nodes(loss.grad_fn) for m in node._input_metadata}
    return max(torch.finfo(kind).eps for kind in kinds if kind.is_floating_point)


def known_wrong(loss: Tensor, inputs: Iterable[Tensor]) -> str:
    """A function between `inputs` and `loss` with wrong forward derivatives; "" if none is."""
    wanted = {id(x) for x in inputs}
    for node in _nodes(loss.grad_fn):
        kind = node.name().partition("Backward")[0]
        name = WRONG.get(kind, "")
        if kind == "ScatterReduce" and node._saved_reduce == "prod":
            name = "scatter_reduce with reduce='prod'"
        if name and any(id(getattr(n, "variable", None)) in wanted for n in _nodes(node)):
            return name
    return ""


def _nodes(root: Any) -> Iterator[Any]:
    """Every node of a graph, once."""
    waiting, seen = [root], {None}
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            yield node
            waiting += [n for n, _ in node.next_functions]


class WrongFunctions(TorchFunctionMode):
    """Tries every function that runs inside on its own, and names those without right forward
    derivatives of their gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func`, after its derivatives were compared."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        # Without gradients it is a part of a function that brings its own derivatives.
        tried = torch.is_grad_enabled() and name not in self.names
        if tried and _wrong(func, args, kwargs):
            self.names.append(name)
        return func(*args, **kwargs)


def _wrong(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether this call has second derivatives in reverse mode, and others or none in forward."""
    leaves, spec = tree_flatten((args, kwargs))
    moving = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.requires_grad]
    if not moving:
        return False
    values = [leaves[i].detach().clone() for i in moving]

    def curved(*inputs: Tensor) -> Tensor:
        given = [x.detach().clone() if isinstance(x, Tensor) else x for x in leaves]
        for i, x in zip(moving, inputs, strict=True):
            given[i] = x.clone()  # it may be written to
        args, kwargs = tree_unflatten(given, spec)
        outputs = tree_leaves(func(*args, **kwargs))
        floats = [y for y in outputs if isinstance(y, Tensor) and y.is_floating_point()]
        return sum((y.sin().sum() for y in floats), torch.zeros(()))

    try:
        along, reverse = _by_reverse(curved, values)
    except (RuntimeError, TypeError):
        return False
    try:
        return differ(_by_forward(curved, values, along), reverse)
    except RuntimeError:
        return True


def _by_reverse(
    function: Callable[..., Tensor], values: list[Tensor]
) -> tuple[list[Tensor], list[Tensor | None]]:
    """The gradient g of a scalar function, and H·g, by two backward passes.

    In the direction g: where a function has derivatives among symmetric matrices only, it is one.
    """
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in values]
        gradient = torch.autograd.grad(
            function(*leaves), leaves, create_graph=True, materialize_grads=True
        )
        along = [g.detach() for g in gradient]
        pairs = [(g, v) for g, v in zip(gradient, along, strict=True) if g.requires_grad]
        if not pairs:
            return along, [None] * len(values)
        gs, vs = zip(*pairs, strict=True)
        return along, list(torch.autograd.grad(gs, leaves, vs, allow_unused=True))


def _by_forward(
    function: Callable[..., Tensor], values: list[Tensor], along: list[Tensor]
) -> list[Tensor | None]:
    """The same, as the tangent of one backward pass."""
    with torch.no_grad(), forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, v) for x, v in zip(values, along, strict=True)]
        loss, backward = vjp(function, *duals)[:2]
        found = backward(torch.ones_like(loss), retain_graph=False, create_graph=True)
        return [forward_ad.unpack_dual(g).tangent for g in found]
