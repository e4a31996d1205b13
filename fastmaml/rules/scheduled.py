"""A rule whose updates shrink, or grow, from inner step to inner step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from fastmaml.rules.base import Rule, State, Tensors, require_at_least_zero


@final
@dataclass(frozen=True)
class Scheduled(Rule):
    """A rule's update of inner step k times the k-th factor; the last one holds from there on.

    ``Scheduled(SGD(0.1), (1, 0.5))`` halves the rate after the first step, as the MAML paper does
    where it adapts policies for several steps. Costs what the rule itself costs.

    Args:
        rule: moves the parameters.
        factors: one for each of the steps 0, 1, ...

    Raises:
        ValueError: no factor, or one that is negative or not finite; a rule that does not move.
    """

    rule: Rule
    factors: Sequence[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(self.factors))
        if not self.factors:
            raise ValueError(
                "Scheduled(factors=()): give a factor for each inner step, as (1, 0.5)."
            )
        for factor in self.factors:
            require_at_least_zero("Scheduled", "factors", factor)
        if not self.rule.moves:
            raise ValueError(
                f"Scheduled({type(self.rule).__name__}): give a rule that moves the parameters, or "
                "a chain that ends in one."
            )

    @property
    def linear(self) -> bool:  # type: ignore[override]  # it is the rule's to say
        """Whether the rule is."""
        return self.rule.linear

    @property
    def by_row(self) -> bool:  # type: ignore[override]  # as above
        """Whether the rule is."""
        return self.rule.by_row

    @property
    def feeds_rows(self) -> bool:  # type: ignore[override]  # as above
        """Whether the rule does."""
        return self.rule.feeds_rows

    @property
    def mixes_rows(self) -> bool:  # type: ignore[override]  # as above
        """Whether the rule does."""
        return self.rule.mixes_rows

    @property
    def proximal(self) -> float | None:  # type: ignore[override]  # as above
        """The rule's."""
        return self.rule.proximal

    def factor(self, step: int) -> float:
        """Of an inner step."""
        return self.factors[min(step, len(self.factors) - 1)]

    def rates(self, parameters: Mapping[str, Tensor], steps: int) -> Tensors:
        """The rule's."""
        return self.rule.rates(parameters, steps)

    def init(self, parameters: Tensors) -> State:
        """The rule's."""
        return self.rule.init(parameters)

    def update(
        self, step: int, gradients: Tensors, state: State, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, State]:
        """The rule's update times the factor, and the rule's state."""
        updates, state = self.rule.update(step, gradients, state, parameters, rates)
        return {name: self.factor(step) * update for name, update in updates.items()}, state

    def scaling(
        self, step: int, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, float] | None:
        """The rule's, with its factor times this one."""
        found = self.rule.scaling(step, parameters, rates)
        return None if found is None else (found[0], self.factor(step) * found[1])
