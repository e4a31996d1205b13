"""Policies: modules that give a distribution of actions for what is seen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal, kl_divergence

from fastmaml.engine.base.distributions import Parts


class GaussianPolicy(nn.Module):
    """Independent normal distributions, their means by a network, their deviations parameters.

    Weights begin as in Glorot and Bengio (2010), biases at zero. Any other `nn.Module` that
    returns a `torch.distributions.Distribution` is a policy, too.

    Args:
        observations: how many numbers are seen.
        actions: how many numbers an action has.
        hidden: units of each hidden layer, with tanh.
        deviation: that the standard deviations begin with.
        least_deviation: what the exponential of the parameter is added to, so that no action
            becomes certain.
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
        if not 0 < least_deviation < deviation < math.inf:
            raise ValueError(
                f"deviation={deviation!r}, least_deviation={least_deviation!r}: give positive "
                "numbers, the least one below the other."
            )
        self.mean = network(observations, hidden, actions)
        start = math.log(deviation - least_deviation)
        self.log_deviation = nn.Parameter(torch.full((actions,), start))
        self.least_deviation = least_deviation

    def forward(self, observations: Tensor) -> Independent:
        """Of actions ``[..., actions]``, for observations ``[..., observations]``."""
        deviation = self.log_deviation.exp() + self.least_deviation
        return DiagonalNormal(self.mean(observations), deviation)


@final
class DiagonalNormal(Independent):
    """Independent normal distributions with the same deviations for all of a batch.

    As it is made, the density needs one logarithm for each deviation, not one for each action; all
    else is as of ``Independent(Normal(mean, deviation), 1)``.

    Args:
        mean: ``[..., actions]``.
        deviation: ``[actions]``.
    """

    left_out: ClassVar[tuple[str, ...]] = ("deviation",)
    """What `Parts` need not keep."""

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__(Normal(mean, deviation, validate_args=False), 1, validate_args=False)
        self.deviation = deviation

    def log_prob(self, value: Tensor) -> Tensor:
        """The logarithm of the density, ``[...]``, at actions ``[..., actions]``."""
        deviation = vars(self).get("deviation", self.base_dist.scale)
        apart = (value - self.base_dist.loc) / deviation
        same = deviation.log() + 0.5 * math.log(2 * math.pi)
        return -0.5 * (apart * apart).sum(-1) - same.sum(-1)


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
