"""What only a later support set makes a model do is seen as well as what the first one does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm


def batch(examples: int, seed: int) -> fm.Batch:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(3, examples, 5, generator=draw, dtype=torch.float64)
    return fm.Batch(x, torch.randint(4, (3, examples), generator=draw))


SETS, QUERY = [batch(3, 1), batch(6, 2)], batch(4, 3)
OWN, ONE = fm.Episodes.of_steps(SETS, QUERY), fm.Episodes(SETS[1], QUERY)


class Base(nn.Module):
    """Does `more` where there are many examples, as in the second set alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 4)
        self.calls = 0
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(self.a(x).tanh())
        return self.more(h, x) if x.shape[0] >= 5 else h

    def more(self, h: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError


class Random(Base):
    def more(self, h: Tensor, x: Tensor) -> Tensor:
        return h * float(np.random.rand())


class Counts(Base):
    def more(self, h: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return h * self.calls


class Reads(Base):
    def more(self, h: Tensor, x: Tensor) -> Tensor:
        return h * 2 if x.sum().item() > 0 else h * 3


class Catches(Base):
    def more(self, h: Tensor, x: Tensor) -> Tensor:
        try:
            return h * (2 if x.abs().sum().item() > 0 else 3)
        except RuntimeError:
            return h * 5


class Chooses(Base):
    def more(self, h: Tensor, x: Tensor) -> Tensor:
        return h + x[x[:, 0] > 0].sum()


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return 3 * x * x * g


class Cubes(Base):
    def more(self, h: Tensor, x: Tensor) -> Tensor:
        found: Tensor = Once.apply(h)  # type: ignore[no-untyped-call]
        return found


class Trainable(Base):
    other = torch.ones((), dtype=torch.float64, requires_grad=True)

    def more(self, h: Tensor, x: Tensor) -> Tensor:
        return h * self.other


def maml(kind: type[Base], **options: Any) -> fm.MAML:
    return fm.MAML(kind(), lr=0.3, steps=2, loss=F.cross_entropy, **options)


@pytest.mark.parametrize("given", [OWN, ONE], ids=["own", "one"])
@pytest.mark.parametrize("kind", [Random, Counts])
@pytest.mark.parametrize(
    "gradient", [fm.gradients.Checkpointed(), fm.gradients.MixedMode()], ids=str
)
def test_steps_do_not_run_again_where_they_would_do_otherwise(
    kind: type[Base], gradient: Any, given: fm.Episodes
) -> None:
    with pytest.raises(ValueError, match="runs inner steps again, but the model"):
        maml(kind, gradient=gradient)(given)
    chosen = maml(kind, memory_budget=1)
    assert "could not be right" in str(chosen.explain(given))


@pytest.mark.parametrize("chunk", [None, 1])
def test_what_counts_its_calls_is_not_recorded(chunk: int | None) -> None:
    learner = maml(Counts, tasks_chunk=chunk, spot_checks=False)
    found = [learner(OWN).loss.item() for _ in range(5)]
    assert len(set(found)) == 5
    assert "executor: eager" in str(learner.explain(OWN))


@pytest.mark.parametrize("kind", [Reads, Catches, Chooses])
def test_what_vmap_cannot_batch_runs_one_task_at_a_time(kind: type[Base]) -> None:
    learner = maml(kind)
    assert fm.verify(learner, OWN).agrees
    assert "tasks: one at a time" in str(learner.explain(OWN))
    alone = maml(kind, tasks_chunk=1)(OWN).loss.item()
    assert learner(OWN).loss.item() == pytest.approx(alone, rel=1e-12)


def test_second_derivatives_that_are_missing_are_missed() -> None:
    with pytest.raises(fm.MissingDerivative, match="once_differentiable"):
        maml(Cubes, tasks_chunk=1)(OWN)


def test_what_gets_no_meta_gradient_is_named() -> None:
    with pytest.raises(ValueError, match="the meta-gradient does not reach it"):
        maml(Trainable)(OWN)


def test_a_set_of_another_dtype_is_named() -> None:
    wrong = SETS[1].to(torch.float32)
    with pytest.raises(ValueError, match=r"support of inner step 1\.inputs is torch\.float32"):
        maml(Random)([SETS[0], wrong], QUERY)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m(SETS[0], QUERY),
        lambda m: m((b for b in SETS), query=QUERY),
        lambda m: fm.Episodes.of_steps(SETS[0], QUERY),
        lambda m: m(SETS, OWN),
    ],
)
def test_no_list_of_sets_is_no_call_of_the_model(call: Any) -> None:
    with pytest.raises(ValueError, match=r"give a (list of )?Batch"):
        call(maml(Random))


def test_names_of_arguments_count() -> None:
    learner = maml(Reads)
    assert learner(supports=SETS, query=QUERY).loss.item() == learner(OWN).loss.item()
    with pytest.raises(TypeError, match="query"):
        learner(SETS)
