"""The meta-step is a pure function: traced whole with make_fx, it replays to the same numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from problems import EXACT, PROBLEMS, RULES, Problem, tensor
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map_only

import fastmaml as fm
from fastmaml.engine.model.inventory import take_inventory
from fastmaml.engine.step.meta_step import meta_step
from fastmaml.engine.step.program import Call, Program
from fastmaml.gradients.base import Meta
from fastmaml.maml.admit import admit
from fastmaml.maml.plan import plan

BY_NAME = {p.name: p for p in PROBLEMS}


def pure(program: Program, weights: Tensor) -> Any:
    """(parameters, buffers, episodes, randomness) -> losses, outputs, meta-gradient."""
    step_weights = [0.0] * program.steps + [1.0]

    def run(meta: Meta, buffers: Any, support: Any, query: Any, seeds: Tensor) -> Any:
        own = replace(program, forward=replace(program.forward, buffers=buffers))
        episodes = fm.Episodes(fm.Batch(*support), fm.Batch(*query))
        result = meta_step(Call(own, meta, episodes, seeds, weights, step_weights))
        return result.losses, result.outputs, result.gradient

    return run


def arguments(maml: fm.MAML, problem: Problem) -> tuple[Program, tuple[Any, ...]]:
    torch.manual_seed(3)
    episodes, held = problem.episodes, take_inventory(maml.module)
    call = admit(maml, held, episodes, maml.steps, "eager")
    program, meta, _, seeds = plan(maml, held, call, maml.gradient, "eager")[:4]
    parts = [(b.inputs, b.targets) for b in (episodes.support, episodes.query)]
    return program, (
        tree_map_only(Tensor, torch.detach, meta),
        program.forward.buffers,
        *parts,
        seeds,
    )


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize(
    ("problem", "rule"),
    [("mlp", "momentum"), ("dropout", "adam"), ("batch-norm", "sgd"), ("tied", "meta-sgd")],
)
def test_traced_equals_eager_on_other_values_too(problem: str, rule: str, method: str) -> None:
    row = BY_NAME[problem]
    maml = row.maml(RULES[rule](), gradient=EXACT[method], steps=2)
    program, inputs = arguments(maml, row)
    run = pure(program, torch.full((3,), 1 / 3, dtype=torch.float64))
    traced = make_fx(run)(*inputs)

    def moved(x: Tensor) -> Tensor:
        if x.is_floating_point():
            return x + 0.1 * tensor(*x.shape, seed=13)
        return x + 1 if x.ndim == 1 else x  # other seeds; the same labels and tokens

    others = (*tree_map_only(Tensor, moved, inputs[:1]), *inputs[1:-1], inputs[-1] + 1)
    for values in (inputs, others):
        expected, found = run(*values), traced(*values)
        flat = zip(
            torch.utils._pytree.tree_leaves(found),
            torch.utils._pytree.tree_leaves(expected),
            strict=True,
        )
        for a, b in flat:
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
