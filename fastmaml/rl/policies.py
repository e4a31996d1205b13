"""Policies: modules that give a distribution of actions for what is seen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal, kl_divergence

from fastmaml.engine.base.distributions import Parts


class GaussianPolicy(nn.Module):
    """Independent normal distributions, their means by a network, their deviations parameters.

    Weights begin as in Glorot and Bengio (2010), biases at zero. Any other `nn.Module` that
    returns a `torch.distributions.Distribution` is a policy, too; give its distributions
    ``validate_args=False``, as checking them reads values, which a recorded meta-step cannot.

    Args:
        observations: how many numbers are seen.
        actions: how many numbers an action has.
        hidden: units of each hidden layer, with tanh.
        deviation: that the standard deviations begin with.
        least_deviation: they never fall below it, so that no action becomes certain.
    """

    def __init__(
        self,
        observations: int,
        actions: int,
        hidden: Sequence[int] = (64, 64),
        deviation: float = 1.0,
        least_deviation: float = 1e-3,
    ) -> None:
        super().__init__()
        if not 0 < least_deviation <= deviation < math.inf:
            raise ValueError(
                f"deviation={deviation!r}, least_deviation={least_deviation!r}: give positive "
                "numbers, the least one not above the other."
            )
        self.mean = network(observations, hidden, actions)
        self.log_deviation = nn.Parameter(torch.full((actions,), math.log(deviation)))
        self.least_log_deviation = math.log(least_deviation)

    def forward(self, observations: Tensor) -> Independent:
        """Of actions ``[..., actions]``, for observations ``[..., observations]``."""
        deviation = self.log_deviation.clamp(min=self.least_log_deviation).exp()
        normal = Normal(self.mean(observations), deviation, validate_args=False)
        return Independent(normal, 1, validate_args=False)


class CategoricalPolicy(nn.Module):
    """One of some actions, its logits by a network.

    Args:
        observations: how many numbers are seen.
        actions: how many actions there are.
        hidden: units of each hidden layer, with tanh; none: a linear policy.
    """

    def __init__(self, observations: int, actions: int, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        self.logits = network(observations, hidden, actions)

    def forward(self, observations: Tensor) -> Categorical:
        """Of actions ``[...]`` int64, for observations ``[..., observations]``."""
        return Categorical(logits=self.logits(observations), validate_args=False)


def network(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear layers with tanh between them."""
    sizes, layers = (inputs, *hidden, outputs), list[nn.Module]()
    for i, (before, after) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.Tanh()] if i else []
        layers.append(nn.Linear(before, after))
        nn.init.xavier_uniform_(layers[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(layers[-1].bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers)


def divergence(p: Distribution, q: Distribution) -> Tensor:
    """KL(p ‖ q), without reading values where PyTorch's own would (`Categorical`).

    Its derivative by the tensors of q is zero where both are the same.
    """
    if type(p) is Categorical and type(q) is Categorical:
        return (p.logits.exp() * (p.logits - q.logits.log_softmax(-1))).sum(-1)
    return kl_divergence(p, q)


def parts_of(distribution: Any) -> Parts:
    """The tensors of what a policy returned.

    Raises:
        TypeError: it is no distribution.
    """
    if not isinstance(distribution, Distribution):
        raise TypeError(
            f"the policy returned a {type(distribution).__name__}: a policy is a module that "
            "returns a torch.distributions.Distribution of actions."
        )
    return Parts.of(distribution)
