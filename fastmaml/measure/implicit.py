"""`implicit_error`: how far a meta-gradient of `gradients.Implicit` can be trusted."""

from __future__ import annotations

import torch

from fastmaml.episodes.batch import Episodes
from fastmaml.gradients import Implicit
from fastmaml.gradients.implicit import ImplicitError
from fastmaml.maml import MAML
from fastmaml.maml.admit import admit
from fastmaml.maml.plan import plan


def implicit_error(
    maml: MAML, episodes: Episodes, gradient: Implicit | None = None
) -> ImplicitError:
    """For every task how near to its minimum the inner loop comes, and how well it is solved.

    Both times large: take more inner steps (or a larger rate) where `stationarity` is, and more
    iterations where `residual` is. Where tasks are `indefinite`, a larger strength of `Proximal`.

    Args:
        maml: at least one inner step.
        episodes: the meta-batch.
        gradient: None for that of `maml`.

    Returns:
        `ImplicitError`, every field ``[tasks]``.

    Raises:
        ValueError: `gradient` is not given, and that of `maml` is no `Implicit`; no inner steps; a
            rule that `Implicit` refuses.

    Cost: a meta-step, run eagerly.
    """
    method = gradient or maml.gradient
    if not isinstance(method, Implicit):
        raise ValueError(f"gradient={method}: implicit_error is about gradients.Implicit(...).")
    if not maml.steps:
        raise ValueError("steps=0: implicit_error needs an inner loop.")
    held = maml._stock.take(maml.module)
    with torch.inference_mode(False), torch.enable_grad():
        call = plan(maml, held, admit(maml, held, episodes, maml.steps, "eager"), method, "eager")
        parts = [method.error(part.loop(), part.meta) for part in call.parts(call.program.chunk)]
    return ImplicitError(*map(torch.cat, zip(*parts, strict=True)))
