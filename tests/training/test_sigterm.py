"""SIGTERM: an iteration of a large model takes minutes; a machine that is taken away waits less."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from outcomes import require
from sinusoid_runs import Watched, final_state, lines, mean_square, trainer
from torch import Tensor, nn

from fastmaml import MAML, Episodes, episodes
from fastmaml.engine.guards.sight import Sight
from fastmaml.engine.recording import native
from fastmaml.training.interrupts import Interrupted, InterruptGuard
from fastmaml.training.trainer import MetaTrainer


class Terminated:
    """A loss that is sent SIGTERM in the n-th call of it after iteration 5."""

    def __init__(self, at: int) -> None:
        self.at, self.calls, self.number = at, 0, signal.SIGTERM
        self.run: MetaTrainer | None = None

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        self.calls += self.run is not None and self.run.iteration == 5
        if self.calls == self.at:
            signal.raise_signal(self.number)
        return mean_square(output, target)


def terminated(out: Path, at: int, **changes: Any) -> tuple[MetaTrainer, Terminated]:
    """A run whose loss is one that counts its calls, which a recording would not make."""
    loss, run = Terminated(at), trainer(out, **changes)
    settings = dataclasses.replace(run.maml.settings, loss=loss, executor="eager")
    run.maml = MAML.of(run.maml.module, settings)
    run.optimizer = torch.optim.Adam(run.maml.parameters(), 0.01)
    run.optimizer.param_groups[0]["initial_lr"] = 0.01
    loss.run = run
    return run, loss


def require_same(again: MetaTrainer, whole: MetaTrainer) -> None:
    """A run that went on ended as one that was never stopped, bit for bit."""
    for a, b in zip(final_state(again), final_state(whole), strict=True):
        assert torch.equal(a, b)
    assert lines(again.folder) == lines(whole.folder)


@pytest.mark.parametrize("at", [1, 3])
def test_sigterm_gives_up_the_iteration_and_saves_what_was_before(tmp_path: Path, at: int) -> None:
    whole, _ = terminated(tmp_path / "whole", -1)
    whole.fit()
    run, loss = terminated(tmp_path / "run", at)
    with pytest.raises(Interrupted, match="SIGTERM"):
        run.fit()
    assert run.iteration == 5
    assert loss.calls == at
    again, _ = terminated(tmp_path / "run", -1)
    torch.manual_seed(99)  # nothing may hang on what happened before
    again.resume(tmp_path / "run" / "last.safetensors")
    assert again.iteration == 5
    again.fit()
    require_same(again, whole)


def test_what_is_in_memory_is_what_was_before_too(tmp_path: Path) -> None:
    run, _ = terminated(tmp_path, 2)
    with pytest.raises(Interrupted):
        run.fit()
    saved, _ = terminated(tmp_path, -1)
    saved.resume(tmp_path / "last.safetensors")
    now = torch.get_rng_state()
    drawn, wanted = run._next(), saved._next()
    assert all(map(torch.equal, drawn.support.tensors(), wanted.support.tensors()))
    assert torch.equal(torch.get_rng_state(), now)


class WithoutState:
    """Episodes that cannot be drawn again."""

    def __init__(self, source: object) -> None:
        self.source = source

    def __iter__(self) -> object:
        return iter(self.source)  # type: ignore[call-overload]


def test_what_cannot_be_run_anew_is_finished(tmp_path: Path) -> None:
    run, loss = terminated(tmp_path, 1, checkpoint_every=0)
    run.train = WithoutState(run.train)  # type: ignore[assignment]
    with pytest.raises(Interrupted):
        run.fit()
    assert run.iteration == 6
    assert loss.calls > 1


def recorded(out: Path, event: Callable[[], None] = lambda: None) -> MetaTrainer:
    """A run whose replays call Python back for a sort, and that calls `event` in iteration 6."""
    run = trainer(out, Watched(6, event))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), Sorted(), nn.Linear(8, 1))
    run.maml = MAML(model, lr=0.05, steps=2, loss=mean_square, executor="captured")
    run.optimizer = torch.optim.Adam(run.maml.parameters(), 0.01)
    run.optimizer.param_groups[0]["initial_lr"] = 0.01
    return run


class Sorted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sort(-1).values.tanh()


def test_sigterm_within_a_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unheard(*_: object) -> list[Tensor]:
        """As if it arrived before the first line of what is called back."""
        signal.raise_signal(signal.SIGTERM)
        return []

    def event() -> None:
        assert native._BACK
        for number in native._BACK:
            monkeypatch.setitem(native._BACK, number, unheard)

    require("cpp")
    whole = recorded(tmp_path / "whole")
    whole.fit()
    run = recorded(tmp_path / "run", event)
    with pytest.raises(Interrupted, match="SIGTERM"):
        run.fit()
    monkeypatch.undo()
    again = recorded(tmp_path / "run")
    again.resume(tmp_path / "run" / "last.safetensors")
    assert again.iteration == 5
    again.fit()
    require_same(again, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_validation_is_given_up(tmp_path: Path, number: int) -> None:
    run, loss = terminated(tmp_path / "run", -1)

    def validation() -> Iterator[Episodes]:
        signal.raise_signal(number)
        yield from episodes.sinusoid(4, 4, 4, seed=1)

    own = run.validation
    run.validation = validation()  # type: ignore[assignment]
    with pytest.raises(Interrupted):
        run.fit()
    assert (run.iteration, loss.calls) == (0, 0)
    assert not lines(run.folder)
    again, _ = terminated(tmp_path / "run", -1)
    again.validation = own
    again.resume(tmp_path / "run" / "last.safetensors")
    again.fit()
    whole, _ = terminated(tmp_path / "whole", -1)
    whole.fit()
    require_same(again, whole)


def test_what_watches_the_model_does_not_see_what_is_said_of_a_signal() -> None:
    seen = []

    def notice(name: str) -> None:
        seen.append(sys.gettrace())

    with InterruptGuard(notice), Sight() as sight:
        tracer = sys.gettrace()
        signal.raise_signal(signal.SIGINT)
        assert sys.gettrace() is tracer
    assert seen == [None]
    assert notice.__code__ not in sight.pools


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_as_an_iteration_ends_loses_no_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Between the last line of what can be given up and the end of it."""
    whole, _ = terminated(tmp_path / "whole", -1)
    whole.fit()
    run, _ = terminated(tmp_path / "run", -1)
    own = contextlib._GeneratorContextManager.__exit__
    at = 0 if number == signal.SIGINT else 3

    def leave(self: Any, *error: Any) -> Any:
        ours = self.gen.gi_code.co_name == "_discardable"
        if ours and self.gen.gi_frame.f_locals["draws"] and run.iteration == at:
            signal.raise_signal(number)
        return own(self, *error)

    monkeypatch.setattr(contextlib._GeneratorContextManager, "__exit__", leave)
    with pytest.raises(Interrupted):
        run.fit()
    monkeypatch.undo()
    assert run.iteration == at
    again, _ = terminated(tmp_path / "run", -1)
    again.resume(tmp_path / "run" / "last.safetensors")
    again.fit()
    require_same(again, whole)


def test_ctrl_c_in_the_first_iteration_after_a_resumption_acts_at_once(tmp_path: Path) -> None:
    run, _ = terminated(tmp_path, 1)
    with pytest.raises(Interrupted):
        run.fit()
    again, loss = terminated(tmp_path, 1)
    loss.number = signal.SIGINT
    again.resume(tmp_path / "last.safetensors")
    with pytest.raises(Interrupted, match="SIGINT"):
        again.fit()
    assert again.iteration == 5
