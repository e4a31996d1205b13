"""TorchScript, whose functions pass by all that watches PyTorch's: what the graph says of them."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmaml.engine.derivatives.graphs import leaves
from fastmaml.engine.derivatives.own_derivatives import check_own
from fastmaml.engine.step.inner_loop import Objective
from fastmaml.engine.step.meta_step import Program, inner_loop
from fastmaml.episodes.batch import Episodes
from fastmaml.gradients.base import Meta, leaves_of


def check_scripts(program: Program, meta: Meta, episodes: Episodes, seeds: Tensor) -> None:
    """Refuse the model's own parameter where a loss has it by a script.

    Costs a pass over the support set and one over the query set, where there are scripts.

    Raises:
        ValueError: as for PyTorch's own functions (`OwnDerivatives`).
    """
    if not program.depends.scripted:
        return
    objective = Objective(torch.ones(1, device=seeds.device), [0.0, 1.0])
    loop = inner_loop(program, episodes, seeds, objective)
    with torch.enable_grad():
        meta = leaves_of(meta)
        if program.function is not None:
            losses = [program.function.query(loop, meta).losses]
        else:
            start = loop.start(meta).parameters
            losses = [
                loop.support_losses(0, start, meta.shared),
                loop.query(0, start, meta.shared).losses,
            ]
    check_own(program.forward.model, leaves(losses))
