"""Programs of the native module: the bits of the Python replay."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from outcomes import outcome, require
from problems import tensor
from programs import program_of, same_bits
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.engine.memory.liveness import alive_in
from fastmaml.engine.recording import native
from fastmaml.engine.recording.captured import Captured
from fastmaml.engine.recording.native import grouped, natively
from fastmaml.engine.recording.optimize import cleaned
from fastmaml.engine.recording.replay_code import compiled
from fastmaml.engine.recording.tape import Operation, Tape, record
from fastmaml.ops.coverage import native_programs


@pytest.fixture(autouse=True)
def _native() -> None:
    require("cpp")


BINARY: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
}
SHAPES = [
    ((3, 4, 5), (3, 4, 5)),
    ((3, 4, 5), (4, 1)),
    ((3, 4, 5), (3, 1, 5)),
    ((1, 4, 5), (3, 1, 1)),
    ((5,), (2, 1, 5)),
    ((), (2, 3)),
    ((2, 3), ()),
    ((0, 3), (1, 3)),
    ((70000,), (70000,)),
    ((3, 30000), (3, 1)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("name", BINARY)
def test_pointwise_steps_of_two_tensors(name: str, shapes: Any, dtype: torch.dtype) -> None:
    a, b = (tensor(*s or (1,), seed=i).to(dtype).reshape(s) for i, s in enumerate(shapes))
    f = BINARY[name]

    def four(a: Tensor, b: Tensor) -> list[Tensor]:
        return [f(a, b), f(b, a), f(f(a, b), a), f(b, f(b, a))]

    same_bits(four, a, b)


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded", "channels last"])
@pytest.mark.parametrize("name", BINARY)
def test_pointwise_steps_of_other_layouts(name: str, layout: str) -> None:
    made: dict[str, Callable[[Tensor], Tensor]] = {
        "transposed": lambda x: x.transpose(1, 3),
        "strided": lambda x: x[:, ::2, 1:],
        "expanded": lambda x: x[:1].expand(6, *x.shape[1:]),
        "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    }
    x = tensor(2, 4, 3, 4, seed=1)
    f, look = BINARY[name], made[layout]

    def some(a: Tensor, b: Tensor) -> list[Tensor]:
        a, b = look(a), look(b)
        first = f(a, b)
        return [first, f(first, 0.3), f(first, first), f(a, 2), -first, first**2, first**3]

    same_bits(some, x, tensor(2, 4, 3, 4, seed=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("number", [0.1, -3, 7, 0.0, 1e300, math.inf, math.nan])
def test_pointwise_steps_of_a_number(number: Any, dtype: torch.dtype) -> None:
    def some(x: Tensor) -> list[Tensor]:
        return [x * number, x + number, x - number, x / number, -x, x**2, x**3, x.mul(number)]

    same_bits(some, tensor(3, 5, seed=1).to(dtype))


def test_what_is_left_to_python_stands_between() -> None:
    def function(x: Tensor, y: Tensor) -> list[Tensor]:
        for _ in range(4):
            x = x * y + x
        x = x.cumsum(0)
        for _ in range(4):
            x = x * y - x
        return [x, x.sum(), x.view(-1)[1:]]

    x, y = tensor(3, 4, seed=1), tensor(3, 4, seed=2)
    tape = cleaned(record(function, [x.clone(), y.clone()])[0])
    groups = [g for g in grouped(tape, native_programs()) if isinstance(g.steps[0], Operation)]
    assert [g.code is None for g in groups].count(True) == 1
    same_bits(function, x, y)


def test_what_python_is_called_back_for_lets_go_of_memory() -> None:
    """The program's values go when they are over, whoever computed them."""

    def function(x: Tensor) -> list[Tensor]:
        y = [x * i for i in range(8)]
        for _ in range(3):
            y = [(z.cumsum(0) * 2 - z) * z + z for z in y]
        return [torch.stack([z.sum() for z in y])]

    x = tensor(50, 4, seed=1)
    tape = cleaned(record(function, [x.clone()])[0])
    expected = max(alive.bytes for alive in alive_in(tape, ())[1])
    program = program_of(tape)
    assert native_programs().program_peak(program.number) == expected
    assert torch.equal(program(x)[0], compiled(tape)(x)[0])


def test_an_error_of_a_call_back_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def function(x: Tensor) -> list[Tensor]:
        x = (x * 2 + 1) * x - x
        return [(x.cumsum(0) * 2 + 1) * x - x]

    program = program_of(cleaned(record(function, [tensor(3, 4, seed=1)])[0]))
    (number,) = list(native._BACK)[-1:]

    def fail(given: list[Tensor]) -> list[Tensor]:
        raise MemoryError("no more")

    run = functools.partial(native._guarded, lambda *given: fail(list(given)), program._failed)
    monkeypatch.setitem(native._BACK, number, run)
    with pytest.raises(MemoryError, match="no more"):
        program(tensor(3, 4, seed=1))
    monkeypatch.setitem(native._BACK, number, fail)  # as a signal's handler, before the first line
    with pytest.raises(KeyboardInterrupt, match="a signal"):
        program(tensor(3, 4, seed=1))
    monkeypatch.undo()
    assert len(program(tensor(3, 4, seed=1))) == 1


def test_other_types_stay_python_s() -> None:
    def function(x: Tensor) -> list[Tensor]:
        y = x.long() + 1
        return [(y * 2 + y - 1) * 3, x.half() * 2 + 1, x.to(torch.complex64) * 2 * 3 * 4 * 5]

    tape = cleaned(record(function, [tensor(3, 4, seed=1)])[0])
    assert natively(tape) is None


def test_memory_is_known_before_it_runs() -> None:
    def function(x: Tensor) -> list[Tensor]:
        y = x * 2 + x
        z = torch.cat([y, y]).sum(0)
        for _ in range(3):
            y = (y[1:] * y[:-1]).view(-1, y.shape[1])
        return [z, y - 1.5]

    tape = cleaned(record(function, [tensor(9, 4, seed=1)])[0])
    program = program_of(tape)
    expected = max(alive.bytes for alive in alive_in(tape, ())[1])
    assert native_programs().program_peak(program.number) == expected
    from fastmaml.measure.profile import LiveMemory

    x = tensor(9, 4, seed=1)
    with torch._C._AutoDispatchBelowAutograd(), LiveMemory() as memory:
        program(x)
    assert memory.peak_bytes == expected


# ------------------------------------------------------------------ meta-steps


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3))


def _conv() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1), nn.BatchNorm2d(3), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(3, 3),
    )  # fmt: skip


class _Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, 0.1, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.unsqueeze(0)).squeeze(0))


RULES = {
    "sgd": lambda: fm.rules.SGD(0.1),
    "meta-sgd": lambda: fm.rules.MetaSGD(0.1),
    "adam": lambda: fm.rules.Adam(0.1),
}


@pytest.mark.sampled
@pytest.mark.parametrize("chunk", [1, 2, 3])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("method", ["Unrolled", "Checkpointed", "MixedMode", "FirstOrder"])
@pytest.mark.parametrize("model", [_mlp, _conv, _Attends])
def test_meta_steps(
    model: Callable[[], nn.Module], method: str, rule: str, chunk: int, monkeypatch: Any
) -> None:
    """Most of a meta-step is native, and all of it is what Python's replay gives."""
    shares: list[float] = []

    def counted(tape: Tape) -> Any:
        backs = [g.steps for g in grouped(tape, native_programs()) if g.code is None]
        left, of_all = (
            sum(
                isinstance(step, Operation)
                and any(tape.geometry[v].dtype.is_floating_point for v in step.made())
                for step in steps
            )
            for steps in (itertools.chain.from_iterable(backs), tape.steps)
        )
        shares.append(1 - left / of_all)
        return natively(tape)

    labels = torch.arange(5).remainder(3).expand(5, -1)
    episodes = fm.Episodes(*(fm.Batch(tensor(5, 5, 4, seed=s), labels) for s in (1, 2)))
    results = []
    for as_program in (True, False):
        replays = counted if as_program else (lambda tape: None)
        monkeypatch.setattr("fastmaml.engine.recording.captured.natively", replays)
        torch.manual_seed(0)
        maml = fm.MAML(
            model().double(),
            rule=RULES[rule](),
            steps=2,
            loss=F.cross_entropy,
            gradient=getattr(fm.gradients, method)(),
            tasks_chunk=chunk,
        )
        maml._execute = Captured(required=True, spot_checks=False)
        results.append(outcome(maml, episodes))
    assert results[0].same_bits(results[1])
    assert min(shares) > 0.7


def test_a_program_that_differs_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(tape: Tape) -> Any:
        replay = compiled(tape)
        return lambda *tensors: [x + 1e-9 for x in replay(*tensors)]

    labels = torch.arange(5).remainder(3).expand(5, -1)
    episodes = fm.Episodes(*(fm.Batch(tensor(5, 5, 4, seed=s), labels) for s in (1, 2)))
    expected = outcome(fm.MAML(_mlp_of(), lr=0.1, loss=F.cross_entropy), episodes)
    monkeypatch.setattr("fastmaml.engine.recording.captured.natively", wrong)
    found = outcome(fm.MAML(_mlp_of(), lr=0.1, loss=F.cross_entropy), episodes)
    assert found.same_bits(expected)
    assert "the native replay is left out" in caplog.text


def _mlp_of() -> nn.Module:
    torch.manual_seed(0)
    return _mlp().double()


def test_chunks_run_beside_each_other() -> None:
    """The same numbers on one thread and on several."""
    labels = torch.arange(5).remainder(3).expand(8, -1)
    episodes = fm.Episodes(*(fm.Batch(tensor(8, 5, 4, seed=s), labels) for s in (1, 2)))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            maml = fm.MAML(_mlp_of(), lr=0.1, steps=2, loss=F.cross_entropy, tasks_chunk=1)
            results += [outcome(maml, episodes) for _ in range(5)]
    finally:
        torch.set_num_threads(before)
    assert all(a.same_bits(b) for a, b in itertools.pairwise(results))
