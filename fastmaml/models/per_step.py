"""Modules that know at which inner step they run: tables of which each step has a row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary


def per_step(table: Tensor, step: int | None = None) -> Tensor:
    """The row ``[...]`` of the table ``[steps, ...]`` for the inner step at hand.

    Inside a meta-step that is the row of the pass that runs (`row_of_pass`), whatever `step` says.

    Args:
        table: has at least one row; beyond its last step that row counts.
        step: the row elsewhere; None for the last.
    """
    if has_torch_function_unary(table):
        found: Tensor = handle_torch_function(per_step, (table,), table, step)
        return found
    return table[-1 if step is None else min(step, len(table) - 1)]


def row_of_pass(step: int, query: bool) -> int:
    """Which row a pass takes: k on the support set of step k, k − 1 on the query set after k steps.

    So a query pass takes the row of the step before it, as in MAML++; before any step the first.
    """
    return max(step - 1, 0) if query else step


class PerStep(nn.Module):
    """A module with parameters of its own for every inner step; a base class.

    Inside a meta-step, whatever its gradient method and executor, `at_step` gives the row of the
    pass that runs: k for inner step k on the support set, k − 1 for the query set after k steps.
    Clones and per-task functions do not say which set they run on: there it is the number of steps
    that they have taken, so that after as many steps as there are rows it is the last one, as
    above. Copies of ``adapt_to`` keep the row of their last step.

    Attributes:
        inner_step: the row outside of a meta-step; None for the last. It is no part of
            ``state_dict()``. Loops of your own set it (`at_inner_step`).

    Examples:
        >>> class Shift(PerStep):
        ...     def __init__(self, features, steps):
        ...         super().__init__()
        ...         self.shift = torch.nn.Parameter(torch.zeros(steps, features))
        ...     def forward(self, x):
        ...         return x + self.at_step(self.shift)
    """

    inner_step: int | None = None

    def at_step(self, table: Tensor) -> Tensor:
        """The row ``[...]`` of the table ``[steps, ...]`` for the inner step at hand."""
        return per_step(table, self.inner_step)


def set_inner_step(model: nn.Module, step: int | None) -> None:
    """Let every `PerStep` module of the model take the row of that inner step.

    Args:
        model: changed in place.
        step: counted from 0; None for the last row.
    """
    for module in model.modules():
        if isinstance(module, PerStep) and module.inner_step != step:
            module.inner_step = step


@contextmanager
def at_inner_step(model: nn.Module, step: int | None) -> Iterator[None]:
    """Inside, every `PerStep` module of the model takes the row of that inner step.

    For inner loops written by hand; ``maml(episodes)`` needs no such thing.

    Args:
        model: as it was afterwards.
        step: counted from 0; None for the last row.
    """
    found = [module for module in model.modules() if isinstance(module, PerStep)]
    before = [module.inner_step for module in found]
    set_inner_step(model, step)
    try:
        yield
    finally:
        for module, own in zip(found, before, strict=True):
            module.inner_step = own
