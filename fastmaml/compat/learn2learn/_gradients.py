"""The inner gradient, with errors that name the way out and leave the loss's graph intact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge


def inner_gradients(
    loss: Tensor,
    parameters: Sequence[Tensor],
    *,
    create_graph: bool,
    retain_graph: bool | None = None,
    allow_unused: bool,
    allow_nograd: bool,
    names: Sequence[str] | None = None,
) -> list[Tensor | None]:
    """The gradient of `loss` by every parameter; None where it is frozen or not reached.

    Args:
        loss: one number.
        parameters: to differentiate with respect to.
        create_graph: whether the gradients can be differentiated again.
        retain_graph: whether the loss can be; None for the same as `create_graph`.
        allow_unused: take None for parameters that the loss does not reach.
        allow_nograd: take None for parameters that do not require a gradient.
        names: of the parameters, for messages.

    Raises:
        RuntimeError: the loss cannot be differentiated with respect to all parameters, and nothing
            says that this is meant.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise RuntimeError(f"the loss to adapt to must be one number; this one has {got}.")
    if not loss.requires_grad:
        raise RuntimeError(
            "the loss to adapt to has no graph: it was computed under torch.no_grad(), from "
            "detached tensors, or from frozen parameters only."
        )
    retain_graph = create_graph if retain_graph is None else retain_graph
    wanted = [i for i, p in enumerate(parameters) if p.requires_grad]
    if len(wanted) < len(parameters) and not allow_nograd:
        frozen = _listed([i for i in range(len(parameters)) if i not in wanted], parameters, names)
        raise RuntimeError(
            f"cannot adapt parameters that do not require a gradient ({frozen}): pass "
            "allow_nograd=True to leave them as they are."
        )
    found: list[Tensor | None] = [None] * len(parameters)
    if not wanted:
        return found
    differentiated = [parameters[i] for i in wanted]
    if not (allow_unused or retain_graph):  # the call below would use the graph up
        reached = _reached(loss, differentiated)
        _require([i for i, r in zip(wanted, reached, strict=True) if not r], parameters, names)
    gradients = torch.autograd.grad(
        loss,
        differentiated,
        create_graph=create_graph,
        retain_graph=retain_graph,
        allow_unused=True,
    )
    for i, gradient in zip(wanted, gradients, strict=True):
        found[i] = gradient
    if not allow_unused:
        _require([i for i in wanted if found[i] is None], parameters, names)
    return found


def _require(unused: list[int], parameters: Sequence[Tensor], names: Sequence[str] | None) -> None:
    if unused:
        raise RuntimeError(
            f"the loss to adapt to does not depend on {_listed(unused, parameters, names)}: pass "
            "allow_unused=True to leave such parameters as they are."
        )


def _listed(which: list[int], parameters: Sequence[Tensor], names: Sequence[str] | None) -> str:
    few = [names[i] if names else f"parameter {i} {list(parameters[i].shape)}" for i in which[:5]]
    return ", ".join(few) + f" and {len(which) - 5} more" * (len(which) > 5)


def _reached(loss: Tensor, parameters: Sequence[Tensor]) -> list[bool]:
    """Whether each parameter is in the graph of `loss`, which is only looked at."""
    own = [get_gradient_edge(p) if p.is_leaf else (p.grad_fn, p.output_nr) for p in parameters]
    wanted = {edge[:2] for edge in own}
    missing = set(wanted)
    nodes: list[Any] = []
    ends: list[Any] = []  # parameters' own nodes: what these were made of is looked at last
    seen: set[Any] = {None}
    edges: Sequence[Any] = [get_gradient_edge(loss)[:2]]
    while missing:
        for edge in edges:
            if edge[0] not in seen:
                seen.add(edge[0])
                (ends if edge in wanted else nodes).append(edge[0])
            missing.discard(edge)
        if not nodes and not ends:
            break
        edges = (nodes or ends).pop().next_functions
    return [edge[:2] not in missing for edge in own]
