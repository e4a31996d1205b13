"""Rules one after another."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from fastmaml.rules.base import Rule, State, Tensors


@final
@dataclass(frozen=True)
class Chain(Rule):
    """Each rule's output is the next one's gradient; the last one moves the parameters.

    Args:
        rules: in the order in which they are applied; `chain` takes them one by one.

    Raises:
        ValueError: the last rule does not move the parameters, or another one does.
    """

    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        movers = [i for i, rule in enumerate(self.rules) if rule.moves]
        if movers != [len(self.rules) - 1]:
            names = ", ".join(type(rule).__name__ for rule in self.rules)
            raise ValueError(
                f"chain({names}): exactly one rule moves the parameters (SGD, Momentum, Adam, "
                "AdamW, MetaSGD, LSLR, MetaCurvature, KFO, ALFA), and it comes last, after those "
                "that shape the gradient "
                "(ClipNorm, ClipValue, WeightDecay, Proximal)."
            )

    @property
    def linear(self) -> bool:  # type: ignore[override]  # a chain's answer depends on its rules
        """Whether every rule is linear in the gradient."""
        return all(rule.linear for rule in self.rules)

    @property
    def by_row(self) -> bool:  # type: ignore[override]  # as above
        """Whether every rule is, and the decay of rows nowhere looked up counts in no norm."""
        apart = not (self.feeds_rows and self.mixes_rows)
        return apart and all(rule.by_row for rule in self.rules)

    @property
    def feeds_rows(self) -> bool:  # type: ignore[override]  # as above
        """Whether any rule gives an update to rows without a gradient."""
        return any(rule.feeds_rows for rule in self.rules)

    @property
    def mixes_rows(self) -> bool:  # type: ignore[override]  # as above
        """Whether in any rule what a row gets depends on the other rows' gradients."""
        return any(rule.mixes_rows for rule in self.rules)

    @property
    def proximal(self) -> float | None:  # type: ignore[override]  # as above
        """The sum of those that come first, where the others only scale what they are given."""
        strengths = [rule.proximal for rule in self.rules]
        pulls = [*itertools.takewhile(bool, strengths)]
        if None in strengths or any(strengths[len(pulls) :]):
            return None
        return sum(filter(None, pulls))

    def rates(self, parameters: Mapping[str, Tensor], steps: int) -> Tensors:
        """The rates of every rule, their names prefixed by the rule's place."""
        return {
            f"{i}.{name}": rate
            for i, rule in enumerate(self.rules)
            for name, rate in rule.rates(parameters, steps).items()
        }

    def init(self, parameters: Tensors) -> State:
        """The states of every rule."""
        return tuple(rule.init(parameters) for rule in self.rules)

    def update(
        self, step: int, gradients: Tensors, state: State, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, State]:
        """The last rule's update, and the states of every rule."""
        states = []
        for i, (rule, own) in enumerate(zip(self.rules, state, strict=True)):
            prefix = f"{i}."
            mine = {n.removeprefix(prefix): r for n, r in rates.items() if n.startswith(prefix)}
            gradients, new = rule.update(step, gradients, own, parameters, mine)
            states.append(new)
        return gradients, tuple(states)


def chain(*rules: Rule) -> Chain:
    """Compose rules: ``chain(ClipNorm(1.0), WeightDecay(1e-4), SGD(0.1))``.

    Args:
        rules: in the order in which they are applied. What they learn and carry adds up.

    Raises:
        ValueError: the last rule does not move the parameters, or another one does.
    """
    return Chain(rules)
