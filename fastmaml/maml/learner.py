"""learn2learn's two verbs, `clone` and `adapt`, on a `MAML`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastmaml.engine.routing.cloning import replace_parameters
from fastmaml.rules import Rule
from fastmaml.rules.base import Tensors


@dataclass(frozen=True)
class Progress:
    """How far a clone has adapted.

    Attributes:
        step: how many times it did.
        state: the rule's state, with a ``tasks`` dimension of 1; None before the first time.
    """

    step: int = 0
    state: Any = None


def adapt_in_place(
    module: nn.Module,
    adapted: list[str],
    rule: Rule,
    rates: Tensors,
    loss: Tensor,
    progress: Progress,
    *,
    second_order: bool,
    allow_unused: bool,
    allow_nograd: bool,
) -> Progress:
    """One inner step on `loss` for a module made by `clone_module`, and how far it is then."""
    named = dict(module.named_parameters())
    adapted = [n for n in adapted if named[n].requires_grad]
    if not adapted or named[adapted[0]].is_leaf:
        raise RuntimeError(
            "adapt() changes a learner in place, so it is for clones made while gradients are "
            "enabled: learner = maml.clone(); learner.adapt(loss)."
        )
    # As in learn2learn, a frozen parameter is an error unless allow_nograd says that it is meant.
    trainable_only = allow_nograd or len(adapted) < sum(p.requires_grad for p in named.values())
    wanted = {n: p for n, p in named.items() if n in adapted or not trainable_only}
    gradients = _gradients(loss, wanted, second_order, allow_unused)
    moving = {n: named[n].unsqueeze(0) for n in adapted}
    # The rule sees all of them, so that its state stays whole; unreached ones stay where they are.
    seen = {n: torch.zeros_like(p) for n, p in moving.items()}
    seen.update({n: g.unsqueeze(0) for n in moving if (g := gradients[n]) is not None})
    state = rule.init(moving) if progress.state is None else progress.state
    updates, state = rule.update(progress.step, seen, state, moving, rates)
    reached = [n for n in moving if gradients[n] is not None]
    replace_parameters(module, {named[n]: named[n] + updates[n].squeeze(0) for n in reached})
    return Progress(progress.step + 1, state)


def _gradients(
    loss: Tensor, parameters: Mapping[str, Tensor], second_order: bool, allow_unused: bool
) -> dict[str, Tensor | None]:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise RuntimeError(f"adapt(loss) needs a scalar loss; this one has {got}.")
    frozen = [n for n, p in parameters.items() if not p.requires_grad]
    if frozen:
        raise RuntimeError(
            f"adapt() cannot differentiate frozen parameters ({', '.join(frozen[:5])}): pass "
            "allow_nograd=True to leave them as they are."
        )
    gradients = torch.autograd.grad(
        loss,
        list(parameters.values()),
        create_graph=second_order,
        # Kept while this call may still fail, so that the caller can try again with the same loss.
        retain_graph=second_order or not allow_unused,
        allow_unused=True,
    )
    found: dict[str, Tensor | None] = dict(zip(parameters, gradients, strict=True))
    unused = [n for n, g in found.items() if g is None]
    if unused and not allow_unused:
        raise RuntimeError(
            f"the loss given to adapt() does not depend on {', '.join(unused[:5])}: pass "
            "allow_unused=True to leave such parameters as they are."
        )
    return found
