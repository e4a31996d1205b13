"""Habits of ordinary models, which are no reason to run eagerly or to record again at each call."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from hand_loop import hand_loop
from outcomes import as_by_hand, recordings, vectors
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.engine.guards.plans import RETRY_INTERVAL


class Named(nn.Module):
    """Its attributes are called as things that reach the outside world."""

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Linear(3, 2)
        self.exists, self.open, self.submit = True, 2.0, 1.0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.input(x) * self.open * self.submit
        return y if self.exists else x


class Counted(nn.Sequential):
    """Counts and logs, in a class that derives from a library's."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.calls = 0
        self.log: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = super().forward(x)
        self.log.append(tuple(y.shape))
        return y


@functools.lru_cache(maxsize=128)
def positions(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.float64)[:, None].cos()


class Cached(nn.Linear):
    """Makes what it needs for a length once, as tables of positions are made."""

    def __init__(self) -> None:
        super().__init__(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + positions(len(x))


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("made", [Named, Counted])
def test_one_recording_does(made: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = made().double()
    maml = fm.MAML(model, lr=0.3, steps=2, loss=F.mse_loss)
    for seed in range(4):
        as_by_hand(maml, vectors(seed=seed))
    assert recordings(maml) == 1


def test_two_lengths_take_turns() -> None:
    """One recording for each; what one of them makes is no change for the other."""
    positions.cache_clear()
    torch.manual_seed(0)
    maml = fm.MAML(Cached().double(), lr=0.3, steps=2, loss=F.mse_loss)
    for seed in range(8):
        as_by_hand(maml, vectors(examples=4 + seed % 2, seed=seed))
    assert recordings(maml) <= 3  # the first was made before the other length was there


class Annealed(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 2)
        self.k = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.k


@pytest.mark.slow
def test_a_number_that_changes_with_every_call(caplog: pytest.LogCaptureFixture) -> None:
    """After a few calls it runs eagerly, without another plan at each; until it comes to rest."""
    torch.manual_seed(0)
    model = Annealed().double()
    maml = fm.MAML(model, lr=0.3, steps=2, loss=F.mse_loss)

    def call(seed: int) -> None:
        expected = hand_loop(model, F.mse_loss, vectors(seed=seed), 0.3, 2)[0]
        torch.testing.assert_close(maml(vectors(seed=seed)).loss.detach(), expected)

    for seed in range(12):
        call(seed)
        model.k *= 0.9
    assert any("changes with every call" in record.message for record in caplog.records)
    assert len(maml._plans) <= 10
    for seed in range(RETRY_INTERVAL + 2):
        call(seed)
    as_by_hand(maml, vectors())
    assert recordings(maml) >= 1
