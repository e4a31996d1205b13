"""One table of gradient method x rule x problem x path, in float64: all give the gradient.

The eager meta-step on plain PyTorch is held against central differences and against itself with
other methods; every other way of running it is held against that.
"""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from outcomes import EAGER, PATHS, Outcome, outcome, require
from problems import EXACT, OFFLOADED, PROBLEMS, RULES, Problem, meta_gradient, relative, tensor
from torch import Tensor

import fastmaml as fm
from fastmaml.gradients import FirstOrder, MixedMode, Truncated, Unrolled

BY_NAME = {problem.name: problem for problem in PROBLEMS}
SOME = ("unrolled", "checkpointed", "mixed-mode")
EVERY = {**EXACT, **OFFLOADED}
CELLS = [
    (p, r, m)
    for p in BY_NAME
    for r in RULES
    for m in (EXACT if r == "momentum" or p == "mlp" else SOME)
]
CELLS += [("mlp", r, m) for r in ("momentum", "adam", "lslr") for m in OFFLOADED]
METHODS = [(p, m) for p in BY_NAME for m in (EVERY if p in ("mlp", "attention") else SOME)]
# All problems and methods with one rule, all rules on one problem, and each in turn with others.
SOME_CELLS = [(p, "momentum", m) for p, m in METHODS]
SOME_CELLS += [("mlp", r, m) for r in RULES for m in ("unrolled", "mixed-mode-2")]
SOME_CELLS += zip(itertools.cycle(BY_NAME), RULES, itertools.cycle(EXACT), strict=False)
SOME_CELLS = [*dict.fromkeys(SOME_CELLS)]


@functools.cache
def eager(problem: str, rule: str, method: str) -> Outcome:
    """What the eager meta-step on plain PyTorch gives."""
    maml = BY_NAME[problem].maml(RULES[rule](), gradient=EVERY[method], **EAGER)
    return outcome(maml, BY_NAME[problem].episodes)


def loss_at(maml: fm.MAML, start: list[Tensor], move: Tensor, problem: Problem) -> float:
    """The query loss with all meta-parameters moved so far, without any derivative."""
    moves = torch.split(move, [x.numel() for x in start])
    trainable = [p for p in maml.parameters() if p.requires_grad]
    with torch.no_grad():
        for p, x, dx in zip(trainable, start, moves, strict=True):
            p.copy_(x + dx.view_as(x))
    torch.manual_seed(5)
    return float(maml.evaluate(problem.episodes).loss)


@functools.cache
def central_difference(name: str, rule: str) -> tuple[Tensor, float]:
    """A direction and the derivative along it, by central differences of sixth order."""
    problem = BY_NAME[name]
    maml = problem.maml(RULES[rule](), **EAGER)
    start = [p.detach().clone() for p in maml.parameters() if p.requires_grad]
    direction = tensor(sum(x.numel() for x in start), seed=11)
    direction = direction / direction.norm()
    h = 2e-4  # small, or a kink of ClipValue or ReLU would lie within reach

    def at(i: int) -> float:
        return loss_at(maml, start, i * h * direction, problem)

    odd = [at(i) - at(-i) for i in (1, 2, 3)]
    return direction, (45 * odd[0] - 9 * odd[1] + odd[2]) / (60 * h)


@pytest.mark.sampled
@pytest.mark.parametrize(("problem", "rule", "method"), CELLS)
def test_exact_methods_equal_central_differences_and_each_other(
    problem: str, rule: str, method: str
) -> None:
    direction, expected = central_difference(problem, rule)
    gradient = eager(problem, rule, method).gradient
    error = abs(float(gradient @ direction) - expected)
    assert error < 1e-9 * float(gradient.norm())
    assert relative(gradient, eager(problem, rule, "unrolled").gradient) < 1e-12


@pytest.mark.sampled(
    together=1, columns=lambda path, **cell: [(path, value) for value in cell.values()]
)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("problem", "rule", "method"), SOME_CELLS)
def test_every_path_equals_eager_execution(problem: str, rule: str, method: str, path: str) -> None:
    """Captured on plain PyTorch to the last bit; native kernels within rounding.

    Forward mode too is within rounding: PyTorch takes other formulas while anything records it.
    """
    require(path)
    maml = BY_NAME[problem].maml(RULES[rule](), gradient=EVERY[method], **PATHS[path])
    found, expected = outcome(maml, BY_NAME[problem].episodes), eager(problem, rule, method)
    if path != "captured-reference":
        found.check_close(expected, 1e-11)
    elif isinstance(EVERY[method], MixedMode):
        found.check_close(expected, 1e-14)
    else:
        assert found.same_bits(expected)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize(("problem", "method"), METHODS)
def test_batched_equals_chunked_equals_looped(problem: str, method: str) -> None:
    row = BY_NAME[problem]
    batched, *others = (
        row.maml(RULES["momentum"](), gradient=EVERY[method], tasks_chunk=chunk, **EAGER)
        for chunk in (3, 2, 1)
    )
    assert batched.explain(row.episodes).batched
    gradient = eager(problem, "momentum", method).gradient  # all tasks at once
    torch.manual_seed(3)
    expected = batched.evaluate(row.episodes)
    for other in others:
        assert relative(meta_gradient(other, row.episodes), gradient) < 1e-12
        torch.manual_seed(3)
        found = other.evaluate(row.episodes)
        torch.testing.assert_close(found.losses, expected.losses, rtol=1e-12, atol=0)
        torch.testing.assert_close(found.outputs, expected.outputs, rtol=1e-11, atol=1e-13)


@pytest.mark.sampled(together=1)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("problem", BY_NAME)
def test_the_second_order_term_is_large(problem: str, rule: str) -> None:
    """Else this table would test nothing: first order must be visibly wrong on it."""
    row = BY_NAME[problem]
    first = meta_gradient(row.maml(RULES[rule](), gradient=FirstOrder(), **EAGER), row.episodes)
    assert relative(first, eager(problem, rule, "unrolled").gradient) > 0.01


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("problem", BY_NAME)
def test_truncated_goes_from_first_order_to_exact(problem: str) -> None:
    row = BY_NAME[problem]

    def of(gradient: fm.gradients.GradientMethod) -> Tensor:
        return meta_gradient(row.maml(RULES["adam"](), gradient=gradient, **EAGER), row.episodes)

    assert torch.equal(of(Truncated(last=0)), of(FirstOrder()))
    assert torch.equal(of(Truncated(last=3)), of(Unrolled()))
    exact = of(Unrolled())
    assert 0 < relative(of(Truncated(last=2)), exact) < relative(of(Truncated(last=0)), exact)


MULTI_STEP = [0.2, 0.3, 0.5]


@functools.cache
def weighted_sum() -> Tensor:
    """Of the meta-gradients after one, two and three steps."""
    found: list[Tensor] = []
    for steps, weight in zip((1, 2, 3), MULTI_STEP, strict=True):
        maml = BY_NAME["mlp"].maml(RULES["momentum"](), steps=steps, gradient=Unrolled())
        found.append(weight * meta_gradient(maml, BY_NAME["mlp"].episodes))
    return torch.stack(found).sum(0)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("method", EVERY)
def test_multi_step_loss_is_the_weighted_sum(method: str) -> None:
    row, weights = BY_NAME["mlp"], MULTI_STEP
    maml = row.maml(RULES["momentum"](), gradient=EVERY[method])
    assert relative(meta_gradient(maml, row.episodes, step_weights=weights), weighted_sum()) < 1e-12
    losses = [o.losses for o in maml.evaluate_each_step(row.episodes)][1:]
    out = maml(row.episodes, step_weights=torch.tensor(weights, dtype=torch.float64))
    torch.testing.assert_close(out.losses, sum(w * x for w, x in zip(weights, losses, strict=True)))
