"""What the inner loop descends: losses whose gradient is the policy gradient.

All have the right gradient; they differ in the Hessian, which is what MAML differentiates. The
figures are of enumerated problems in float64 (tests/rl/test_surrogates.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.distributions import Distribution


@dataclass(frozen=True)
class Surrogate(ABC):
    """A loss of one task's trajectories, the mean over the steps that count.

    Attributes:
        explores: whether its derivative takes the actions as given, so that how they are chosen is
            for the outer objective to count (`Outer.exploration`).
    """

    explores: ClassVar[bool] = False

    def loss(self, distribution: Distribution, data: Mapping[str, Any]) -> Tensor:
        """A scalar.

        Args:
            distribution: of actions ``[steps, n]``, by the policy as it is by now.
            data: of one task: "actions" ``[steps, n, ...]``; "advantages", "mask" (1 or 0) and
                "log_probs" ``[steps, n]``, the last by the policy that acted.
        """
        log_probs, mask = distribution.log_prob(data["actions"]), data["mask"]
        if log_probs.shape != mask.shape:
            raise ValueError(
                f"the policy's log-probabilities have shape {list(log_probs.shape)} and the "
                f"advantages {list(mask.shape)}: a distribution over an action of several numbers "
                "is Independent(..., 1), whose log_prob gives one number for each action."
            )
        weights = self.weights(log_probs * mask, data["log_probs"] * mask)
        return -(weights * data["advantages"] * mask).sum() / mask.sum()

    @abstractmethod
    def weights(self, log_probs: Tensor, before: Tensor) -> Tensor:
        """``[steps, n]``: what multiplies the advantages.

        Args:
            log_probs: ``[steps, n]``, by the policy as it is by now, 0 where the mask is.
            before: the same by the policy that acted.
        """


@final
@dataclass(frozen=True)
class LogProb(Surrogate):
    """A·log π, as in MAML (Finn et al., 2017).

    Its Hessian lacks E[A ∇log π ∇log πᵀ], so the meta-gradient is biased: the Hessian is 140% off
    on a bandit, and 315% on a decision process of two steps. For comparisons, and for E-MAML: with
    ``exploration=True`` of the outer objective and advantages in units of the return
    (``GAE(discount=1, normalize=False)``) the meta-gradient is exact, that of the return after
    steps on the trajectories at hand.
    """

    explores: ClassVar[bool] = True

    def weights(self, log_probs: Tensor, before: Tensor) -> Tensor:
        """log π."""
        return log_probs


@final
@dataclass(frozen=True)
class LVC(Surrogate):
    """A·π/π_before: low-variance curvature (Rothfuss et al., 2019: ProMP). The default.

    Its Hessian is exact for one step and lacks the products of different steps' gradients beyond
    (4.7% on the decision process), which is what most of the variance comes from. Where the policy
    has moved since it acted, it weighs actions by importance.
    """

    def weights(self, log_probs: Tensor, before: Tensor) -> Tensor:
        """π/π_before."""
        return (log_probs - before).exp()


@final
@dataclass(frozen=True)
class LoadedDiCE(Surrogate):
    """Loaded DiCE (Farquhar et al., 2019, eq. 12): every derivative is right in expectation.

    It keeps the products of all steps' gradients, at the price of their variance.

    Args:
        decay: λ: how much earlier actions of a trajectory still count, from 0 (as LVC) to 1
            (exact).

    Raises:
        ValueError: a decay that is no number from 0 to 1.
    """

    decay: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay={self.decay!r}: give a number from 0 to 1.")

    def weights(self, log_probs: Tensor, before: Tensor) -> Tensor:
        """exp(Σ earlier and own) − exp(Σ earlier), of log π − log π_before, plus a constant."""
        ratios = log_probs - before
        steps = torch.arange(len(ratios), device=ratios.device)
        apart = steps.unsqueeze(1) - steps
        factors = torch.where(apart >= 0, self.decay ** apart.clamp(min=0).to(ratios.dtype), 0)
        through = factors.to(ratios.dtype) @ ratios
        return through.exp() - (through - ratios).exp()
