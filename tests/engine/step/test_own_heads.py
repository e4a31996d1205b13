"""Heads of a user's own: what they compute, what they draw, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from own_classes import example, problem
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.gradients import Checkpointed, MixedMode, Unrolled
from fastmaml.heads import Head

LeastSquares, Signs = example("head").LeastSquares, example("head").Signs
EXACT = [Unrolled(), Checkpointed(), MixedMode()]


@dataclass(frozen=True)
class Normal(Head):
    def start(self, weight: Tensor, features: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        return 0.1 * torch.randn_like(weight), weight.new_zeros(len(weight))


def outputs(maml: fm.MAML, episodes: fm.Episodes) -> tuple[Tensor, Tensor]:
    """Query outputs and the meta-gradient of a second call."""
    for _ in range(2):
        maml.zero_grad()
        torch.manual_seed(3)
        out = maml(episodes)
        out.loss.backward()
    found = [p.grad.flatten() for p in maml.parameters() if p.grad is not None]
    return out.outputs.detach(), torch.cat(found)


def by_hand(model: nn.Module, episodes: fm.Episodes) -> Tensor:
    """By the larger system, features by features, of float64's `solve`."""
    losses = []
    body = {n: p for n, p in model.named_parameters() if not n.startswith("4.")}
    for task in episodes:
        x, y = task.support.inputs[0], task.support.targets[0]
        features = model[:4](x)  # type: ignore[index]
        wide = torch.cat([features, torch.ones_like(features[:, :1])], 1)
        labels = F.one_hot(y, 3).to(wide.dtype)
        square = wide.T @ wide + 2.0 * torch.eye(wide.shape[1], dtype=wide.dtype)
        solved = 5.0 * torch.linalg.solve(square, wide.T @ labels)
        theta = {n: p.view_as(p) for n, p in body.items()}
        theta |= {"4.weight": solved[:-1].T, "4.bias": solved[-1]}
        for _ in range(3):
            loss = F.cross_entropy(functional_call(model, theta, x), y)
            found = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
            theta = {n: p - 0.1 * g for (n, p), g in zip(theta.items(), found, strict=True)}
        query = functional_call(model, theta, task.query.inputs[0])
        losses.append(F.cross_entropy(query, task.query.targets[0]))
    return torch.stack(losses).mean()


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("method", EXACT, ids=str)
def test_least_squares_begin_at_the_solution(method: fm.gradients.GradientMethod) -> None:
    maml, episodes = problem("all", head=LeastSquares(strength=2.0), gradient=method)
    assert fm.verify(maml, episodes, by_hand).agrees


@pytest.mark.slow
@pytest.mark.parametrize("head", [Signs(0.2), Normal()], ids=str)
def test_what_a_head_draws_is_drawn_again(head: Head) -> None:
    """By methods that run steps again, in chunks and one by one; eagerly and from a recording."""
    expected, gradient = outputs(*problem("all", head=head, gradient=Unrolled()))
    different = [float((expected[0] - other).abs().max()) for other in expected[1:]]
    assert min(different) > 1e-3  # every task has its own
    ways: list[dict[str, Any]] = [{"gradient": method} for method in EXACT]
    ways += [{"executor": "eager", "tasks_chunk": 1}, {"tasks_chunk": 2}]
    for way in ways:
        found, own = outputs(*problem("all", head=head, **way))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own, gradient, rtol=1e-4, atol=1e-5)


def test_signs_are_batched_and_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    maml, episodes = problem("all", head=Signs(0.2), steps=0)
    assert maml.explain(episodes).batched
    learner = maml.adapt_to(episodes[0].support.map(lambda x: x.squeeze(0)))
    weight = dict(learner.named_parameters())["4.weight"]
    assert sorted(weight.unique().tolist()) == pytest.approx([-0.2, 0.2])


def test_a_draw_is_not_that_of_the_first_pass() -> None:
    """Dropout in the model has masks of its own, though a head draws with the same function."""
    seen: list[Tensor] = []

    @dataclass(frozen=True)
    class Seen(Head):
        def start(self, weight: Tensor, features: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
            seen.append(F.dropout(torch.ones(1000), 0.5, training=True).detach())
            return torch.zeros_like(weight), weight.new_zeros(len(weight))

    class Drops(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(F.dropout(torch.ones(1000), 0.5, training=True).detach())
            return super().forward(x)

    model = nn.Sequential(nn.Linear(5, 4), Drops(4, 3))
    maml = fm.MAML(model, lr=0.1, loss=F.cross_entropy, head=Seen(), executor="eager")
    maml.adapt_to(problem("all")[1][0].support.map(lambda x: x.squeeze(0)))
    *_, head, support = seen
    assert 0.4 < float((head == support).float().mean()) < 0.6


class NoBias(Head):
    needs_features: ClassVar[bool] = True

    def start(self, weight: Tensor, features: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        return LeastSquares().start(weight, features, targets)


def test_a_head_that_needs_features_needs_no_bias() -> None:
    torch.manual_seed(0)
    episodes = problem("all")[1]

    def maml(head: Head) -> fm.MAML:
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3, bias=False))
        return fm.MAML(model, lr=0.1, loss=F.cross_entropy, head=head)

    maml(NoBias())(episodes).loss.backward()
    with pytest.raises(ValueError, match=r"needs a bias .*2\.weight"):
        maml(fm.heads.Prototype())


@dataclass(frozen=True)
class Misshapen(Head):
    weight: tuple[int, ...] = (3, 8)
    bias: tuple[int, ...] = (3,)

    def start(self, weight: Tensor, features: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        return weight.new_zeros(self.weight), weight.new_zeros(self.bias)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize(
    ("head", "message"),
    [
        (Misshapen(weight=(8, 3)), r"begins 4\.weight with the shape \[8, 3\].*has \[3, 8\]"),
        (Misshapen(bias=(1,)), r"begins 4\.bias with the shape \[1\].*has \[3\]"),
    ],
)
def test_another_shape_is_refused(head: Head, message: str) -> None:
    maml, episodes = problem("all", head=head)
    with pytest.raises(ValueError, match=message):
        maml(episodes)
    maml, episodes = problem("all", head=Misshapen())
    maml(episodes)
