"""Property: a recorded, cleaned and compiled tape gives what the function gives, time after time.

Programs are random moves over a growing list of tensors: inputs, tensors from outside (some of them
views), what is made inside, views of all of these, sums, products, writes to memory of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from fastmaml.engine.recording.optimize import cleaned
from fastmaml.engine.recording.replay_code import compiled
from fastmaml.engine.recording.tape import UncapturableError, record

LARGEST, DEEPEST = 64, 4


@dataclass(frozen=True)
class Move:
    """What is done, in which variant, to which values (counted from the latest)."""

    kind: str
    option: int = 0
    x: int = 0
    y: int = 0


@dataclass(frozen=True)
class Program:
    """Moves, what is returned, and how it is run: "plain", "grad", "twice" or "vmap"."""

    moves: tuple[Move, ...]
    outputs: tuple[int, ...] = (0,)
    mode: str = "plain"
    outside: int = 0
    in_place: bool = True


UNARY: list[Callable[[Tensor], Tensor]] = [
    torch.neg, torch.tanh, torch.sin, torch.exp, torch.clone, torch.relu, torch.square,
    torch.sigmoid, lambda x: x * 1, lambda x: x + 0.5, lambda x: 2 - x, lambda x: x / 2,
    lambda x: x.mul(0.5), lambda x: x.softmax(-1) if x.ndim else x.exp(),
    lambda x: (x > 0).to(x.dtype), lambda x: x.t().sin() if x.ndim == 2
    else x.cos(), lambda x: torch.zeros_like(x).add(x),
    lambda x: torch.ones_like(x).t() if x.ndim == 2 else torch.ones_like(x),
    lambda x: x.cumsum(0) if x.ndim else x.abs(),
]  # fmt: skip
BINARY: list[Callable[[Tensor, Tensor], Tensor]] = [
    torch.add, torch.sub, torch.mul, torch.maximum, lambda x, y: x.add(y, alpha=2),
    lambda x, y: y.add(x), lambda x, y: torch.where(x > y, x, y), lambda x, y: x + y * x,
    lambda x, y: torch.add(x, y).mul(y), lambda x, y: x.sin().add(y), lambda x, y: x.neg().sub(y),
    lambda x, y: x * y + x * y, lambda x, y: (x - y) * (x - y), torch.atan2,
    lambda x, y: x.tanh() + (x.tanh().t() if x.ndim == 2 and x.shape[0] == x.shape[1] else y),
]  # fmt: skip
VIEWS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.unsqueeze(0), lambda x: x.expand(2, *x.shape), lambda x: x.transpose(0, -1),
    lambda x: x.narrow(0, 0, max(1, len(x) - 1)), lambda x: x[-1], lambda x: x.select(-1, 0),
    lambda x: x.squeeze(), lambda x: x.unsqueeze(-1), lambda x: x.reshape(-1),
    lambda x: x[..., ::2],
    lambda x: x.diagonal() if x.ndim == 2 else x, lambda x: x.view(-1) if x.is_contiguous() else x,
    lambda x: x.unfold(0, min(2, len(x)), 1), lambda x: x.chunk(2)[-1], lambda x: x.unbind()[0],
    lambda x: x.split(1)[-1], lambda x: x.as_strided(x.shape, x.stride()), lambda x: x[:],
    lambda x: x.movedim(0, -1), lambda x: x.expand_as(x), lambda x: x.view_as(x),
    torch.detach, lambda x: x.contiguous(), lambda x: x.to(torch.float64),
]  # fmt: skip
REDUCE: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.sum(), lambda x: x.sum(0), lambda x: x.sum(-1, keepdim=True), lambda x: x.mean(0),
    lambda x: x.amax(0), lambda x: x.unsqueeze(0).sum(0), lambda x: x.unsqueeze(0).sum(0, True),
    lambda x: x.prod(-1), lambda x: x.sum((0, -1)) if x.ndim > 1 else x.sum(0),
    lambda x: x.logsumexp(0), lambda x: x.max(0)[0], lambda x: x.var(0, unbiased=False),
]  # fmt: skip
WRITES: list[Callable[[Tensor, Tensor], object]] = [
    lambda x, y: x.add_(y), lambda x, y: x.mul_(0.5), lambda x, y: x.copy_(y),
    lambda x, y: x.zero_(),
    lambda x, y: x.relu_(), lambda x, y: x.t().add_(1) if x.ndim == 2 else x.add_(1),
    lambda x, y: x[:1].mul_(y[:1]) if x.ndim else x.mul_(y), lambda x, y: torch.sub(y, 1, out=x),
    lambda x, y: torch._foreach_add_([x], [y]), lambda x, y: x.neg_().add_(y),
    lambda x, y: x.fill_(0.3),
    lambda x, y: x.view(-1)[::2].sub_(1) if x.is_contiguous() else x.exp_(),
    lambda x, y: x.select(0, 0).copy_(y.select(0, -1)) if x.ndim else x.copy_(y),
    lambda x, y: x.addcmul_(y, y), lambda x, y: x.masked_fill_(y > 0, 0.1),
    lambda x, y: x.index_add_(0, torch.arange(len(x)).flip(0), y) if x.ndim else x.sub_(y),
    lambda x, y: x.__setitem__(0, y[0]) if x.ndim else x.sin_(), lambda x, y: x.clamp_(-0.5, 0.5),
]  # fmt: skip


def _made(option: int) -> Tensor:
    """From nothing but numbers; most are views."""
    n, double = 1 + option % 3, torch.float64
    return [
        lambda: torch.ones(2, n, 3, dtype=double)[0], lambda: torch.zeros(n, n, dtype=double),
        lambda: torch.arange(6, dtype=double).view(2, 3), lambda: torch.eye(3, dtype=double),
        lambda: torch.ones(3, n, dtype=double).t(), lambda: torch.full((), 0.5, dtype=double),
        lambda: torch.zeros(n, 6, dtype=double).chunk(2, 1)[1],
        lambda: torch.full((1,), 0.5, dtype=double).expand(n, 3), lambda: torch.tensor(2.0),
        lambda: torch.linspace(0, 1, 6, dtype=double).view(3, 2).t(),
        lambda: torch.empty(2, 3, dtype=double).fill_(0.7), lambda: torch.ones(3, dtype=double) * 2,
        lambda: torch.tensor([[0.1, 0.2, 0.3], [1.0, 2.0, 3.0]], dtype=double)[1],
    ][option % 13]()  # fmt: skip


class Writer:
    """Runs the moves of a program over these inputs and tensors from outside."""

    def __init__(self, inputs: Sequence[Tensor], outside: Sequence[Tensor]) -> None:
        self.values = [*inputs, *outside]
        self.foreign = [True] * len(self.values)

    def at(self, back: int) -> Tensor:
        return self.values[-1 - back % len(self.values)]

    def partner(self, x: Tensor, back: int) -> Tensor:
        """Another value that goes with `x`, element by element."""
        fits = [y for y in self.values if y.shape == x.shape]
        return fits[-1 - back % len(fits)]

    def play(self, move: Move) -> None:
        x = self.at(move.x)
        if move.kind == "make":
            return self.keep(_made(move.option))
        if move.kind == "view":
            seen = self.foreign[-1 - move.x % len(self.values)]
            return self.keep(_pick(VIEWS, move.option)(x), seen) if x.ndim else None
        if move.kind == "reduce":
            return self.keep(_pick(REDUCE, move.option)(x)) if x.ndim else None
        if move.kind == "unary":
            function = _pick(UNARY, move.option)
            for _ in range(1 + move.y % 2):  # calls made twice are what sharing has to get right
                self.keep(function(x))
            return None
        if move.kind == "matmul":
            return self.keep(x @ x.transpose(-1, -2)) if x.ndim > 1 else None
        if move.kind == "join":
            y = self.partner(x, move.y)
            join = [torch.stack, torch.cat][move.option % 2 if x.ndim else 0]
            return self.keep(join([x, y], move.option // 2 % 2 if x.ndim > 1 else 0))
        if move.kind == "binary":
            return self.keep(_pick(BINARY, move.option)(x, self.partner(x, move.y)))
        return self.write(move)

    def write(self, move: Move) -> None:
        """To memory of the program's own that overlaps nothing."""
        own = [x for x, foreign in zip(self.values, self.foreign, strict=True) if not foreign]
        own = [x for x in own if all(s or n == 1 for s, n in zip(x.stride(), x.shape, strict=True))]
        if own:
            x = own[-1 - move.x % len(own)]
            _pick(WRITES, move.option)(x, self.partner(x, move.y).clone())

    def keep(self, x: Tensor, foreign: bool = False) -> None:
        if 0 < x.numel() <= LARGEST and x.ndim <= DEEPEST:
            self.values.append(x)
            self.foreign.append(foreign)


def _pick(table: list, option: int) -> Callable:
    return table[option % len(table)]


KINDS = ["unary", "binary", "binary", "view", "view", "reduce", "write", "write", "make", "matmul",
         "join"]  # fmt: skip
MOVES = st.builds(
    Move, st.sampled_from(KINDS), st.integers(0, 43), st.integers(0, 12), st.integers(0, 5)
)
MODES = ["plain", "grad", "twice", "vmap"]


def programs(*modes: str) -> st.SearchStrategy[Program]:
    """Those that run in one of these modes."""
    return st.builds(
        Program,
        moves=st.lists(MOVES, min_size=1, max_size=14).map(tuple),
        outputs=st.lists(st.integers(0, 8), min_size=1, max_size=4).map(tuple),
        mode=st.sampled_from(modes or MODES),
        outside=st.integers(0, 3),
        in_place=st.sampled_from([True, True, False]),
    )


def function_of(program: Program, outside: Sequence[Tensor]) -> Callable[..., list[Tensor]]:
    """The program as a function of three tensors."""

    def values(*inputs: Tensor) -> list[Tensor]:
        writer = Writer(inputs, outside)
        for move in program.moves:
            writer.play(move)
        return [writer.at(back) for back in program.outputs]

    def slopes(*inputs: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in inputs]
            total = sum(y.sum() * y.cos().sum() for y in values(*leaves))
            found = _grads(total, leaves, program.mode == "twice")
            if program.mode == "twice":
                found += _grads(sum(g.square().sum() for g in found), leaves, False)
        return [total.detach(), *(g.detach() for g in found)]

    def batched(*inputs: Tensor) -> list[Tensor]:
        return list(torch.func.vmap(lambda *xs: tuple(values(*xs)))(*inputs))

    return {"plain": values, "vmap": batched}.get(program.mode, slopes)


def _grads(y: Tensor, leaves: Sequence[Tensor], create_graph: bool) -> list[Tensor]:
    return list(torch.autograd.grad(y, leaves, create_graph=create_graph, allow_unused=True,
                                    materialize_grads=True))  # fmt: skip


def inputs_of(program: Program, seed: int) -> list[Tensor]:
    """Three tensors, the second not contiguous; a dimension of tasks for vmap."""
    generator = torch.Generator().manual_seed(seed)
    tasks = (2,) if program.mode == "vmap" else ()
    shapes = [(2, 3), (3, 2), (1, 3, 1)]
    found = [torch.randn(*tasks, *s, dtype=torch.float64, generator=generator) for s in shapes]
    return [found[0], found[1].transpose(-1, -2), found[2]]


def outside_of(program: Program) -> list[Tensor]:
    """Tensors that the program reads from outside, some of them views of others' memory."""
    generator = torch.Generator().manual_seed(99)
    whole = torch.randn(2, 3, 3, dtype=torch.float64, generator=generator)
    return [whole[1, :2], whole[0].t(), torch.arange(3, dtype=torch.float64).expand(2, 3)][
        : program.outside
    ]


class RefusedError(Exception):
    """It cannot be recorded, with a reason."""


def check(program: Program) -> None:
    """Record once; replay and run three times on other values; nothing outside changes."""
    outside = outside_of(program)
    function = function_of(program, outside)
    try:
        expected = [_run(function, inputs_of(program, seed)) for seed in (0, 1, 1, 2)]
    except (RuntimeError, IndexError, ValueError):
        assume(False)  # PyTorch itself refuses the program
    kept = [x.clone() for x in outside]
    given = [x.clone() for x in inputs_of(program, 0)]
    try:
        with torch.enable_grad():
            tape, results = record(function, given)
    except UncapturableError as refusal:
        raise RefusedError(str(refusal)) from None
    # While it is recorded PyTorch takes other formulas for some derivatives: that is rounding.
    exact = program.mode in ("plain", "vmap")
    _same("the recorded run", results, expected[0], exact)
    results = [x.detach().clone() for x in results]
    tape = cleaned(tape, program.in_place)
    replay = compiled(tape)
    constants = [x.clone() for x in tape.constants.values()]
    for seed, wanted in zip((0, 1, 1, 2), expected, strict=True):
        inputs = inputs_of(program, seed)
        before = [x.clone() for x in inputs]
        with torch.no_grad():
            found = replay(*inputs)
        _same(f"the replay on inputs {seed}", found, wanted, exact)
        if seed == 0:
            _same("the replay on the recorded inputs", found, results)
        _same("inputs after a replay", inputs, before)
        _same("tensors from outside after a replay", outside, kept)
        _same("constants after a replay", list(tape.constants.values()), constants)


def _run(function: Callable[..., list[Tensor]], inputs: list[Tensor]) -> list[Tensor]:
    """The results, in memory of their own."""
    return [x.detach().clone() for x in function(*inputs)]


def _same(
    what: str, found: Sequence[Tensor], expected: Sequence[Tensor], exact: bool = True
) -> None:
    for i, (x, y) in enumerate(zip(found, expected, strict=True)):
        assert (x.shape, x.dtype) == (y.shape, y.dtype), f"{what}, result {i}: another shape"
        x, y = x.detach().nan_to_num(), y.detach().nan_to_num()
        if not torch.equal(x, y):
            error, size = float((x - y).double().norm()), float(y.double().norm())
            allowed = 0.0 if exact else 1e-11 * max(size, 1.0)
            assert error <= allowed, f"{what}, result {i}: wrong by {error:.3g} of {size:.3g}"
