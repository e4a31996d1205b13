"""Planning an evaluation: what it does not need is not run, and what makes it right still is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastmaml as fm
from fastmaml.engine.step.forward import TaskForward

SUPPORT, QUERY = 4, 7


class NoWayBack(torch.autograd.Function):
    """The same number; its derivative is an error."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError("the query loss is differentiated")


class OneWay(nn.Module):
    """A classifier whose loss on a query set has no derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return NoWayBack.apply(found) if len(x) == QUERY else found  # type: ignore[no-untyped-call]


class Classifier(nn.Module):
    """Does `then` with large inputs, at first or at last."""

    def __init__(self, then: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.then = nn.Linear(3, 5), then

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x if self.then is None else self.then(self, x))
        return found


def episodes(tasks: int = 3, seed: int = 0, query: int = QUERY) -> fm.Episodes:
    generator = torch.Generator().manual_seed(seed)

    def batch(examples: int) -> fm.Batch:
        inputs = torch.randn(tasks, examples, 3, generator=generator)
        return fm.Batch(inputs, torch.randint(5, (tasks, examples), generator=generator))

    return fm.Episodes(batch(SUPPORT), batch(query))


def learner(model: nn.Module | None = None, **how: Any) -> fm.MAML:
    torch.manual_seed(0)
    given = {"lr": 0.3, "steps": 2, "loss": F.cross_entropy}
    return fm.MAML(Classifier() if model is None else model, **given | how)


# ---------------------------------------------------------------- what is not run


@pytest.mark.parametrize("executor", ["eager", None])
@pytest.mark.parametrize("tasks", [1, 3])
def test_the_query_loss_is_never_differentiated(executor: Any, tasks: int) -> None:
    """Not when it is planned, recorded, held against an eager run, or at other sizes."""
    torch.manual_seed(0)
    maml, plain = learner(OneWay(), executor=executor), learner(executor="eager")
    plain.load_state_dict(maml.state_dict())
    for seed in range(4):
        found, expected = (x.evaluate(episodes(tasks, seed)) for x in (maml, plain))
        torch.testing.assert_close(found.losses, expected.losses)
        torch.testing.assert_close(found.outputs, expected.outputs)
    for seed in range(2):
        one, other = (x.evaluate_each_step(episodes(tasks, seed)) for x in (maml, plain))
        for found, expected in zip(one, other, strict=True):
            torch.testing.assert_close(found.losses, expected.losses)
    assert maml.evaluate(episodes(tasks), steps=0).losses.isfinite().all()
    with pytest.raises(RuntimeError, match="the query loss is differentiated"):
        maml(episodes(tasks))  # as it has to be where something is learned


def test_how_often_the_query_set_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Query sets may be large: twice to watch what the code does, and then for the result."""
    passes = {False: 0, True: 0}
    original = TaskForward.__call__

    def counted(self: TaskForward, *args: Any, **kwargs: Any) -> Any:
        passes[kwargs.get("query", False)] += 1
        return original(self, *args, **kwargs)

    monkeypatch.setattr(TaskForward, "__call__", counted)
    maml = learner(executor="eager")
    maml.evaluate(episodes(1))
    assert passes[True] == 3
    maml.evaluate(episodes(1, seed=1))
    assert passes[True] == 4


# ---------------------------------------------------------------- what is decided as before


@pytest.mark.parametrize("executor", ["eager", None])
@pytest.mark.parametrize("query", [SUPPORT, 40])
def test_chunks_are_those_that_a_measured_query_pass_gives(executor: Any, query: int) -> None:
    """Where nothing is differentiated, what a query pass makes is judged by the support pass."""
    plans = []
    for method in (fm.gradients.FirstOrder(), None):
        model = nn.Sequential(nn.Linear(3, 700), nn.ReLU(), nn.Linear(700, 5))
        maml = learner(model, executor=executor, gradient=method)
        if method is None:
            maml.evaluate(episodes(64, query=query))
            plans.append(maml._plans.values()[-1])
        else:
            plans.append(maml.explain(episodes(64, query=query)))
    measured, judged = plans
    assert judged.chunk == measured.chunk
    assert judged.batched == measured.batched
    assert judged.bytes_step == measured.bytes_step
    assert judged.bytes_query == pytest.approx(measured.bytes_query, rel=0.05)
    assert judged.bytes_estimate <= measured.bytes_estimate


def test_the_budget_holds_for_evaluations() -> None:
    model = nn.Sequential(nn.Linear(3, 700), nn.ReLU(), nn.Linear(700, 5))
    chunks = []
    for budget in (None, 2_000_000):
        maml = learner(model, executor="eager", memory_budget=budget)
        maml.evaluate(episodes(64, query=40))
        chunks.append(maml._plans.values()[-1].chunk)
    assert chunks[0] > chunks[1] >= 1


# ---------------------------------------------------------------- what makes it right


def large(x: Tensor) -> bool:
    return len(x) == QUERY


def writes_its_input(model: Classifier, x: Tensor) -> Tensor:
    return x.mul_(0.5) if large(x) else x


def writes_its_parameter(model: Classifier, x: Tensor) -> Tensor:
    if large(x):
        with torch.no_grad():
            model.layer.weight.mul_(0.5)
    return x


@pytest.mark.parametrize("executor", ["eager", None])
@pytest.mark.parametrize(
    ("then", "steps", "message"),
    [
        (writes_its_input, 2, "changes its inputs in place"),
        (writes_its_parameter, 0, "changes its parameters in place"),
    ],
)
def test_what_a_query_pass_must_not_do(executor: Any, then: Any, steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learner(Classifier(then), executor=executor).evaluate(episodes(), steps)


@pytest.mark.parametrize("executor", ["eager", None])
def test_planning_writes_to_no_parameter_of_the_user_s(executor: Any) -> None:
    """Also where the code writes to those of an adapted task, which are a task's own."""
    model = Classifier(writes_its_parameter)
    before = model.layer.weight.clone()
    learner(model, executor=executor).evaluate(episodes())
    assert torch.equal(model.layer.weight, before)


def branches(model: Classifier, x: Tensor) -> Tensor:
    return x * 3 if large(x) and float(x[0, 0]) > 0 else x


def draws(model: Classifier, x: Tensor) -> Tensor:
    return F.dropout(x, 0.5) if large(x) else x


def looks_at_a_shape(model: Classifier, x: Tensor) -> Tensor:
    return x[x[:, 0] > 0].sum(0) + x if large(x) else x


@pytest.mark.parametrize("then", [branches, draws, looks_at_a_shape])
def test_query_passes_that_are_not_all_alike(then: Any) -> None:
    """Recorded or not, a task alone or with others, the numbers are the same."""
    recorded, alone = learner(Classifier(then)), learner(Classifier(then), executor="eager")
    for seed in range(5):
        batch = episodes(seed=seed)
        torch.manual_seed(seed)
        together = recorded.evaluate(batch)
        torch.manual_seed(seed)
        expected = alone.evaluate(batch)
        torch.testing.assert_close(together.losses, expected.losses)
        if then is not draws:  # whose masks are of the tasks' own seeds
            single = torch.cat([alone.evaluate(task).losses for task in batch])
            torch.testing.assert_close(single, expected.losses)


def scales(model: Classifier, x: Tensor) -> Tensor:
    return x * model.factor if large(x) else x  # type: ignore[operator]


@pytest.mark.parametrize("executor", ["eager", None])
def test_what_a_query_pass_reads_may_change(executor: Any) -> None:
    model = Classifier(scales)
    model.factor = 1.0  # type: ignore[assignment]
    maml, batch = learner(model, executor=executor), episodes()
    for _ in range(3):
        before = maml.evaluate(batch)
    model.factor = 3.0  # type: ignore[assignment]
    inputs = batch.query.inputs * 3
    model_without, without = Classifier(), fm.Batch(inputs, batch.query.targets)
    model_without.load_state_dict(model.state_dict())
    expected = learner(model_without, executor="eager").evaluate(
        fm.Episodes(batch.support, without)
    )
    found = maml.evaluate(batch)
    torch.testing.assert_close(found.losses, expected.losses)
    assert not torch.allclose(before.losses, found.losses)


@pytest.mark.parametrize("executor", ["eager", None])
def test_labels_are_looked_at_in_evaluations(executor: Any) -> None:
    wrong = episodes()
    wrong.query.targets[1, 2] = 5
    for calls in range(3):
        maml = learner(executor=executor)
        for _ in range(calls):
            maml.evaluate(episodes())
        with pytest.raises(
            ValueError, match=r"query.targets holds the label 5 \(task 1, example 2"
        ):
            maml.evaluate(wrong)


def test_training_after_evaluation_is_planned_for_itself() -> None:
    """First order too, whose plan an evaluation must not have made."""
    for method in (fm.gradients.FirstOrder(), None):
        maml, plain = (learner(gradient=method, executor=e) for e in (None, "eager"))
        batch = episodes()
        maml.evaluate(batch)
        maml(batch).loss.backward()
        plain(batch).loss.backward()
        pairs = zip(maml.parameters(), plain.parameters(), strict=True)
        assert all(p.grad is not None and torch.allclose(p.grad, q.grad) for p, q in pairs)
        assert {type(plan.gradient).__name__ for plan in maml._plans.values()} == {
            *("Adaptation", "Unrolled" if method is None else "FirstOrder"),
        }
