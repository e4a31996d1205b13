"""`Recipe`: what a kind of data set needs, besides what all have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastmaml.engine.model.scope import Scope
from fastmaml.episodes import Episodes
from fastmaml.heads import Head
from fastmaml.training.metrics import Choice


class Recipe(ABC):
    """From a configuration to model, loss, scope, head and episodes."""

    @abstractmethod
    def model(self) -> nn.Module:
        """The model, on the CPU; made from PyTorch's random state where it is not pretrained."""

    @abstractmethod
    def loss(self) -> Callable[[Any, Any], Tensor]:
        """The loss of one task: a function of outputs and targets that gives a scalar."""

    @abstractmethod
    def scope(self, model: nn.Module) -> Scope:
        """What adapts in the inner loop; see `MAML`'s argument of this name."""

    @abstractmethod
    def head(self) -> Head | None:
        """How each task's own last layer begins; None for the model's own."""

    @abstractmethod
    def metrics(self) -> Choice:
        """What evaluations measure besides accuracy or loss.

        Raises:
            ValueError: an unknown metric, or one that is of none of the tasks.
            ImportError: what computes one is missing.
        """

    def dtype(self, asked: torch.dtype) -> torch.dtype | None:
        """What all of the model becomes; None leaves it as it is."""
        return asked

    @property
    @abstractmethod
    def validated(self) -> bool:
        """Whether there is a split "validation"."""

    @abstractmethod
    def episodes(self, split: str, seed: int, device: torch.device) -> Any:
        """The meta-batches of a split: an iterable with ``state_dict`` and ``load_state_dict``."""

    def check_source(self, source: Any, state: Any, moved: bool) -> None:
        """Raise a ValueError where `source` may hold out what a run was trained on.

        Args:
            source: what `episodes` gave.
            state: of the run's training episodes, from its checkpoint.
            moved: whether the source is of other data on purpose.
        """
        return None


class Converted:
    """A source whose floating-point tensors come in another precision."""

    def __init__(self, source: Any, dtype: torch.dtype) -> None:
        self.source, self.dtype = source, dtype
        self.total = getattr(source, "total", None)  # of a finite set
        if hasattr(source, "state_dict"):  # finite sets begin anew each time
            self.state_dict, self.load_state_dict = source.state_dict, source.load_state_dict

    def __iter__(self) -> Iterator[Episodes]:
        return (batch.to(dtype=self.dtype) for batch in self.source)
