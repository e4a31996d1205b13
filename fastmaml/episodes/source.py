"""`EpisodeSource`: an endless, seeded stream of meta-batches that can be saved and resumed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import final

import torch
from torch import Tensor

from fastmaml.episodes.batch import Episodes


class EpisodeSource(ABC):
    """An infinite iterable of `Episodes`: ``for episodes in source``.

    Every random number comes from a `torch.Generator` of its own, on the device of the episodes, so
    that nothing else in the program changes which episodes are drawn and drawing never waits for
    the device. A source of your own draws from ``self.generator`` in `sample`.

    Args:
        seed: of the generator.
        device: where episodes are made.
    """

    def __init__(self, seed: int, device: torch.device | str) -> None:
        # The canonical form ("cuda" has an index once a tensor lies there).
        self.device = torch.empty(0, device=device).device
        self.generator = torch.Generator(self.device).manual_seed(seed)

    @abstractmethod
    def sample(self) -> Episodes:
        """The next meta-batch, drawn from ``self.generator``."""

    @property
    def shares_draws(self) -> bool:
        """Whether the tasks of a meta-batch have a draw in common, such as their number of ways.

        They are no independent sample of tasks then, and an evaluation says so by its intervals.
        """
        return False

    def __iter__(self) -> Iterator[Episodes]:
        return _Stream(self)

    def state_dict(self) -> dict[str, Tensor]:
        """Where the stream is: ``generator``, a uint8 tensor on the CPU."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken, on the same kind of device.

        Raises:
            ValueError: the state is not of a source on this kind of device.
        """
        current = self.generator.get_state()
        saved = state.get("generator")
        if saved is None or saved.dtype != torch.uint8 or saved.shape != current.shape:
            raise ValueError(
                f"this is no state of an episode source on {self.device.type}: it needs one entry, "
                f"'generator', a uint8 tensor of {current.numel()} bytes, as state_dict() returns "
                "it. Generators of different kinds of devices cannot continue one another: resume "
                "on the kind of device that the state was saved on, or start with a new seed."
            )
        self.generator.set_state(saved.cpu().contiguous())


@final
class _Stream(Iterator[Episodes]):
    """The meta-batches of a source, which it still knows."""

    def __init__(self, source: EpisodeSource) -> None:
        self.source = source

    def __next__(self) -> Episodes:
        return self.source.sample()
