"""One MAML in several threads at once."""

from __future__ import annotations

import copy
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from every_way import episodes
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm

THREADS, CALLS = 3, 4


class Slow(nn.Module):
    """Lets other threads run in the middle of a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).tanh()
        time.sleep(0.001)
        return self.b(h)


def make(model: Callable[[], nn.Module] = Slow, executor: Any = "eager") -> fm.MAML:
    torch.manual_seed(0)
    return fm.MAML(model().double(), lr=0.3, steps=2, loss=F.mse_loss, executor=executor)


def flat(loss: Tensor, own: list[nn.Parameter]) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, own)])


def gradient(maml: fm.MAML, own: list[nn.Parameter], given: fm.Episodes) -> Tensor:
    return flat(maml(given).loss, own)


def of_losses(maml: fm.MAML, own: list[nn.Parameter], given: fm.Episodes) -> Tensor:
    """The meta-step runs again in backward()."""
    return flat(maml(given).losses.square().sum(), own)


def evaluated(maml: fm.MAML, own: list[nn.Parameter], given: fm.Episodes) -> Tensor:
    return maml.evaluate(given).losses


def per_task(maml: fm.MAML, own: list[nn.Parameter], given: fm.Episodes) -> Tensor:
    @maml.per_task
    def run(learner: Any, support: fm.Batch, query: fm.Batch) -> Tensor:
        learner.adapt(F.mse_loss(learner(support.inputs), support.targets))
        return F.mse_loss(learner(query.inputs), query.targets)

    return flat(run(given).loss, own)


def adapted(maml: fm.MAML, own: list[nn.Parameter], given: fm.Episodes) -> Tensor:
    learner = maml.adapt_to(given.support.map(lambda x: x[0]))
    return torch.cat([p.detach().flatten() for p in learner.parameters()])


def cloned(maml: fm.MAML, own: list[nn.Parameter], given: fm.Episodes) -> Tensor:
    return torch.cat([p.detach().flatten() for p in maml.clone().parameters()])


def called(maml: fm.MAML, own: list[nn.Parameter], given: fm.Episodes) -> Tensor:
    return maml(given.query.inputs[0]).detach()


EVERYTHING = [gradient, of_losses, evaluated, per_task, adapted, cloned, called]


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("what", EVERYTHING, ids=lambda f: f.__name__)
def test_beside_meta_steps(what: Callable[..., Tensor]) -> None:
    maml, given = make(), episodes()
    own = list(maml.parameters())
    alone = what(maml, own, given)

    def repeated(number: int) -> list[Tensor]:
        return [(what if number else gradient)(maml, own, given) for _ in range(CALLS)]

    with ThreadPoolExecutor(THREADS) as pool:
        of_threads = list(pool.map(repeated, range(THREADS)))
    for found in of_threads[1:]:
        for x in found:
            torch.testing.assert_close(x, alone, rtol=1e-12, atol=0)
    assert all(isinstance(p, nn.Parameter) for p in maml.module.parameters())


def test_recordings() -> None:
    maml, given = make(lambda: nn.Linear(3, 2), "captured"), episodes()
    own = list(maml.parameters())
    alone = gradient(maml, own, given)
    with ThreadPoolExecutor(THREADS) as pool:
        for x in pool.map(lambda _: gradient(maml, own, given), range(2 * THREADS)):
            torch.testing.assert_close(x, alone, rtol=1e-12, atol=0)


def test_copies_take_turns_of_their_own() -> None:
    maml = make(lambda: nn.Linear(3, 2))
    for twin in (copy.deepcopy(maml), pickle.loads(pickle.dumps(maml))):
        assert twin._turns is not maml._turns
        found, expected = (gradient(m, list(m.parameters()), episodes()) for m in (twin, maml))
        torch.testing.assert_close(found, expected)
