"""Embeddings that adapt by rows: whatever else a model does with its table, as the plain loop."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hand_loop import hand_loop
from torch import Tensor, nn

import fastmaml as fm

ROWS = 3000


def _looked_up(x: Tensor, w: Tensor) -> Tensor:
    return F.embedding(x, w).mean(1)


def _by_size(x: Tensor, w: Tensor) -> Tensor:
    return _looked_up(x, w) * w.shape[0] ** 0.5 / 10


def _by_length(x: Tensor, w: Tensor) -> Tensor:
    return _looked_up(x, w) * len(w) ** 0.5 / 10


def _padded_from_the_end(x: Tensor, w: Tensor) -> Tensor:
    return F.embedding(x, w, padding_idx=-7).mean(1)


def _sometimes_whole(x: Tensor, w: Tensor) -> Tensor:
    found = _looked_up(x, w)
    return found + w.mean(0) if float(x.double().mean()) > ROWS / 2 else found


def _sometimes_others(x: Tensor, w: Tensor) -> Tensor:
    return _looked_up(x.flip(-1) // 2 if x.flatten().tolist()[0] > ROWS / 2 else x, w)


def _by_how_many(x: Tensor, w: Tensor) -> Tensor:
    found = _looked_up(x, w)
    return found + w.sum(0) if len((x > ROWS / 2).nonzero()) > x.numel() / 2 else found


@functools.lru_cache
def _script() -> Any:
    return torch.jit.script(_mean)


def _mean(w: Tensor) -> Tensor:
    return w.mean(0)


def _in_a_script(x: Tensor, w: Tensor) -> Tensor:
    found: Tensor = _looked_up(x, w) + _script()(w)
    return found


class Texts(nn.Module):
    """Does something with a table, and then classifies."""

    def __init__(self, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, 4, dtype=torch.float64)
        self.last = nn.Linear(4, 3, dtype=torch.float64)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.use(x, self.table.weight))


def _episodes(tasks: int, seed: int) -> fm.Episodes:
    """Low indices at first, and a padding one among them."""
    torch.manual_seed(seed)
    highest = ROWS if seed else ROWS // 4

    def batch(examples: int) -> fm.Batch:
        x = torch.randint(0, highest, (tasks, examples, 5))
        x[:, 0, 0] = ROWS - 7
        return fm.Batch(x, torch.randint(0, 3, (tasks, examples)))

    return fm.Episodes(batch(4), batch(5))


@pytest.mark.sampled(at_most=1)
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("executor", ["eager", None])
@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize(
    ("use", "by_rows"),
    [
        (_looked_up, True),
        (_by_size, False),
        (_by_length, False),
        (_padded_from_the_end, False),
        (_sometimes_whole, False),
        (_sometimes_others, False),
        (_by_how_many, False),
        (_in_a_script, False),
    ],
)
def test_whatever_else_is_done_with_the_table(
    use: Callable[[Tensor, Tensor], Tensor], by_rows: bool, tasks: int, executor: str | None
) -> None:
    torch.manual_seed(0)
    model = Texts(use)
    maml = fm.MAML(
        model, lr=0.4, steps=2, loss=F.cross_entropy, executor=executor, spot_checks=False
    )
    for seed in range(5):
        batch = _episodes(tasks, seed)
        if seed == 0:  # that plan serves the others
            assert bool(maml.explain(batch).tables) is by_rows
        _, expected = hand_loop(model, F.cross_entropy, batch, lr=0.4, steps=2)
        maml(batch).loss.backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-12)
            p.grad = None
