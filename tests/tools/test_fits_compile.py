"""torch.compile around, beside and inside a `MAML`: what is compiled, and the same gradients.

The meta-step is recorded by fastmaml itself, so that torch.compile keeps out of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from fits import STEPS, assert_exact, by_hand, classifier, episodes, gradients, make
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",  # Dynamo's own imports warn of one another
    "ignore:The .grad attribute:UserWarning",  # it looks at every tensor that it meets
)

# Without code generation it starts at once.
compiled: Callable[..., Callable[..., Tensor]] = partial(torch.compile, backend="aot_eager")


@pytest.mark.slow
def test_a_compiled_optimizer_step() -> None:
    mine, plain = make(), make()
    optimizers = [torch.optim.SGD(m.parameters(), 0.5, momentum=0.9) for m in (mine, plain)]
    steps = [torch.compile(optimizers[0].step, backend="eager"), optimizers[1].step]
    for _ in range(2):
        for maml, optimizer, step in zip((mine, plain), optimizers, steps, strict=True):
            maml(episodes()).loss.backward()
            step()
            optimizer.zero_grad()
    for a, b in zip(mine.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


@pytest.mark.slow
def test_a_compiled_learner() -> None:
    maml, task = make(), episodes()[0]
    learner = maml.adapt_to(fm.Batch(task.support.inputs[0], task.support.targets[0]))
    outputs = compiled(learner)(task.query.inputs[0])
    torch.testing.assert_close(outputs, maml.evaluate(task).outputs[0], rtol=1e-12, atol=1e-15)


def test_around_a_maml() -> None:
    maml = make()
    whole = compiled(maml)
    for _ in range(2):
        maml.zero_grad()
        whole(episodes()).loss.backward()
        assert_exact(gradients(maml), by_hand())


def test_around_a_function_that_calls_a_maml() -> None:
    maml = make()

    @compiled
    def loss_of(data: fm.Episodes) -> Tensor:
        return maml(data).loss * 3

    for _ in range(2):
        maml.zero_grad()
        loss_of(episodes()).backward()
        assert_exact(gradients(maml), 3 * by_hand())


def in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="aot_eager")
    return model


def one_layer(model: nn.Module) -> nn.Module:
    model.body = torch.compile(model.body, backend="aot_eager")
    return model


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("executor", [None, "eager"])
@pytest.mark.parametrize("compile_it", [compiled, in_place, one_layer])
def test_a_compiled_model_runs_as_it_was_written(
    compile_it: Callable[[nn.Module], nn.Module], executor: str | None
) -> None:
    maml = make(compile_it(classifier()), executor=executor)
    maml(episodes()).loss.backward()
    assert_exact(gradients(maml), by_hand())


def test_a_compiled_loss() -> None:
    maml = make(loss=compiled(F.cross_entropy))
    maml(episodes()).loss.backward()
    assert_exact(gradients(maml), by_hand())


def test_a_per_task_function() -> None:
    maml = make(compiled(classifier()))
    loss = compiled(F.cross_entropy)

    @maml.per_task
    def run(learner: Any, support: fm.Batch, query: fm.Batch) -> Tensor:
        for _ in range(STEPS):
            learner.adapt(loss(learner(support.inputs), support.targets))
        return loss(learner(query.inputs), query.targets)

    step = compiled(lambda data: run(data).loss * 3)
    for _ in range(2):
        maml.zero_grad()
        step(episodes()).backward()
        assert_exact(gradients(maml), 3 * by_hand())


def test_outside_the_meta_step_a_compiled_model_is_compiled_still() -> None:
    model = compiled(classifier())
    maml, task = make(model), episodes()[0]
    maml(episodes()).loss.backward()
    learner = maml.adapt_to(fm.Batch(task.support.inputs[0], task.support.targets[0]))
    assert type(learner) is type(model)
    torch.testing.assert_close(
        learner(task.query.inputs[0]), make().evaluate(task).outputs[0], rtol=1e-12, atol=1e-15
    )
    assert next(iter(maml.state_dict())) == "module._orig_mod.body.weight"
