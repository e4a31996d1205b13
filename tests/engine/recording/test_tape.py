"""Recording a function of tensors, cleaning the record, and running it: always the same bits."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from problems import tensor
from replays import Function, check, names, recorded
from torch import Tensor

from fastmaml.engine.recording.optimize import cleaned, operation_count
from fastmaml.engine.recording.replay_code import compiled
from fastmaml.engine.recording.tape import UncapturableError

ATEN = torch.ops.aten


# ---------------------------------------------------------------------- programs made at random


class Writer:
    """A random program: the same moves at every call, as only shapes and aliases decide them."""

    def __init__(self, seed: int, inputs: Sequence[Tensor]) -> None:
        self.rng = random.Random(seed)
        self.values = list(inputs)
        self.outside = {x.untyped_storage()._cdata for x in inputs}

    def any(self) -> Tensor:
        return self.rng.choice(self.values)

    def like(self, x: Tensor) -> Tensor:
        return self.rng.choice([y for y in self.values if y.shape == x.shape])

    def move(self) -> None:
        move = self.rng.choice([self.unary, self.binary, self.view, self.view, self.parts,
                                self.reduce, self.matmul, self.write, self.write, self.make,
                                self.together])  # fmt: skip
        self.values += move()

    def unary(self) -> list[Tensor]:
        x = self.any()
        function = self.rng.choice([torch.neg, torch.tanh, torch.relu, torch.clone, torch.detach])
        # Calls made twice are what sharing has to get right.
        return [function(x)] * self.rng.choice([1, 2]) + [function(x)]

    def binary(self) -> list[Tensor]:
        x = self.any()
        y = self.rng.choice([self.like(x), self.like(x), 0.5, torch.tensor(2.0)])
        function = self.rng.choice([torch.add, torch.sub, torch.mul, torch.maximum])
        if function is torch.maximum:
            y = self.like(x)
        return [function(x, y)]

    def view(self) -> list[Tensor]:
        x = self.any()
        views: list[Tensor] = [x.unsqueeze(self.rng.randint(0, x.ndim)), x.expand(1, *x.shape)]
        if x.ndim:
            d = self.rng.randrange(x.ndim)
            begin = self.rng.randrange(x.shape[d])
            views += [x.transpose(0, d), x.narrow(d, begin, x.shape[d] - begin), x.select(d, begin)]
            views += [x.squeeze(d), x.unsqueeze(d).expand(*x.shape[:d], 2, *x.shape[d:])]
        if x.is_contiguous():
            views.append(x.view(-1))
        found = self.rng.choice(views)
        return [found] if found.numel() <= 200 and found.ndim < 5 else []

    def parts(self) -> list[Tensor]:
        x = self.any()
        if not x.ndim or x.shape[0] > 4:
            return []
        return list(self.rng.choice([x.unbind, lambda: x.split(1), lambda: x.chunk(2)])())

    def reduce(self) -> list[Tensor]:
        x = self.any()
        if not x.ndim:
            return []
        ones = [d for d in range(x.ndim) if x.shape[d] == 1]  # whose sums are looked through
        d = self.rng.choice(ones or list(range(x.ndim)))
        return [x.sum(d, keepdim=self.rng.random() < 0.5)]

    def matmul(self) -> list[Tensor]:
        x = self.any()
        return [x @ x.transpose(-1, -2)] if x.ndim >= 2 else []

    def write(self) -> list[Tensor]:
        own = [x for x in self.values if x.untyped_storage()._cdata not in self.outside]
        own = [x for x in own if all(s or n == 1 for s, n in zip(x.stride(), x.shape, strict=True))]
        if not own:
            return []
        x = self.rng.choice(own)
        y = self.like(x).clone()
        writes: list[Callable[[], Tensor]] = [
            lambda: x.add_(y), lambda: x.mul_(0.5), lambda: x.copy_(y), lambda: x.zero_(),
            lambda: x.relu_(), lambda: torch.sub(y, 1.0, out=torch.empty_like(y)),
        ]  # fmt: skip
        return [self.rng.choice(writes)()] if self.rng.random() < 0.5 else self._foreach(x, y)

    def _foreach(self, x: Tensor, y: Tensor) -> list[Tensor]:
        torch._foreach_add_([x], [y])
        return list(torch._foreach_mul([x, y], 2.0))

    def make(self) -> list[Tensor]:
        n = self.rng.randint(1, 3)
        return [torch.full((n, n), 0.5, dtype=torch.float64) * torch.eye(n, dtype=torch.float64)]

    def together(self) -> list[Tensor]:
        x = self.any()
        both = [torch.stack([x, self.like(x)])]
        return both if both[0].numel() <= 200 and both[0].ndim < 5 else []


@pytest.mark.parametrize("block", range(20))
def test_random_programs(block: int) -> None:
    for seed in range(block * 15, block * 15 + 15):

        def program(*inputs: Tensor, seed: int = seed) -> list[Tensor]:
            writer = Writer(seed, inputs)
            for _ in range(writer.rng.randint(4, 24)):
                writer.move()
            return [writer.any() for _ in range(writer.rng.randint(1, 4))]

        inputs = tensor(3, 2, seed=1), tensor(2, 3, seed=2).t(), tensor(1, 3, 1, seed=3)
        try:
            check(program, *inputs)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}") from error


# ---------------------------------------------------------------------- what each step does


def test_dead_code_and_equal_calls_go() -> None:
    def function(x: Tensor) -> list[Tensor]:
        (x * 3).exp()
        return [x.sin() + x.sin(), x.cos().sin()]

    tape = check(function, tensor(4))
    assert names(tape).count("sin") == 2  # of x, and of cos(x)
    assert "exp" not in names(tape)
    assert operation_count(tape) == 4


def test_an_equal_call_is_made_again_where_its_first_result_was_let_go() -> None:
    """Methods that run a step again do so to keep little."""

    def function(x: Tensor) -> list[Tensor]:
        first = x.sin().sum()
        return [first + x.cos().sum() + x.sin().prod()]

    assert names(check(function, tensor(4))).count("sin") == 2


def test_what_depends_on_no_input_is_computed_once() -> None:
    def function(x: Tensor) -> list[Tensor]:
        return [x * torch.arange(4.0).add(1).square()]

    tape = check(function, tensor(4))
    assert operation_count(tape) == 1
    assert len(tape.constants) == 1


def test_memory_is_used_again_but_not_the_callers() -> None:
    def function(x: Tensor, y: Tensor) -> list[Tensor]:
        return [((x * y) + x) * y, y - x]

    tape = check(function, tensor(4, seed=1), tensor(4, seed=2))
    assert sorted(names(tape)) == ["add_", "mul", "mul_", "sub"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: [x.neg().t().add(x.neg())],  # two views of one value
        lambda x: [(y := x.sin()) + y, y * 1],
        lambda x: [(y := x.sin()) + y],
        lambda x: [(y := x.sin())[0] + y[1], y[0].mul(2)],
        lambda x: [(y := x.sin()).mul(y[0, 0])],
        lambda x: [x.sin().expand(2, 3, 3).add(1)],
        lambda x: [x.sin().to(torch.float32).add(x.sin())],
        lambda x: [(y := x.sin(), z := x.sin(), z.t().exp())[2] + y.t(), z + 1],
    ],
)
def test_memory_that_is_still_read_is_left_alone(function: Function) -> None:
    check(function, tensor(3, 3))


def test_views_lists_and_writes() -> None:
    def function(x: Tensor, y: Tensor) -> list[Tensor]:
        a, b = x.split(1)
        total = torch.zeros(2, 3, dtype=x.dtype)
        total[0] = a.squeeze(0)
        total[1:].copy_(b)
        rows = torch.unbind(total)
        joined = torch.stack(torch._foreach_mul(list(rows), 2.0))
        total += y
        return [joined, total, total.t(), total[0], x.view(-1), x]

    check(function, tensor(2, 3, seed=1), tensor(2, 3, seed=2))


def test_empty_tensors_scalars_and_integers() -> None:
    def function(x: Tensor, i: Tensor) -> list[Tensor]:
        return [x[:0].sum(0), x.sum(), i * 2 + 1, (i > 2).to(x.dtype), x.gather(0, i)]

    check(function, tensor(3, 2), torch.tensor([[0, 1], [2, 0]]))


def test_tensors_from_outside_are_read_at_every_replay() -> None:
    outside = tensor(3)
    replay = compiled(cleaned(recorded(lambda x: [x * outside], tensor(3, seed=1))))
    outside.fill_(2.0)
    assert torch.equal(replay(tensor(3, seed=1))[0], 2 * tensor(3, seed=1))


def test_indexing_by_numbers_is_recorded() -> None:
    rows = torch.tensor([2, 0])
    check(lambda x: [x[rows], x[:, rows], x.index_select(0, rows)], tensor(3, 3))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: [x * float(x.sum())], "reads a value back"),
        (lambda x: [x if x.sum() > 0 else -x], "reads a value back"),
        (lambda x: [x * random.random()], "Python's random"),
        (lambda x: [x * torch.rand(3)], "draws random numbers"),
        (lambda x: [torch.nn.functional.dropout(x)], "draws random numbers"),
        (lambda x: [x.add_(1)], "writes to a tensor from outside"),
        (lambda x: [x[:2].zero_()], "writes to a tensor from outside"),
        (lambda x: [x[x > 0]], "depends on values"),
        (lambda x: [x.nonzero()], "depends on values"),
        (lambda x: [x.to_sparse()], "layout|depends on values"),
        (lambda x: [torch.view_as_real(x.to(torch.complex128))], "another dtype"),
        (lambda x: [x.to(torch.complex128).conj()], "conjugated"),
        (lambda x: [x.clone().resize_(2)], "changes what memory"),
        (lambda x: [torch.tensor(x.tolist())], "reads a value back"),
        (lambda x: [torch.from_numpy(x.numpy() * 2)], "reads a value back"),
    ],
)
def test_what_cannot_be_replayed_is_refused(function: Function, reason: str) -> None:
    if "numpy" in function.__code__.co_names:
        pytest.importorskip("numpy")
    with pytest.raises(UncapturableError, match=reason):
        recorded(function, tensor(3).abs())


def test_the_functions_own_errors_come_through() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        recorded(lambda x: [x @ x], tensor(2, 3))
    replay = compiled(cleaned(recorded(lambda x: [x @ x], tensor(2, 2))))
    with pytest.raises(RuntimeError, match="must"):
        replay(tensor(2))
