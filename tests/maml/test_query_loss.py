"""`MAML(loss=, query_loss=)`: inner steps descend one loss, and another one is meta-learned."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hand_loop import batch_loss, hand_loop
from outcomes import CAPTURED, EAGER, outcome, pair, recordings, vectors
from problems import EXACT, tensor
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.gradients import FirstOrder, Reptile

WEIGHTS = [0.2, 0.3, 0.5]


def net(out: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, out)).double()


def quartic(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().square().mean()


def classes() -> fm.Episodes:
    labels = torch.arange(6).remainder(3).expand(2, 6).clone()
    return fm.Episodes(*(fm.Batch(tensor(2, 6, 3, seed=s), labels) for s in (1, 2)))


def maml(query_loss: Any = quartic, loss: Any = F.mse_loss, **options: Any) -> fm.MAML:
    given = {"lr": 0.3, "steps": 3, **options}
    return fm.MAML(net(), loss=loss, query_loss=query_loss, **given)


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("how", [EAGER, CAPTURED, {}], ids=["eager", "captured", "default"])
@pytest.mark.parametrize("method", [*EXACT, "first-order"])
def test_it_is_the_loop_by_hand(method: str, how: dict[str, Any]) -> None:
    first_order = method not in EXACT
    learner = maml(gradient=EXACT.get(method, FirstOrder()), **how)
    given = learner.module, F.mse_loss, vectors(), 0.3, 3
    loss, gradient = hand_loop(*given, first_order=first_order, query_loss=quartic)
    for _ in range(2):  # the second call is a replay
        learner.zero_grad()
        out = learner(vectors())
        out.loss.backward()
        torch.testing.assert_close(out.loss.detach(), loss, rtol=1e-11, atol=0)
        for name, p in learner.module.named_parameters():
            torch.testing.assert_close(p.grad, gradient[name], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(learner.evaluate(vectors()).loss, loss, rtol=1e-11, atol=0)
    inner = hand_loop(*given, first_order=first_order)[0]
    assert abs(float(inner - loss)) > 0.01, "the two losses must be far apart"


def test_multi_step_weights_are_of_the_query_loss() -> None:
    learner = maml(gradient=EXACT["mixed-mode"])
    found = outcome(learner, vectors(), step_weights=WEIGHTS).gradient
    parts = [outcome(maml(steps=k), vectors()).gradient for k in (1, 2, 3)]
    expected = sum(w * x for w, x in zip(WEIGHTS, parts, strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
    by_step = learner.evaluate_each_step(vectors())
    task = next(iter(vectors()))
    named = dict(learner.module.named_parameters())
    first = batch_loss(learner.module, quartic, named, task.query)
    torch.testing.assert_close(by_step[0].losses[0], first.detach(), rtol=1e-11, atol=0)


def test_reptile_reports_it_and_learns_from_the_support_sets() -> None:
    found = outcome(maml(gradient=Reptile()), vectors())
    plain = outcome(maml(None, gradient=Reptile()), vectors())
    assert torch.equal(found.gradient, plain.gradient)
    torch.testing.assert_close(found.losses, outcome(maml(), vectors()).losses)


def test_adaptation_is_by_the_inner_loss() -> None:
    support = next(iter(vectors())).support.map(lambda x: x[0])
    given, plain = (learner.adapt_to(support) for learner in (maml(), maml(None)))
    for a, b in zip(given.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    tasks = vectors().support
    values = [maml(q).adapted(tasks)(tasks.inputs) for q in (None, quartic)]
    assert torch.equal(*values)


def test_one_may_be_set_later_and_recordings_follow() -> None:
    learner = maml(None, **CAPTURED)
    for loss in (None, quartic, F.l1_loss, nn.HuberLoss(delta=0.3), None):
        learner.query_loss = loss
        for _ in range(2):
            expected = outcome(maml(loss, **EAGER), vectors())
            assert outcome(learner, vectors()).same_bits(expected)
    assert learner.query_loss is None
    assert recordings(learner) >= 4


class Weighted(nn.Module):
    """A loss with numbers of its own, which may change."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = 1.0
        self.register_buffer("weights", torch.tensor([1.0, 3.0], dtype=torch.float64))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return ((output - target).square() * self.weights).mean() * self.factor


def test_what_a_loss_holds_is_looked_at_each_time() -> None:
    loss = Weighted()
    learner = maml(loss, **CAPTURED)
    assert "query_loss.weights" in learner.state_dict()
    first = outcome(learner, vectors())
    loss.factor = 2.0
    twice = outcome(learner, vectors())
    torch.testing.assert_close(twice.gradient, 2 * first.gradient, rtol=1e-12, atol=0)
    loss.weights.mul_(3.0)
    six = outcome(learner, vectors())
    torch.testing.assert_close(six.gradient, 6 * first.gradient, rtol=1e-12, atol=0)
    other = copy.deepcopy(learner)
    assert outcome(other, vectors()).same_bits(six)


def test_a_trainable_query_loss_is_refused() -> None:
    loss = nn.Linear(2, 1).double()
    learner = maml(lambda output, target: loss(output - target).square().mean())
    with pytest.raises(ValueError, match="is no parameter of this MAML's model"):
        learner(vectors())


def test_a_query_loss_that_is_no_scalar_is_named() -> None:
    with pytest.raises(ValueError, match=r"query_loss\(output, targets\) returned shape \[4, 2\]"):
        maml(lambda output, target: (output - target).square())(vectors())
    with pytest.raises(ValueError, match=r"^loss\(output, targets\) returned shape \[4, 2\]"):
        maml(loss=lambda output, target: (output - target).square())(vectors())


def test_a_query_loss_that_is_not_finite_is_named() -> None:
    learner = maml(lambda output, target: (output - target).sum() / 0.0)
    with pytest.raises(fm.NonFiniteLoss, match="The query loss of task 0"):
        learner(vectors())


@pytest.mark.parametrize("name", ["support", "query"])
def test_labels_of_both_sets_are_looked_at(name: str) -> None:
    """Each by its own loss: of the other set, targets may be anything."""
    one_hot = F.one_hot(classes().query.targets, 3).double()
    given = {"support": classes().support, "query": classes().query}
    other = "query" if name == "support" else "support"
    given[other] = fm.Batch(given[other].inputs, one_hot)
    labels = given[name].targets.clone()
    losses = {name: F.cross_entropy, other: F.mse_loss}
    learner = fm.MAML(net(3), lr=0.3, steps=2, loss=losses["support"], query_loss=losses["query"])
    assert learner(fm.Episodes(**given)).loss.isfinite()
    labels[1, 2] = 7
    given[name] = fm.Batch(given[name].inputs, labels)
    with pytest.raises(
        ValueError, match=rf"{name}.targets holds the label 7 \(task 1, example 2\)"
    ):
        learner(fm.Episodes(**given))


def test_sizes_that_vary_and_explain() -> None:
    """A query set that looks as the support set does is run for itself all the same."""
    captured, eager = pair(net, query_loss=quartic)
    for n in (4, 5, 6, 7, 8, 9):
        found = outcome(captured, vectors(examples=n))
        assert found.same_bits(outcome(eager, vectors(examples=n)))
    told = str(captured.explain(vectors()))
    assert "query loss: quartic; the inner steps descend mse_loss" in told
    assert "query loss" not in str(maml(None).explain(vectors()))


def test_verify_bench_and_jvp_know_it() -> None:
    learner = maml()
    assert fm.verify(learner, vectors()).agrees
    names = dict(learner.module.named_parameters())
    v = {n: tensor(*p.shape, seed=i) for i, (n, p) in enumerate(names.items())}
    found = learner.jvp(vectors(), v)
    gradient = outcome(learner, vectors()).gradient
    direction = torch.cat([v[n].flatten() for n in names])
    torch.testing.assert_close(found.losses_along.mean(), gradient @ direction)
