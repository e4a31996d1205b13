"""How adapted policies make a better policy to begin with: objectives of the outer loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

if TYPE_CHECKING:
    from fastmaml.rl.learner import MetaPolicy


@dataclass(frozen=True, kw_only=True)
class Outer(ABC):
    """What the trajectories of adapted policies are for.

    Attributes:
        exploration: add log π of the actions before adaptation times the return after it (E-MAML,
            Stadie et al., 2018): what the policy does before it adapts is then also chosen for what
            can be learned from it. With the surrogate `LogProb` alone: others count that, too.
        inner_kl: weight of KL(policy that acted ‖ policy now), averaged over inner steps.
    """

    exploration: bool = False
    inner_kl: float = 0.0

    def check(self, learner: MetaPolicy) -> None:  # noqa: B027  # most can be done with any
        """Raise ValueError where this cannot be done with such a learner."""

    @abstractmethod
    def loss(self, distribution: Distribution, data: Mapping[str, Any]) -> Tensor:
        """A scalar of one task's trajectories after adaptation; see `Surrogate.loss`."""

    @abstractmethod
    def update(
        self, learner: MetaPolicy, batches: Sequence[Any], query: Any, optimizer: Optimizer | None
    ) -> dict[str, float]:
        """Move the meta-parameters, and say what happened.

        Args:
            learner: whose.
            batches: data of the inner steps, all tasks.
            query: the same of the adapted policies.
            optimizer: of the meta-parameters, where one is used.
        """


def ratios(distribution: Distribution, data: Mapping[str, Any]) -> Tensor:
    """π/π_before of the actions, ``[steps, n]``; 1 where the mask is."""
    apart = distribution.log_prob(data["actions"]) - data["log_probs"]
    return (apart * data["mask"]).exp()


def mean(x: Tensor, data: Mapping[str, Any]) -> Tensor:
    """Over the steps that count."""
    mask: Tensor = data["mask"]
    return (x * mask).sum() / mask.sum()


@dataclass(frozen=True, kw_only=True)
class Ascent(Outer):
    """Steps of an optimizer on the same trajectories.

    Attributes:
        epochs: how many.
        clip_norm: the largest norm of the meta-gradient; None: as it is.
    """

    epochs: int = 1
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.epochs, int) and self.epochs >= 1):
            raise ValueError(f"epochs={self.epochs!r}: give a whole number of at least 1.")

    def update(
        self, learner: MetaPolicy, batches: Sequence[Any], query: Any, optimizer: Optimizer | None
    ) -> dict[str, float]:
        """`epochs` steps; the trajectories are held to the policy that is said to have acted."""
        if optimizer is None:
            raise ValueError(f"{type(self).__name__} needs an optimizer of the meta-parameters.")
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        losses, norm, found = [], torch.zeros(()), {}
        for epoch in range(self.epochs):
            optimizer.zero_grad()
            out = learner.meta_step(batches, query)
            if epoch == 0:
                learner.check_behaviour(out.outputs["apart"])
            out.loss.backward()
            norm = clip_grad_norm_(parameters, self.clip_norm or float("inf"))
            optimizer.step()
            losses.append(out.loss.item())
            found = {"kl": out.outputs["kl"].detach().mean().item()}
        return {"loss": losses[0], "gradient_norm": norm.item(), **found}


@final
@dataclass(frozen=True, kw_only=True)
class VPG(Ascent):
    """The policy gradient after adaptation: A·π/π_before, whose ratio is 1 in the first epoch."""

    def loss(self, distribution: Distribution, data: Mapping[str, Any]) -> Tensor:
        """−mean(A·ratio)."""
        return -mean(ratios(distribution, data) * data["advantages"], data)


@final
@dataclass(frozen=True, kw_only=True)
class PPO(Ascent):
    """The clipped objective of Schulman et al. (2017); with the surrogate `LVC` this is ProMP.

    ProMP: Rothfuss et al. (2019), whose defaults these are: 5 epochs, clip 0.3 and a weight of
    5e-4 of the divergence at the inner steps.

    Args:
        clip: how far ratios go before they gain nothing more.
    """

    clip: float = 0.3
    epochs: int = 5
    inner_kl: float = 5e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.clip < 1:
            raise ValueError(f"clip={self.clip!r}: give a number between 0 and 1.")

    def loss(self, distribution: Distribution, data: Mapping[str, Any]) -> Tensor:
        """−mean(min(A·ratio, A·clipped ratio))."""
        ratio, advantages = ratios(distribution, data), data["advantages"]
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        return -mean(torch.minimum(ratio * advantages, clipped * advantages), data)
