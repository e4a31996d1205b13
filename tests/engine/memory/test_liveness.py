"""What the walk of a tape says is alive, against what is alive when it is replayed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastmaml as fm
from fastmaml.engine.memory.live import Alive, LiveMemory
from fastmaml.engine.memory.liveness import alive_in
from fastmaml.engine.recording.optimize import cleaned
from fastmaml.engine.recording.replay_code import compiled
from fastmaml.engine.recording.tape import record

N = 256
KB = 4 * N


def in_place(x: Tensor) -> list[Tensor]:
    return [((x + 1) * 2 - 3).neg().exp()]


def views(x: Tensor) -> list[Tensor]:
    y = x.exp().view(16, 16)
    return [y.t() @ y[2:4].t(), y[0].sin()]


def several_results(x: Tensor) -> list[Tensor]:
    values, _ = x.view(16, 16).max(dim=0)
    left, right = values.exp().split(8)
    return [left * right]


def shared_and_unused(x: Tensor) -> list[Tensor]:
    x.cos()
    return [x.sin() + x.sin() * x.sin().sum()]


def written_to(x: Tensor) -> list[Tensor]:
    y = torch.zeros(2, N)
    y[0] = x.exp()
    return [y.sum(0)]


@pytest.mark.parametrize(
    "function", [in_place, views, several_results, shared_and_unused, written_to]
)
def test_as_in_a_replay(function: Callable[[Tensor], list[Tensor]]) -> None:
    x = torch.randn(N)
    tape = cleaned(record(function, [x.clone()])[0])
    before, after = alive_in(tape, ())
    run = compiled(tape)
    with LiveMemory() as memory:
        results = run(x)
    assert max(alive.bytes for alive in after) == memory.peak_bytes
    assert before[0] == Alive()
    assert before[-1].bytes == memory.live_bytes > 0
    del results


def test_bytes_of_a_marked_size_are_told_apart() -> None:
    def function(x: Tensor) -> list[Tensor]:
        return [x.exp().repeat(2), x.sin()]

    tape = cleaned(record(function, [torch.randn(N)])[0])
    before, after = alive_in(tape, {KB})
    assert [*after, before[-1]] == [(KB, KB), (3 * KB, KB), (3 * KB, KB), (3 * KB, KB)]


@pytest.mark.parametrize("executor", [None, "eager"])
@pytest.mark.parametrize("steps", [2, 7])
def test_a_step_of_checkpointed_is_one_copy_to_the_byte(executor: str | None, steps: int) -> None:
    model = fm.models.mlp(1, 1, (40, 40))
    x = torch.randn(4, 10, 1)
    batch = fm.Batch(x, x.sin())
    options = {"gradient": fm.gradients.Checkpointed(), "executor": executor}
    maml = fm.MAML(model, lr=0.1, steps=steps, loss=torch.nn.functional.mse_loss, **options)
    copy = sum(p.nbytes for p in model.parameters())
    assert maml.explain(fm.Episodes(batch, batch)).law.per_step == copy
