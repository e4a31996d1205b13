"""`maml.adapted`: all tasks after inner steps, as a value."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
from problems import tensor
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.rules import SGD, Adam, Momentum, Scheduled

RULES: dict[str, Any] = {
    "sgd": lambda: SGD(0.3),
    "scheduled": lambda: Scheduled(Momentum(0.2, 0.8), (1.0, 0.5)),
    "adam": lambda: Adam(0.1, eps=0.1),
}
EXECUTORS = ("eager", "captured")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def batch(seed: int, tasks: int = 4) -> fm.Batch:
    return fm.Batch(tensor(tasks, 5, 3, seed=seed), tensor(tasks, 5, 2, seed=seed + 50))


def one(batch: fm.Batch, task: int) -> fm.Batch:
    return batch.map(lambda x: x[task])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("chunk", [None, 3])
def test_steps_on_one_set_are_those_of_adapt_to(rule: str, executor: Any, chunk: Any) -> None:
    maml = fm.MAML(
        network(),
        rule=RULES[rule](),
        steps=2,
        loss=F.mse_loss,
        executor=executor,
        tasks_chunk=chunk,
    )
    support, x = batch(1), tensor(4, 7, 3, seed=9)
    adapted = maml.adapted(support)
    assert (adapted.steps, adapted.tasks) == (2, 4)
    for _ in range(3):  # looked at, then replayed
        outputs = adapted(x)
        for task in range(4):
            expected = maml.adapt_to(one(support, task))
            torch.testing.assert_close(outputs[task], expected(x[task]), rtol=1e-11, atol=1e-13)
            own = adapted.module(task)
            for a, b in zip(own.parameters(), expected.parameters(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_further_steps_on_the_same_set_are_steps_at_once(rule: str, executor: Any) -> None:
    maml = fm.MAML(network(), rule=RULES[rule](), steps=1, loss=F.mse_loss, executor=executor)
    support = batch(1)
    by_and_by = maml.adapted(support).step(support).step(support, steps=2)
    at_once = maml.adapted(support, steps=4)
    assert by_and_by.steps == at_once.steps == 4
    for name, p in at_once.parameters.items():
        torch.testing.assert_close(by_and_by.parameters[name], p, rtol=1e-12, atol=1e-14)


def test_other_data_at_each_step() -> None:
    model, sets = network(), [batch(1), batch(2)]
    maml = fm.MAML(model, lr=0.3, loss=F.mse_loss)
    first = maml.adapted(sets[0])
    kept = {n: p.clone() for n, p in first.parameters.items()}
    second = first.step(sets[1])
    for task in range(4):
        now = {n: p.detach() for n, p in model.named_parameters()}
        for given in sets:
            leaves = {n: p.detach().requires_grad_() for n, p in now.items()}
            output = torch.func.functional_call(model, leaves, (given.inputs[task],))
            loss = F.mse_loss(output, given.targets[task])
            slopes = torch.autograd.grad(loss, list(leaves.values()))
            now = {
                n: p.detach() - 0.3 * g for (n, p), g in zip(leaves.items(), slopes, strict=True)
            }
        for n, p in now.items():
            torch.testing.assert_close(second.parameters[n][task], p, rtol=1e-11, atol=1e-13)
    for n, p in first.parameters.items():
        assert torch.equal(p, kept[n]), "the value that it began from stays"


def test_a_step_of_the_outer_loop_changes_no_value() -> None:
    maml = fm.MAML(network(), lr=0.3, loss=F.mse_loss)
    adapted, x = maml.adapted(batch(1)), tensor(4, 7, 3, seed=9)
    before = [adapted(x) for _ in range(2)][-1]
    with torch.no_grad():
        for p in maml.parameters():
            p.add_(1)
    assert torch.equal(adapted(x), before)
    assert not torch.equal(maml.adapted(batch(1))(x), before)


@pytest.mark.parametrize(
    "change", ["mode", "attribute", "buffer", "in place", "data", "strides", "dtype"]
)
def test_what_changes_in_between_is_seen(change: str) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.factor = network(), 1.0
            self.register_buffer("shift", torch.zeros(2, dtype=torch.float64))
            self.register_buffer("turn", torch.tensor([[0.0, 2.0], [1.0, 0.0]]).double())

        def forward(self, x: Tensor) -> Tensor:
            found = self.factor * self.net(x) @ self.turn + self.shift
            return found if self.training else 2 * found

    maml = fm.MAML(Scaled(), lr=0.3, loss=F.mse_loss)
    adapted, x = maml.adapted(batch(1)), tensor(4, 7, 3, seed=9)
    before = [adapted(x) for _ in range(3)][-1]
    expected = before
    if change == "mode":
        maml.eval()
        expected = 2 * before
    elif change == "attribute":
        maml.module.factor = 3.0
        expected = 3 * before
    elif change == "buffer":
        maml.module.shift = torch.ones(2, dtype=torch.float64)
        expected = before + 1
    elif change == "in place":
        maml.module.shift.fill_(1)
        expected = before + 1
    elif change == "strides":
        maml.module.turn.data = maml.module.turn.data.t()
        expected = before @ torch.tensor([[0.0, 2.0], [1.0, 0.0]]).double().inverse()
        expected = expected @ torch.tensor([[0.0, 2.0], [1.0, 0.0]]).double().t()
    elif change == "data":
        maml.module.shift.data = torch.ones(2, dtype=torch.float64)
        expected = before + 1
    else:
        x = x.float().double()
    for _ in range(2):
        torch.testing.assert_close(adapted(x), expected, rtol=1e-5, atol=1e-6)
    assert change == "dtype" or not torch.allclose(expected, before)


def test_what_does_not_adapt_is_the_model_s_own() -> None:
    maml = fm.MAML(network(), lr=0.3, loss=F.mse_loss, scope="head")
    adapted, x = maml.adapted(batch(1)), tensor(4, 7, 3, seed=9)
    assert set(adapted.parameters) == {"2.weight", "2.bias"}
    for _ in range(2):
        adapted(x)
    with torch.no_grad():
        maml.module[0].weight.mul_(2)
    torch.testing.assert_close(adapted(x)[1], adapted.module(1)(x[1]), rtol=1e-12, atol=1e-14)


def test_distributions_are_outputs() -> None:
    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean = network()

        def forward(self, x: Tensor) -> Any:
            normal = Normal(self.mean(x), torch.tensor(0.5, dtype=x.dtype), validate_args=False)
            return {"actions": Independent(normal, 1, validate_args=False)}

    def loss(learner: Any, support: Any) -> Tensor:
        found: Tensor = -learner(support["x"])["actions"].log_prob(support["y"]).mean()
        return found

    maml, given = fm.MAML(Policy(), lr=0.1), batch(1)
    adapted = maml.adapted({"x": given.inputs, "y": given.targets}, loss=loss)
    x = tensor(4, 7, 3, seed=9)
    for _ in range(3):
        actions = adapted(x)["actions"]
        assert actions.batch_shape == (4, 7)
        for task in range(4):
            own = adapted.module(task)(x[task])["actions"]
            torch.testing.assert_close(actions.mean[task], own.mean, rtol=1e-12, atol=1e-14)
    kept = maml._adapting._known
    maml.adapted({"x": given.inputs, "y": given.targets}, loss=loss)
    assert maml._adapting._known is kept, "the same loss is looked at once"


def test_what_a_loss_depends_on_is_seen() -> None:
    def scaled(factors: list[float], learner: Any, x: Tensor) -> Tensor:
        found: Tensor = factors[0] * learner(x).square().mean()
        return found

    factors, x = [1.0], tensor(4, 5, 3, seed=1)
    loss = functools.partial(scaled, factors)
    maml = fm.MAML(network(), lr=0.3, spot_checks=False)
    before = [maml.adapted(x, loss=loss).parameters["0.weight"] for _ in range(3)][-1]
    factors[0] = 2.0
    again = maml.adapted(x, loss=loss).parameters["0.weight"]
    start = maml.module[0].weight.detach()
    torch.testing.assert_close(again - start, 2 * (before - start), rtol=1e-9, atol=1e-12)


def test_the_gradient_method_does_not_matter() -> None:
    support = batch(1)
    maml = fm.MAML(network(), lr=0.3, loss=F.mse_loss, gradient=fm.gradients.Checkpointed())
    plain = fm.MAML(network(), lr=0.3, loss=F.mse_loss)
    for a, b in zip(
        maml.adapted(support).parameters.values(),
        plain.adapted(support).parameters.values(),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_inputs_by_name_and_several() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            found: Tensor = self.net(a + b)
            return found

    maml, x = fm.MAML(Sum(), lr=0.3, loss=F.mse_loss), tensor(4, 5, 3, seed=1)
    y = tensor(4, 5, 2, seed=2)
    named = maml.adapted(fm.Batch({"a": x, "b": 2 * x}, y))
    several = maml.adapted(fm.Batch((x, 2 * x), y))
    for outputs in (named({"a": x, "b": x}), named((x, x)), several(x, x)):
        torch.testing.assert_close(outputs[1], named.module(1)(x[1], x[1]), rtol=1e-11, atol=1e-13)


def test_copies_begin_anew() -> None:
    maml, support = fm.MAML(network(), lr=0.3, loss=F.mse_loss), batch(1)
    expected = maml.adapted(support).parameters["0.weight"]
    for other in (copy.deepcopy(maml), pickle.loads(pickle.dumps(maml))):
        assert torch.equal(other.adapted(support).parameters["0.weight"], expected)
        with torch.no_grad():
            other.module[0].weight.zero_()
        assert not torch.equal(other.adapted(support).parameters["0.weight"], expected)
    assert torch.equal(maml.adapted(support).parameters["0.weight"], expected)


def test_losses_are_those_before_the_last_step() -> None:
    maml, support = fm.MAML(network(), lr=0.3, loss=F.mse_loss), batch(1)
    expected = [F.mse_loss(maml.module(support.inputs[t]), support.targets[t]) for t in range(4)]
    found = maml.adapted(support).losses
    torch.testing.assert_close(found, torch.stack(expected).detach(), rtol=1e-12, atol=0)


def test_bad_input() -> None:
    maml = fm.MAML(network(), lr=0.3, loss=F.mse_loss)
    adapted = maml.adapted(batch(1))
    with pytest.raises(ValueError, match="support is a Tensor"):
        maml.adapted(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="steps"):
        maml.adapted(batch(1), steps=0)
    with pytest.raises(ValueError, match="no loss"):
        fm.MAML(network(), lr=0.3).adapted(batch(1))
    with pytest.raises(IndexError, match="task 4 of 4"):
        adapted.module(4)
    with pytest.raises(ValueError, match="shapes"):
        adapted(tensor(3, 7, 3, seed=9))
    with pytest.raises(ValueError, match="shapes"):
        adapted.step(batch(1, tasks=3))


def test_transforms_are_refused_cold_and_warm() -> None:
    adapted, x = plain_adapted()
    for _ in range(3):
        with pytest.raises(RuntimeError, match=r"no function for torch\.func\.grad"):
            torch.func.grad(lambda x: adapted(x).square().sum())(x)
        adapted(x)


def test_a_call_draws_as_much_whoever_runs_it() -> None:
    found = []
    for executor in ("eager", "captured", None):
        adapted, x = plain_adapted(executor=executor)
        torch.manual_seed(0)
        found.append([(adapted(x), torch.rand(()).item())[1] for _ in range(4)])
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 4


def test_what_it_gives_is_not_what_it_holds() -> None:
    class Passes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return x * self.scale, self.scale, x

    for executor in ("eager", None):
        learner = fm.MAML(
            Passes(), lr=0.1, executor=executor, loss=lambda y, t: F.mse_loss(y[0], t)
        )
        x = torch.randn(2, 4, 3)
        adapted, before = learner.adapted(fm.Batch(x, x + 1)), x.clone()
        for _ in range(3):
            first, scale, same = adapted(x)
            expected = adapted.parameters["scale"].clone()
            torch.testing.assert_close(scale, expected)
            torch.testing.assert_close(same, before)
            for y in (first, scale, same):
                y.add_(1)
            assert torch.equal(x, before)
            assert torch.equal(adapted.parameters["scale"], expected)
    adapted.parameters["scale"] = torch.zeros(2, 3)  # of another dict
    assert torch.equal(adapted.parameters["scale"], expected)


def test_inference_mode_changes_nothing() -> None:
    adapted, x = plain_adapted()
    learner, expected = adapted._adapting.maml, adapted(x)
    support = fm.Batch(torch.randn(3, 4, 5), torch.randn(3, 4, 4))
    v = {n: torch.ones_like(p) for n, p in learner.module.named_parameters()}
    episodes = fm.Episodes(support, support)
    along = learner.jvp(episodes, v).losses_along
    outside = learner.adapted(support)(x)
    with torch.inference_mode():
        within = fm.Episodes(support.map(torch.clone), support.map(torch.clone))
        for given in (episodes, within):
            torch.testing.assert_close(learner.adapted(given.support)(x.clone()), outside)
            torch.testing.assert_close(learner.jvp(given, v).losses_along, along)
            assert "executor" in str(learner.explain(given))
        torch.testing.assert_close(adapted(x), expected)
        torch.testing.assert_close(adapted(x.clone()), expected)
        assert adapted.step(within.support).steps == 2
    torch.testing.assert_close(adapted(x), expected)


def plain_adapted(**options: Any) -> tuple[Any, Tensor]:
    """Three tasks after a step, and inputs for them."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
    learner = fm.MAML(model, lr=0.3, loss=F.mse_loss, **options)
    return learner.adapted(fm.Batch(torch.randn(3, 4, 5), torch.randn(3, 4, 4))), torch.randn(
        3, 7, 5
    )
