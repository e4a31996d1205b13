"""Context parameters: a few numbers that adapt for each task, in a network that does not."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fastmaml.episodes.checks import check_positive


class WithContext(nn.Module):
    """``module(concatenate(x, φ))`` with a vector φ that every task begins at zero and adapts.

    CAVIA (Zintgraf et al. 2019): ``MAML(WithContext(mlp(1 + 5, 1), 5), lr=1.0, scope="context",
    loss=...)`` adapts φ alone and meta-learns the network. φ is the frozen parameter ``context``,
    ``[size]``, which adapts from its value although it is frozen (`begins_anew`), and so is not
    meta-learned. An inner step costs a gradient by φ; adapted are `size` numbers a task.

    It maps ``[examples, ..., features]`` to what the module makes of ``[examples, ..., features +
    size]``. Not for images, whose layers have no place for it: see `FiLM`.

    The paper's setting, for sinusoids: 5 numbers, one inner step of rate 1, an MLP 40-40, 10 shots,
    25 tasks, Adam with 0.001.

    Args:
        module: takes `size` more features than there are.
        size: of φ.

    Raises:
        ValueError: a size that is not positive; in use, an input that is no floating-point tensor
            with features.
    """

    begins_anew: ClassVar[tuple[str, ...]] = ("context",)

    def __init__(self, module: nn.Module, size: int) -> None:
        super().__init__()
        check_positive(size=size)
        self.module = module
        self.context = nn.Parameter(torch.zeros(size), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """The module's output for `x` and the context."""
        if x.ndim < 2 or not x.is_floating_point():
            raise ValueError(
                f"WithContext takes floating-point [examples, ..., features], not {x.dtype} "
                f"{list(x.shape)}: put it behind the layer that makes features, or use models.FiLM."
            )
        context = self.context.expand(*x.shape[:-1], -1)
        result: Tensor = self.module(torch.cat([x, context], -1))
        return result


class FiLM(nn.Module):
    """γ·h + β for each channel, made of a vector φ that every task begins at zero and adapts.

    The context of CAVIA for convolutions (Zintgraf et al. 2019, section 3.3; Perez et al. 2018): a
    linear layer makes γ and β from φ, and begins such that a φ of zero changes nothing. Put it
    between layers of a network and adapt it alone: ``MAML(..., scope="*context")``. φ is the frozen
    parameter ``context``, ``[size]``, as in `WithContext`.

    It maps ``[examples, channels, ...]`` to the same shape. The paper's setting, for miniImageNet:
    one of 100 numbers behind the third of four convolutions, 2 inner steps of rate 1.

    Args:
        channels: of h.
        size: of φ.

    Raises:
        ValueError: a number that is not positive; in use, an input of other channels.
    """

    begins_anew: ClassVar[tuple[str, ...]] = ("context",)

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        check_positive(channels=channels, size=size)
        self.context = nn.Parameter(torch.zeros(size), requires_grad=False)
        self.linear = nn.Linear(size, 2 * channels)
        with torch.no_grad():
            self.linear.bias.copy_(torch.cat([torch.ones(channels), torch.zeros(channels)]))

    def forward(self, h: Tensor) -> Tensor:
        """The scaled and shifted `h`."""
        channels = self.linear.out_features // 2
        if h.ndim < 2 or h.shape[1] != channels:
            raise ValueError(
                f"FiLM(channels={channels}) takes [examples, {channels}, ...], not {list(h.shape)}."
            )
        scale, shift = self.linear(self.context).view(2, channels, *[1] * (h.ndim - 2)).unbind()
        return scale * h + shift
