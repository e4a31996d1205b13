"""How the last layer of a classifier begins, where every task has one of its own.

Tasks that share no classes, or have different numbers of them, gain nothing from a common last
layer. With a head of `MAML`, that layer is made anew for each task and then adapts with the rest;
it is not meta-learned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

__all__ = ["Head", "Prototype", "Zero"]


@dataclass(frozen=True)
class Head(ABC):
    """The first weights of a task's own linear layer; a subclass says which.

    It is differentiated with the rest of the meta-step: compute with tensors alone.

    Attributes:
        needs_features: whether they depend on what the model makes of the support set.
        needs_bias: whether they mean nothing in a layer without a bias, which is then refused.
    """

    needs_features: ClassVar[bool] = False
    needs_bias: ClassVar[bool] = False

    @abstractmethod
    def start(self, weight: Tensor, features: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        """The layer's weight ``[classes, width]`` and bias ``[classes]`` for one task.

        Runs as the model does: batched over tasks, and what it draws at random can be drawn again.
        The meta-gradient goes through it. Of a layer without a bias, that is left out.

        Args:
            weight: the model's own, for its shape, dtype and device only.
            features: ``[examples, width]``, the layer's inputs for the support set, differentiable;
                empty unless `needs_features`.
            targets: the support targets.
        """


@final
@dataclass(frozen=True)
class Zero(Head):
    """All classes equally likely: weight and bias are zero.

    Inner step 1 then moves the head alone where all that adapts lies before it (its gradient is
    zero while the weight is), so give the inner loop at least two steps. Costs nothing.
    """

    def start(self, weight: Tensor, features: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        """Zeros, in the shapes of the weight and the bias."""
        return torch.zeros_like(weight), weight.new_zeros(weight.shape[0])


@final
@dataclass(frozen=True)
class Prototype(Head):
    """The nearest class mean: Proto-MAML (Triantafillou et al., 2020, section 3.3).

    With c the mean of a class's support features, its row of the weight is 2·scale·c and its bias
    -scale·|c|², so that logits are -scale·|x - c|² up to a constant. The meta-gradient goes through
    the means. Classes that the support set lacks, and regressions of `losses.classification`, begin
    at zero. The model's last layer must have a bias, without which lengths cannot count (that of
    transformers' decoders has none). Cost: one more forward pass over the support set, and its
    derivative.

    Args:
        scale: of the squared distances; smaller is softer. 1 is the paper's.

    Raises:
        ValueError: a scale that is not positive.
    """

    scale: float = 1.0
    needs_features: ClassVar[bool] = True
    needs_bias: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.scale, bool) or not self.scale > 0:
            raise ValueError(f"Prototype(scale={self.scale!r}): give a positive number.")

    def start(self, weight: Tensor, features: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        """From the support set's class means."""
        labels = targets if isinstance(targets, Tensor) else targets["labels"]
        member = labels == torch.arange(len(weight), device=labels.device).unsqueeze(-1)
        if not isinstance(targets, Tensor):
            member = member & (targets["classes"] > 1)
        member = member.to(features.dtype)  # [classes, examples]
        means = member @ features / member.sum(1, keepdim=True).clamp(min=1)
        return 2 * self.scale * means, -self.scale * means.square().sum(1)
