"""Derivatives past the second, of what is computed one task at a time.

The kernels end at the second derivative. A learner's loop, where a user may ask for any (the
curvature of a meta-loss, say), gets further ones from the definition in PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmaml.ops._function import third_derivative


def third(
    kernels: Any,
    op: str,
    h: Sequence[Tensor | None],
    g: Tensor,
    inputs: Sequence[Tensor | None],
    cotangents: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """The gradients of an op's second derivative ``(J h, ∂<g, J h>/∂inputs)``.

    Args:
        kernels: the backend's; `OneTask` ones know the definition.
        op: its name, for the error.
        h: along what the inputs move, None for not at all.
        g: the cotangent of the op's result.
        inputs: of the op.
        cotangents: of J h, and of the gradients of the inputs; None for zero.

    Returns:
        Gradients of every h, of g and of every input.

    Raises:
        NotImplementedError: the kernels do not know the definition.
    """
    definition = getattr(kernels, "definition", None)
    if definition is None:
        third_derivative(op)
    keeps = torch.is_grad_enabled()
    with torch.enable_grad():
        # Names of their own: what one of them owes to another through the graph before them is not
        # this function's.
        along, own = list(map(_alias, h)), list(map(_alias, (*inputs, *kernels.more)))
        by = _named(g)
        used = [x for x in own if x is not None]
        first = torch.autograd.grad(definition(*own), used, by, create_graph=True)
        gradient = dict(zip(map(id, used), first, strict=True))
        pairs = [(a, gradient[id(x)]) for a, x in zip(along, own, strict=True) if a is not None]
        total = torch.stack([(a * y).sum() for a, y in pairs]).sum()
        second = torch.autograd.grad(total, (by, *used), create_graph=True, materialize_grads=True)
        found = dict(zip(map(id, (by, *used)), second, strict=True))
        results = [found.get(id(x)) for x in (by, *own[: len(inputs)])]
        value = torch.stack(
            [
                (c * y).sum()
                for c, y in zip(cotangents, results, strict=True)
                if c is not None and y is not None
            ]
        ).sum()
        wanted = [x for x in (*along, by, *own[: len(inputs)]) if x is not None]
        gradients = torch.autograd.grad(value, wanted, create_graph=keeps, allow_unused=True)
    of = dict(zip(map(id, wanted), gradients, strict=True))
    return tuple(of.get(id(x)) for x in (*along, by, *own[: len(inputs)]))


def _alias(x: Tensor | None) -> Tensor | None:
    return None if x is None else _named(x)


def _named(x: Tensor) -> Tensor:
    return x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
