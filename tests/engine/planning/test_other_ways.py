"""Models that do something else once their data say so: what a plan saw is not all there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hand_loop import hand_loop
from outcomes import vectors
from torch import Tensor, nn

import fastmaml as fm

OUTSIDE = torch.ones(2, dtype=torch.float64, requires_grad=True)


class Branching(nn.Module):
    """Does what it is given where the inputs are large."""

    def __init__(self, then: Callable[[Branching, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2).double()
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return self.then(self, x, y) if float(x.abs().max()) > 5 else y


def small_and_large() -> tuple[fm.Episodes, fm.Episodes]:
    def at_most(limit: float, seed: int) -> fm.Episodes:
        episodes = vectors(seed=seed)
        sets = (episodes.support, episodes.query)
        return fm.Episodes(
            *(fm.Batch(b.inputs * limit / b.inputs.abs().amax(), b.targets) for b in sets)
        )

    small, large = at_most(4, 1), at_most(4, 2)
    large.support.inputs[1] *= 2  # in one task alone
    return small, large


def writes_its_parameter(model: Branching, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        model.layer.weight.mul_(0.5)
    return model.layer(x)


def writes_its_input(model: Branching, x: Tensor, y: Tensor) -> Tensor:
    return model.layer(x.mul_(0.5))


def uses_another_tensor(model: Branching, x: Tensor, y: Tensor) -> Tensor:
    return y * OUTSIDE


REFUSED = {
    writes_its_parameter: "changes its parameters in place",
    writes_its_input: "changes its inputs in place",
    uses_another_tensor: "a trainable tensor of shape",
}


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("verb", ["train", "evaluate", "per_task"])
@pytest.mark.parametrize("executor", [None, "eager"])
@pytest.mark.parametrize("then", REFUSED, ids=lambda f: f.__name__)
def test_what_is_refused_at_first_is_refused_later(
    then: Any, executor: str | None, verb: str
) -> None:
    model = Branching(then)
    maml = fm.MAML(model, lr=0.3, steps=2, loss=F.mse_loss, executor=executor)

    @maml.per_task
    def task(learner: Any, support: fm.Batch, query: fm.Batch) -> Tensor:
        learner.adapt(F.mse_loss(learner(support.inputs), support.targets))
        return F.mse_loss(learner(query.inputs), query.targets)

    run = {"train": maml, "evaluate": maml.evaluate, "per_task": task}[verb]
    small, large = small_and_large()
    run(small)
    if then is uses_another_tensor and verb == "evaluate":
        run(large)  # nothing is learned there
        return
    before = {n: p.clone() for n, p in model.named_parameters()}
    inputs = large.support.inputs.clone()
    with pytest.raises(ValueError, match=REFUSED[then]):
        run(large)
    assert torch.equal(large.support.inputs, inputs)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
    run(small)


def another_way(model: Branching, x: Tensor, y: Tensor) -> Tensor:
    return model.layer(x.sin()) * x.abs().mean()


class Counting(Branching):
    def __init__(self) -> None:
        super().__init__(another_way)
        self.count = 1.0

    def forward(self, x: Tensor) -> Tensor:
        if float(x.abs().max()) > 5:
            self.count = self.count + 1
        y: Tensor = self.layer(x) * self.count
        return y


def draws(model: Branching, x: Tensor, y: Tensor) -> Tensor:
    noise = torch.randn(2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return y + noise


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("made", [Counting, lambda: Branching(draws)], ids=["counts", "draws"])
def test_steps_that_run_again_are_refused_where_they_would_differ(
    made: Callable[[], nn.Module],
) -> None:
    small, large = small_and_large()
    options: dict[str, Any] = {"lr": 0.3, "steps": 2, "loss": F.mse_loss}
    maml = fm.MAML(made(), gradient=fm.gradients.Checkpointed(), **options)
    maml(small)
    with pytest.raises(ValueError, match="runs inner steps again, but the model"):
        maml(large)
    maml = fm.MAML(made(), gradient=fm.gradients.Unrolled(), **options)
    maml(small)
    maml(large).loss.backward()
    with pytest.raises(fm.MissingDerivative, match="reads values"):
        fm.MAML(made(), gradient=fm.gradients.MixedMode(), **options)(small)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("gradient", [fm.gradients.Unrolled(), fm.gradients.Checkpointed(), None])
@pytest.mark.parametrize("executor", [None, "eager"])
def test_either_way_is_the_plain_loops(executor: str | None, gradient: Any) -> None:
    model = Branching(another_way)
    options: dict[str, Any] = {"executor": executor, "gradient": gradient}
    maml = fm.MAML(model, lr=0.3, steps=3, loss=F.mse_loss, **options)
    for episodes in (*small_and_large(), *small_and_large()):
        expected_loss, expected = hand_loop(model, F.mse_loss, episodes, 0.3, 3)
        maml.zero_grad()
        out = maml(episodes)
        out.loss.backward()
        torch.testing.assert_close(out.loss.detach(), expected_loss, rtol=1e-10, atol=0)
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-12)
        evaluated = maml.evaluate(episodes).losses.mean()
        torch.testing.assert_close(evaluated, expected_loss, rtol=1e-10, atol=0)


class Bags(nn.Module):
    """With a table that is large enough to be adapted by rows, were it an embedding's."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bag = nn.EmbeddingBag(1500, 3, mode=mode, padding_idx=3).double()
        self.last = nn.Linear(3, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.bag(x))
        return found


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("highest", [12, 1500])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_a_large_table(mode: str, highest: int) -> None:
    model = Bags(mode)
    for executor in (None, "eager"):
        maml = fm.MAML(model, lr=0.3, steps=2, loss=F.mse_loss, executor=executor)
        for seed in range(2):
            torch.manual_seed(seed)
            ids = [torch.randint(0, highest, (2, 4, 3)) for _ in range(2)]
            targets = [torch.randn(2, 4, 2, dtype=torch.float64) for _ in range(2)]
            episodes = fm.Episodes(*map(fm.Batch, ids, targets))
            maml.zero_grad()
            maml(episodes).loss.backward()
            _, expected = hand_loop(Twice(model), F.mse_loss, episodes, 0.3, 2)
            for name, p in model.named_parameters():
                torch.testing.assert_close(p.grad, expected["of." + name], rtol=1e-9, atol=1e-12)


class Twice(nn.Module):
    """The same by operations that PyTorch differentiates twice."""

    def __init__(self, bags: Bags) -> None:
        super().__init__()
        self.of = bags

    def forward(self, x: Tensor) -> Tensor:
        bag, kept = self.of.bag, (x != 3).unsqueeze(-1)
        rows = bag.weight[x]
        if bag.mode == "max":
            found = rows.masked_fill(~kept, -torch.inf).amax(1)
            found = torch.where(found.isinf(), 0, found)
        else:
            found = (rows * kept).sum(1)
            found = found / kept.sum(1).clamp(min=1) if bag.mode == "mean" else found
        result: Tensor = self.of.last(found)
        return result
