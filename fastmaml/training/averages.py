"""`Averages`: a running average of the meta-parameters, which often does better than the last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn


@final
class Averages:
    """An exponential moving average (Polyak and Juditsky, 1992) of everything that is trained.

    It begins with the weights as they are. Of the average of the iteration before, the share
    min(decay, (1 + n)/(10 + n)) is kept at iteration n, so that short runs forget how they began.
    Averages of 16-bit weights are float32. Buffers are not averaged.

    Args:
        module: whose trainable parameters are averaged.
        decay: the share that is kept, less than 1.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        with torch.no_grad():
            own = {id(p): _precise(p) for p in module.parameters() if p.requires_grad}
        # Tied weights have several names, and one average.
        names = module.named_parameters(remove_duplicate=False)
        self._averages = {name: own[id(p)] for name, p in names if p.requires_grad}

    @torch.no_grad()
    def update(self, module: nn.Module, iteration: int) -> None:
        """After an iteration.

        Args:
            module: the same, or another with the same names.
            iteration: its number, from 1.
        """
        share = 1 - min(self.decay, (1 + iteration) / (10 + iteration))
        for name, p in module.named_parameters():
            if name in self._averages:
                average = self._averages[name]
                average.lerp_(p.detach().to(average.dtype), share)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, by the names of the parameters."""
        return dict(self._averages)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        for name, average in self._averages.items():
            average.copy_(state[name])


def _precise(p: Tensor) -> Tensor:
    return p.detach().clone().to(torch.promote_types(p.dtype, torch.float32))
