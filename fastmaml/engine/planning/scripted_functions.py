"""TorchScript, whose functions pass by all that watches PyTorch's: what the graph says of them."""

from __future__ import annotations

import torch

from fastmaml.engine.derivatives.graphs import leaves
from fastmaml.engine.derivatives.own_derivatives import check_own
from fastmaml.engine.step.program import Call
from fastmaml.engine.step.user_function import UserFunction
from fastmaml.gradients.base import leaves_of


def check_scripts(call: Call) -> None:
    """Refuse the model's own parameter where a loss has it by a script.

    Costs a pass over the support set and one over the query set, where there are scripts.

    Raises:
        ValueError: as for PyTorch's own functions (`OwnDerivatives`).
    """
    program = call.program
    if not program.depends.scripted:
        return
    loop = call.tried(1).loop()
    with torch.enable_grad():
        meta = leaves_of(call.meta)
        if isinstance(program.method, UserFunction):
            losses = [program.method.query(loop, meta).losses]
        else:
            start = loop.start(meta).parameters
            losses = [
                *(loop.support_losses(step, start, meta.shared) for step in loop.sets),
                loop.query(0, start, meta.shared).losses,
            ]
    check_own(program.forward.model, leaves(losses))
