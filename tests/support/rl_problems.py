"""Trajectories, policies and meta-gradients by hand, for the tests of `fastmaml.rl`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Distribution,
    Independent,
    MultivariateNormal,
    StudentT,
)
from torch.func import functional_call

from fastmaml import rl
from fastmaml.engine.base.distributions import Parts
from fastmaml.rules import SGD, Scheduled

DOUBLE = torch.float64


def gaussian(hidden: int = 5) -> nn.Module:
    torch.manual_seed(3)
    return rl.GaussianPolicy(2, 2, (hidden,), deviation=0.7).double()


def categorical(hidden: int = 5) -> nn.Module:
    torch.manual_seed(3)
    return rl.CategoricalPolicy(2, 3, (hidden,)).double()


POLICIES: dict[str, Callable[[], nn.Module]] = {"gaussian": gaussian, "categorical": categorical}


def acted(act: Callable[[Tensor], Any], seed: int, tasks: int = 3, ends: bool = True) -> Any:
    """Trajectories of 6 steps, 4 of each task, on random observations; some end early."""
    generator = torch.Generator().manual_seed(seed)
    shape = (tasks, 6, 4)
    seen = torch.randn(*shape, 2, generator=generator, dtype=DOUBLE)
    lengths = torch.randint(2, 7, (tasks, 1, 4), generator=generator)
    mask = torch.arange(6).view(1, 6, 1) < (lengths if ends else 6)
    torch.manual_seed(seed)
    with torch.no_grad():
        distribution = act(seen.flatten(1, 2))
        actions = distribution.sample()
        log_probs = distribution.log_prob(actions).view(shape)
        parts = Parts.of(distribution).map(lambda x: x.unflatten(1, (6, 4)))
    return rl.Trajectories(
        seen,
        actions.unflatten(1, (6, 4)),
        torch.randn(*shape, generator=generator, dtype=DOUBLE),
        mask.expand(shape),
        log_probs,
        policy=parts,
    )


def rounds(learner: rl.MetaPolicy, tasks: int = 3) -> tuple[list[Any], Any]:
    """Trajectories of every inner step, and of the adapted policies."""
    found, adapted = [], None
    for step in range(learner.steps):
        act = learner.act if adapted is None else adapted
        found.append(acted(act, 10 + step, tasks))
        adapted = learner.adapted(found[-1], adapted)
    return found, acted(adapted, 30, tasks)  # type: ignore[arg-type]


def padded(trajectories: Any, steps: int) -> Any:
    """The same with steps that count nowhere."""

    def longer(x: Tensor) -> Tensor:
        more = (
            torch.full_like(x[:, :1], 7.0) if x.is_floating_point() else torch.zeros_like(x[:, :1])
        )
        return torch.cat([x, *[more] * steps], 1)

    names = ("observations", "actions", "rewards", "mask", "log_probs")
    policy = trajectories.policy.map(longer)
    return replace(
        trajectories, policy=policy, **{n: longer(getattr(trajectories, n)) for n in names}
    )


def by_hand(
    learner: rl.MetaPolicy,
    batches: list[dict[str, Any]],
    query: dict[str, Any],
    weights: Callable[[Tensor, Tensor], Tensor],
    outer: Callable[[Distribution, dict[str, Any]], Tensor],
    rate: Callable[[int], float],
) -> tuple[Tensor, list[Tensor]]:
    """The outer loss and its gradient: a loop over tasks with autograd alone.

    Args:
        learner: whose policy.
        batches, query: its data.
        weights: what multiplies the advantages in the inner loss.
        outer: loss of one task's adapted policy.
        rate: of inner steps.
    """
    policy = learner.policy
    start = dict(policy.named_parameters())
    losses = []
    for task in range(len(query["mask"])):
        now: dict[str, Tensor] = dict(start)
        for step, batch in enumerate(batches):
            data = {n: x[task] for n, x in batch.items() if isinstance(x, Tensor)}
            distribution = functional_call(policy, now, (data["observations"],))
            log_probs = distribution.log_prob(data["actions"])
            total = weights(log_probs, data["log_probs"]) * data["advantages"] * data["mask"]
            loss = -total.sum() / data["mask"].sum()
            found = torch.autograd.grad(loss, list(now.values()), create_graph=True)
            now = {n: p - rate(step) * g for (n, p), g in zip(now.items(), found, strict=True)}
        data = {n: x[task] for n, x in query.items() if isinstance(x, Tensor)}
        losses.append(outer(functional_call(policy, now, (data["observations"],)), data))
    total = torch.stack(losses).mean()
    return total.detach(), list(torch.autograd.grad(total, list(start.values())))


def learner(policy: nn.Module, steps: int = 1, **options: Any) -> rl.MetaPolicy:
    rule = Scheduled(SGD(0.3), (1.0, 0.5))
    return rl.MetaPolicy(policy, steps=steps, rule=rule, **options)


class Odd(nn.Module):
    """Distributions that are drawn as floats, have no formula of a divergence, or a small scale."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.net = kind, nn.Linear(2, 2)
        if kind == "multivariate":
            self.factor = nn.Parameter(torch.tensor([[0.6, 0.0], [0.2, 0.5]]))

    def forward(self, seen: Tensor) -> Any:
        x = self.net(seen)
        if self.kind == "bernoulli":
            return Independent(Bernoulli(logits=x), 1)
        if self.kind == "student":
            return Independent(StudentT(5.0, x, 0.5), 1)
        return MultivariateNormal(x, scale_tril=self.factor.tril())
