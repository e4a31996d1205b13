"""What a meta-step depends on besides its arguments, so that running it again is the same."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

from fastmaml.engine.inventory import Inventory
from fastmaml.episodes.batch import Episodes


class Surroundings:
    """A context in which a meta-step runs, and runs again, under the autocast of the first time.

    autocast's cache of cast weights is off: within it every step's copies would stay alive.

    Args:
        model: whose modes must not change in between.
        episodes: which must not be written to in between.
        held: the model's tensors and modes now.

    Raises:
        RuntimeError: on entering, if they did.
    """

    def __init__(self, model: nn.Module, episodes: Episodes, held: Inventory) -> None:
        self.model, self.episodes = model, episodes
        self.device = held.device.type
        self.autocast = torch.is_autocast_enabled(self.device)
        self.dtype = torch.get_autocast_dtype(self.device)
        self.before = self._versions(), held.training
        self.ran = False
        self.entered: contextlib.ExitStack | None = None

    def __enter__(self) -> None:
        modes = (tuple(m.training for m in self.model.modules())) if self.ran else self.before[1]
        if (self._versions(), modes) != self.before:
            raise RuntimeError(
                "the episodes were written to, or the model changed between train() and eval(), "
                "after maml(episodes): the backward() of a loss of your own over out.losses or "
                "out.outputs needs both as they were."
            )
        self.ran = True
        self.entered = contextlib.ExitStack()
        if self.autocast or torch.is_autocast_enabled(self.device):
            self.entered.enter_context(
                torch.autocast(self.device, self.dtype, self.autocast, cache_enabled=False)
            )

    def __exit__(self, *error: Any) -> None:
        if self.entered is not None:
            self.entered.close()

    def _versions(self) -> list[int | None]:
        tensors = [*self.episodes.support.tensors(), *self.episodes.query.tensors()]
        return [None if x.is_inference() else x._version for x in tensors]
