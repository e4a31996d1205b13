"""Sums in place never touch memory that is not theirs, and the recording that would is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from outcomes import CAPTURED, EAGER, outcome, vectors
from problems import tensor
from replays import check, names, recorded
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.engine.recording import captured
from fastmaml.engine.recording.memory_reuse import require_own_memory
from fastmaml.engine.recording.optimize import cleaned
from fastmaml.engine.recording.replay_code import compiled
from fastmaml.engine.recording.tape import Operation, UncapturableError

PROGRAMS: dict[str, Callable[[Tensor], list[Tensor]]] = {
    "view of ones": lambda x: [torch.ones(2, 4, 4, dtype=x.dtype)[0] * x],
    "view of zeros": lambda x: [torch.zeros(2, 4, 4, dtype=x.dtype)[1] + x],
    "reshaped range": lambda x: [torch.arange(16, dtype=x.dtype).view(-1, 4) + x],
    "transposed constant": lambda x: [torch.ones(4, 4, dtype=x.dtype).t() * x.relu()],
    "split constant": lambda x: [a * x for a in torch.ones(4, 8, dtype=x.dtype).chunk(2, 1)],
    "view of a view": lambda x: [torch.ones(2, 2, 16, dtype=x.dtype)[0][1].view(4, 4) * x],
    "twice, transposed once": lambda x: [x.softmax(-1) + x.softmax(-1).T],
    "twice, both transposed": lambda x: [x.exp().T + x.exp().T * 2],
    "twice, a row of one": lambda x: [x.exp() + x.exp()[0]],
    "of an input": lambda x: [x.T, x],
    "of a constant": lambda x: [torch.ones(4, dtype=x.dtype), x.sum()],
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_constants_and_shared_results(name: str) -> None:
    check(PROGRAMS[name], tensor(4, 4))


def test_results_are_the_callers() -> None:
    replay = compiled(
        cleaned(recorded(lambda x: [torch.ones(3), x.view(2, 3), x * 2], torch.ones(6)))
    )
    given = torch.arange(6.0)
    for _ in range(2):
        found = replay(given)
        assert torch.equal(found[0], torch.ones(3))
        for x in found:
            x.add_(1)
        assert torch.equal(given, torch.arange(6.0))


@pytest.mark.parametrize("planted", ["constant", "input", "read later"])
def test_a_fault_in_the_reuse_is_met(planted: str) -> None:
    def function(x: Tensor) -> list[Tensor]:
        if planted == "constant":
            return [torch.ones(4, 4, dtype=x.dtype).t() + x]
        y = x if planted == "input" else x.exp()
        return [y + 1.5 * x, y.sin() if planted == "read later" else x]

    tape = cleaned(recorded(function, tensor(4, 4)), in_place=False)
    require_own_memory(tape)
    for i, step in enumerate(tape.steps):
        if isinstance(step, Operation) and step.function is torch.ops.aten.add.Tensor:
            tape.steps[i] = step._replace(function=torch.ops.aten.add_.Tensor)
    with pytest.raises(UncapturableError, match=r"read too late|not its to change"):
        require_own_memory(tape)


def test_memory_is_still_reused() -> None:
    tape = cleaned(recorded(lambda x: [x.exp() * 2 + x.sin()], tensor(4, 4)))
    assert {"mul_", "add_"} <= set(names(tape))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer, self.out = kind(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x.unsqueeze(1).repeat(1, 2, 1))[0][:, -1])


class ByHand(Recurrent):
    """Its own loop over time, from a state that is a view of a constant."""

    def __init__(self) -> None:
        super().__init__(nn.GRU)
        self.cell = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(1, len(x), 4, dtype=x.dtype)[0]
        for _ in range(3):
            state = self.cell(torch.cat([x, state], 1)).tanh() + state
        return self.out(state)


@pytest.mark.slow
@pytest.mark.parametrize("build", [lambda: Recurrent(nn.GRU), lambda: Recurrent(nn.LSTM), ByHand])
@pytest.mark.parametrize("tasks", [1, 3])
def test_recurrent_models_are_evaluated_alike_every_time(
    build: Callable[[], nn.Module], tasks: int
) -> None:
    torch.manual_seed(0)
    model, episodes = build().double(), vectors(tasks)
    options = {"lr": 0.3, "steps": 2, "loss": F.mse_loss}
    eager = fm.MAML(model, **options, **EAGER)
    usual = fm.MAML(model, **options)
    expected, by_step = eager.evaluate(episodes), eager.evaluate_each_step(episodes)
    trained = outcome(eager, episodes)
    for _ in range(3):
        torch.testing.assert_close(usual.evaluate(episodes).losses, expected.losses)
        for a, b in zip(usual.evaluate_each_step(episodes), by_step, strict=True):
            torch.testing.assert_close(a.losses, b.losses)
        outcome(usual, episodes).check_close(trained, 1e-12)


def test_a_replay_that_fails_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def failing(tape: object) -> Callable[..., list[Tensor]]:
        def run(*tensors: Tensor) -> list[Tensor]:
            raise IndexError("planted")

        return run

    monkeypatch.setattr(captured, "compiled", failing)
    monkeypatch.setattr(captured, "natively", lambda tape: None)
    model, episodes = nn.Linear(3, 2).double(), vectors()
    expected = outcome(fm.MAML(model, lr=0.3, loss=F.mse_loss, **EAGER), episodes)
    usual = fm.MAML(model, lr=0.3, loss=F.mse_loss)
    outcome(usual, episodes).check_close(expected, 1e-12)
    assert "its replay fails with IndexError: planted; it runs eagerly" in caplog.text
    assert "eager, as this meta-step cannot be captured: its replay" in str(usual.explain(episodes))
    with pytest.raises(RuntimeError, match="its replay fails with IndexError: planted"):
        fm.MAML(model, lr=0.3, loss=F.mse_loss, **CAPTURED)(episodes)


def test_a_weight_that_is_made_symmetric() -> None:
    class Symmetric(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x.T

    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    nn.utils.parametrize.register_parametrization(model[0], "weight", Symmetric())
    episodes = vectors()
    expected = outcome(fm.MAML(model, lr=0.3, steps=2, loss=F.mse_loss, **EAGER), episodes)
    usual = fm.MAML(model, lr=0.3, steps=2, loss=F.mse_loss, executor="captured")
    for _ in range(2):
        outcome(usual, episodes).check_close(expected, 1e-12)
