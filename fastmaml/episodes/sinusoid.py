"""`sinusoid`: the regression tasks of the MAML paper."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastmaml.episodes.batch import Batch, Episodes
from fastmaml.episodes.checks import check_positive
from fastmaml.episodes.source import EpisodeSource


class Sinusoid(EpisodeSource):
    """An infinite iterable of regression tasks; made by `sinusoid`."""

    def __init__(
        self, shots: int, queries: int, tasks: int, seed: int, device: torch.device | str
    ) -> None:
        check_positive(shots=shots, queries=queries, tasks=tasks)
        super().__init__(seed, device)
        self.shots, self.queries, self.tasks = shots, queries, tasks

    def sample(self) -> Episodes:
        """The next meta-batch, of tensors ``[tasks, shots, 1]`` and ``[tasks, queries, 1]``."""
        amplitude = self._uniform(0.1, 5.0, 1)
        phase = self._uniform(0.0, math.pi, 1)
        x = self._uniform(-5.0, 5.0, self.shots + self.queries)
        y = amplitude * torch.sin(x - phase)
        n = self.shots
        return Episodes(Batch(x[:, :n], y[:, :n]), Batch(x[:, n:], y[:, n:]))

    def _uniform(self, low: float, high: float, n: int) -> Tensor:
        unit = torch.rand(self.tasks, n, 1, generator=self.generator, device=self.device)
        return low + (high - low) * unit

    def __repr__(self) -> str:
        return (
            f"Sinusoid(shots={self.shots}, queries={self.queries}, tasks={self.tasks}, "
            f"device='{self.device}')"
        )


def sinusoid(
    shots: int = 10,
    queries: int = 10,
    tasks: int = 25,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Sinusoid:
    """Sinusoid regression (Finn et al. 2017, section 5.1): each task is y = A sin(x - p).

    The amplitude A is uniform from 0.1 to 5, the phase p from 0 to pi (radians) and x from -5 to 5.
    Inputs and targets are float32, ``[tasks, shots, 1]`` in the support set and
    ``[tasks, queries, 1]`` in the query set.

    Args:
        shots: support points a task.
        queries: query points a task.
        tasks: tasks a meta-batch.
        seed: of the source's own generator.
        device: where episodes are made; None for the CPU.

    Raises:
        ValueError: a number that is not positive.
    """
    return Sinusoid(shots, queries, tasks, seed, "cpu" if device is None else device)
