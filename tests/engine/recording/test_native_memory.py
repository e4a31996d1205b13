"""The block of memory in which a program's values lie."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from outcomes import require
from problems import tensor
from programs import program_of, same_bits
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.engine.recording.native import Program
from fastmaml.engine.recording.optimize import cleaned
from fastmaml.engine.recording.tape import record
from fastmaml.ops.coverage import native_programs


@pytest.fixture(autouse=True)
def _native() -> None:
    require("cpp")


def long(x: Tensor, y: Tensor) -> list[Tensor]:
    """Some values live long, most are over soon."""
    first = x * y
    z = first
    for i in range(20):
        z = z * y + x * i
    return [z, (first + z).sum(0), x - 1]


def run_of(number: int) -> int:
    return int(native_programs().program_memory(number))


def made(*sizes: int) -> tuple[Program, list[Tensor]]:
    inputs = [tensor(*sizes, seed=1), tensor(*sizes, seed=2)]
    return program_of(cleaned(record(long, [x.clone() for x in inputs])[0])), inputs


def test_a_block_is_as_large_as_what_is_alive_at_a_time() -> None:
    program, inputs = made(64, 32)
    assert run_of(program.number) == -1
    program(*inputs)
    each = inputs[0].nbytes
    # The first product, a sum and two terms; results and what PyTorch itself makes are not in it.
    assert 2 * each <= run_of(program.number) <= 4 * each
    assert run_of(program.number) <= native_programs().program_peak(program.number)


def test_results_are_the_caller_s() -> None:
    program, inputs = made(16, 8)
    kept = [program(*inputs) for _ in range(4)]
    for _ in range(3):
        program(*(x + 1 for x in inputs))
    for found in kept:
        assert all(map(torch.equal, found, kept[0]))
        for x, expected in zip(found, long(*inputs), strict=True):
            torch.testing.assert_close(x, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("rows", [1, 3, 50])
def test_what_python_sees_through_a_view_is_kept(rows: int) -> None:
    """A call back looks at a value in ways of its own, which is needed long after."""

    def function(x: Tensor) -> list[Tensor]:
        y = x * 2 + 1
        seen = y.t().cumsum(0).t() + y[:, 1:].cumsum(1).sum()
        z = seen
        for _ in range(6):
            z = (z * 2 - seen) * z + 1
        return [z + y]

    same_bits(function, tensor(rows, 4, seed=1))


@pytest.mark.parametrize("scatters", [False, True])
def test_offsets_are_those_of_a_storage(scatters: bool) -> None:
    """What looks at a storage from its beginning finds there what it did when it was recorded."""

    def function(x: Tensor) -> list[Tensor]:
        terms = [x * i for i in range(1, 6)]
        product = terms[3] * terms[2]
        if scatters:
            found = torch.as_strided_scatter(product, x[:2, :2], (2, 2), (4, 1), 1)[:2, :2]
        else:
            found = torch.as_strided_copy(product, (2, 2), (4, 1), 1)
        for term in terms:
            found = found * 0.5 + term[:2, :2]
        return [found]

    same_bits(function, tensor(3, 4, seed=1))


@torch.library.custom_op("fastmaml_test::from_the_beginning", mutates_args=())
def from_the_beginning(x: Tensor) -> Tensor:
    return torch.as_strided(x, (2, 2), (4, 1), 0).clone()


def test_an_operator_of_one_s_own_may_look_at_a_storage() -> None:
    def function(x: Tensor) -> list[Tensor]:
        terms = [x * i for i in range(1, 6)]
        found = torch.ops.fastmaml_test.from_the_beginning(terms[3] * terms[2])
        for term in terms:
            found = found * 0.5 + term[:2, :2]
        return [found]

    same_bits(function, tensor(3, 4, seed=1))


def test_what_python_gives_may_be_a_view() -> None:
    def function(x: Tensor) -> list[Tensor]:
        y = x * 2 + 1
        found = y.cumsum(0).t().cumsum(0).t()  # a view of what only Python knows
        z = (y + found) * y
        for _ in range(4):
            z = z * found - y
        return [z, found * 2]

    same_bits(function, tensor(6, 8, seed=1))


def test_threads_have_blocks_of_their_own() -> None:
    program, inputs = made(200, 40)
    expected, wrong = program(*inputs), []

    def work() -> None:
        for _ in range(50):
            if not all(map(torch.equal, program(*inputs), expected)):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_blocks_go_with_the_programs_that_need_them() -> None:
    module = native_programs()
    program, inputs = made(600, 500)
    for _ in range(2):
        program(*inputs)
    before = module.idle_blocks()
    assert before >= run_of(program.number)
    del program
    gc.collect()
    assert module.idle_blocks() <= before - 2 * inputs[0].nbytes


def test_idle_blocks_can_be_let_go() -> None:
    module = native_programs()
    program, inputs = made(60, 50)
    expected = [program(*inputs) for _ in range(2)][-1]
    assert module.idle_blocks() > 0
    module.drop_idle_blocks()
    assert module.idle_blocks() == 0
    assert all(map(torch.equal, program(*inputs), expected))
    assert module.idle_blocks() == run_of(program.number)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_meta_steps_go_on_as_they_began(dtype: torch.dtype) -> None:
    """From the second replay on there is a block; calls with other numbers, shapes and threads."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 20, 3, padding=1), nn.BatchNorm2d(20, track_running_stats=False), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(20 * 9, 3),
    ).to(dtype)  # fmt: skip
    maml = fm.MAML(model, lr=0.1, steps=3, loss=F.cross_entropy, spot_checks=False)
    eager = fm.MAML(model, lr=0.1, steps=3, loss=F.cross_entropy, executor="eager")
    labels = torch.arange(5).remainder(3).expand(4, -1)
    for seed in range(5):
        tasks = 3 + seed % 2
        parts = (tensor(tasks, 5, 3, 6, 6, seed=seed + s).to(dtype) for s in (0, 50))
        episodes = fm.Episodes(*(fm.Batch(x, labels[:tasks]) for x in parts))
        found = []
        for one in (maml, eager):
            model.zero_grad()
            out = one(episodes)
            out.loss.backward()
            found.append([out.losses.detach(), *(p.grad for p in model.parameters())])
        tolerance = 1e-10 if dtype == torch.float64 else 1e-3
        torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance)
