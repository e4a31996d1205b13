"""ALFA: rates and decays that a small network makes from what the task does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmaml.rules.base import Rule, State, Tensors, require_at_least_zero, require_rate


@final
@dataclass(frozen=True)
class ALFA(Rule):
    """θ' = (1 − β)∘θ − α∘g, both generated for each task, layer and step (Baik et al., 2020).

    A "layer" is one parameter tensor, and N is their number. The means of the weights and of the
    gradients of each layer, ``[2N]`` numbers, go through two linear layers of width 2N with a ReLU
    between them, which give N factors of α and N of β; each is multiplied by a learned number of
    its layer and step. All is meta-learned, and differentiated through.

    The paper begins the network as any other. Here its last biases begin such that all factors are
    1 where all means are 0, so that the rule begins near gradient descent with rate `lr` and decay
    `decay`, and can replace `SGD` in a run that is tuned. Steps beyond those that were learned take
    the last step's numbers. Learns 8N² + 4N numbers, and 2N a step; costs a mean of all weights and
    gradients a step.

    The paper's setting: lr = 0.01, 5 steps, on miniImageNet and tieredImageNet.

    Args:
        lr: what α begins near.
        decay: what β begins near: the authors' code has 0.0005 times a rate of 0.01.
        seed: of the network's first weights.

    Raises:
        ValueError: a rate or decay that is negative or not finite, or a seed that is none; when it
            is used for a complex parameter, whose mean is no number for a network.
    """

    lr: float
    decay: float = 5e-6
    seed: int = 0
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_rate("ALFA", self.lr)
        require_at_least_zero("ALFA", "decay", self.decay)
        if type(self.seed) is not int or self.seed < 0:
            raise ValueError(f"ALFA(seed={self.seed!r}): give a whole number of at least 0.")

    def rates(self, parameters: Mapping[str, Tensor], steps: int) -> Tensors:
        """The network, and ``name.rate`` and ``name.decay`` of each parameter, ``[steps]``."""
        if not parameters:
            return {}
        first, width = next(iter(parameters.values())), 2 * len(parameters)
        for name, p in parameters.items():
            _require_real(name, p)

        def full(count: int, value: float) -> Tensor:
            return torch.full((count,), value, dtype=first.dtype, device=first.device)

        generator = torch.Generator().manual_seed(self.seed)  # the user's is left alone

        def drawn(*shape: int) -> Tensor:
            x = torch.empty(shape, dtype=first.dtype).uniform_(
                -(width**-0.5), width**-0.5, generator=generator
            )
            return x.to(first.device)

        hidden, bias, output = drawn(width, width), drawn(width), drawn(width, width)
        found = {
            "hidden.weight": hidden,
            "hidden.bias": bias,
            "output.weight": output,
            "output.bias": 1 - output @ bias.relu(),
        }
        for name in parameters:
            found[f"{name}.rate"] = full(max(steps, 1), float(self.lr))
            found[f"{name}.decay"] = full(max(steps, 1), float(self.decay))
        return found

    def update(
        self, step: int, gradients: Tensors, state: State, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, State]:
        """−β∘θ − α∘g of each parameter, and no state."""
        if not gradients:
            return {}, state
        dtype = rates["hidden.weight"].dtype
        means = [_mean(parameters[n]).to(dtype) for n in gradients]
        means += [_mean(g).to(dtype) for g in gradients.values()]
        hidden = F.linear(torch.stack(means, 1), rates["hidden.weight"], rates["hidden.bias"])
        factors = F.linear(hidden.relu(), rates["output.weight"], rates["output.bias"])
        alphas, betas = factors.unbind(1)[: len(gradients)], factors.unbind(1)[len(gradients) :]
        updates = {}
        for (name, g), alpha, beta in zip(gradients.items(), alphas, betas, strict=True):
            at = min(step, len(rates[f"{name}.rate"]) - 1)
            shape = -1, *[1] * (g.ndim - 1)
            rate = (alpha * rates[f"{name}.rate"][at]).to(g.dtype).view(shape)
            decay = (beta * rates[f"{name}.decay"][at]).to(g.dtype).view(shape)
            updates[name] = -decay * parameters[name] - rate * g
        return updates, state


def _require_real(name: str, p: Tensor) -> None:
    if p.is_complex():
        raise ValueError(
            f"ALFA cannot take the mean of {name!r}, which is {p.dtype}, into its network: leave "
            "it out with scope=, or take LSLR."
        )


def _mean(x: Tensor) -> Tensor:
    """Of each task, ``[tasks]``; 0 of what has no elements."""
    return x.reshape(len(x), -1).sum(1) / max(x[0].numel(), 1)
