"""Meta-gradients of policies against loops by hand, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from rl_problems import POLICIES, Odd, acted, by_hand, gaussian, learner, padded, rounds
from torch import Tensor, nn
from torch.func import functional_call

from fastmaml import rl
from fastmaml.rl.policies import divergence

WEIGHTS: dict[str, tuple[rl.Surrogate, Callable[[Tensor, Tensor], Tensor]]] = {
    "log-prob": (rl.LogProb(), lambda now, before: now),
    "lvc": (rl.LVC(), lambda now, before: (now - before).exp()),
}


def ratio_loss(distribution: Any, data: dict[str, Any]) -> Tensor:
    ratio = (distribution.log_prob(data["actions"]) - data["log_probs"]).exp()
    return -(ratio * data["advantages"] * data["mask"]).sum() / data["mask"].sum()


def clipped_loss(distribution: Any, data: dict[str, Any]) -> Tensor:
    ratio = (distribution.log_prob(data["actions"]) - data["log_probs"]).exp()
    least = torch.minimum(ratio * data["advantages"], ratio.clamp(0.9, 1.1) * data["advantages"])
    return -(least * data["mask"]).sum() / data["mask"].sum()


OUTER: dict[str, tuple[rl.Outer, Callable[[Any, dict[str, Any]], Tensor]]] = {
    "vpg": (rl.VPG(), ratio_loss),
    "ppo": (rl.PPO(clip=0.1, inner_kl=0.0), clipped_loss),
    "trpo": (rl.TRPO(), ratio_loss),
}


def gradient(learner: rl.MetaPolicy, batches: Any, query: Any) -> tuple[Tensor, list[Tensor]]:
    out = learner.meta_step(batches, query)
    return out.loss.detach(), list(torch.autograd.grad(out.loss, list(learner.maml.parameters())))


def close(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.sampled
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("surrogate", WEIGHTS)
@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("executor", ["eager", "captured"])
def test_the_meta_gradient_is_that_of_a_loop(
    policy: str, surrogate: str, outer: str, steps: int, executor: Any
) -> None:
    given, weights = WEIGHTS[surrogate]
    objective, loss = OUTER[outer]
    options = {"surrogate": given, "outer": objective, "executor": executor}
    found = learner(POLICIES[policy](), steps, **options)
    batches, query = rounds(found)
    data = [found.data(t) for t in batches], found.data(query)
    moved = [p + 0.05 * torch.randn_like(p) for p in found.maml.parameters()]
    for _ in range(2):  # where the trajectories are of this policy, and where they are not any more
        expected = by_hand(found, *data, weights, loss, lambda step: 0.3 if step == 0 else 0.15)
        own = gradient(found, *data)
        torch.testing.assert_close(own[0], expected[0], rtol=1e-10, atol=1e-13)
        close(own[1], expected[1])
        with torch.no_grad():
            for p, new in zip(found.maml.parameters(), moved, strict=True):
                p.copy_(new)


def test_loaded_dice_adds_up_what_came_before() -> None:
    decay = 0.7

    def weights(now: Tensor, before: Tensor) -> Tensor:
        total, rows = torch.zeros_like(now[0]), []
        for apart in now - before:
            total = decay * total
            rows.append((total + apart).exp() - total.exp())
            total = total + apart
        return torch.stack(rows)

    found = learner(gaussian(), 2, surrogate=rl.LoadedDiCE(decay), outer=rl.VPG())
    batches, query = rounds(found)
    # Steps beyond the end count in no sum: the loop is given trajectories without an end.
    batches = [acted(found.act, 1, ends=False), acted(found.act, 2, ends=False)]
    data = [found.data(t) for t in batches], found.data(query)
    expected = by_hand(found, *data, weights, ratio_loss, lambda step: 0.3 if step == 0 else 0.15)
    close(gradient(found, *data)[1], expected[1])


def test_first_order_differs_and_is_the_gradient_at_the_adapted_policy() -> None:
    found = learner(gaussian(), 1, outer=rl.VPG(), first_order=True)
    second = learner(gaussian(), 1, outer=rl.VPG())
    batches, query = rounds(found)
    data = [found.data(t) for t in batches], found.data(query)
    own = gradient(found, *data)[1]
    adapted = found.adapted(batches[0])
    expected = []
    for task in range(query.tasks):
        model = adapted.module(task)
        given = {n: x[task] for n, x in data[1].items() if isinstance(x, Tensor)}
        loss = ratio_loss(model(given["observations"]), given)
        expected.append(torch.autograd.grad(loss, list(model.parameters())))
    close(own, [torch.stack(gs).mean(0) for gs in zip(*expected, strict=True)])
    apart = [float((a - b).norm()) for a, b in zip(own, gradient(second, *data)[1], strict=True)]
    assert max(apart) > 1e-3


@pytest.mark.parametrize("surrogate", [rl.LVC(), rl.LogProb(), rl.LoadedDiCE(0.9)])
def test_padding_changes_nothing(surrogate: rl.Surrogate) -> None:
    outer = rl.PPO(exploration=surrogate.explores)
    found = learner(gaussian(), 2, surrogate=surrogate, outer=outer)
    batches, query = rounds(found)
    longer = [padded(t, 3) for t in batches], padded(query, 2)
    given = [[found.data(t) for t in batches], found._query(query)]
    more = [[found.data(t) for t in longer[0]], found._query(longer[1])]
    own, other = gradient(found, *given), gradient(found, *more)
    torch.testing.assert_close(own[0], other[0], rtol=1e-12, atol=1e-14)
    close(own[1], other[1])


@pytest.mark.parametrize("policy", POLICIES)
def test_ratios_are_one_in_the_first_epoch(policy: str) -> None:
    found = learner(POLICIES[policy](), 2, outer=rl.VPG())
    batches, query = rounds(found)
    data = [found.data(t) for t in batches], found.data(query)
    out = found.meta_step(*data)
    assert float(out.outputs["apart"].detach().abs().max()) < 1e-12
    assert float(out.outputs["kl"].detach().abs().max()) < 1e-12
    means = (data[1]["advantages"] * data[1]["mask"]).sum((1, 2)) / data[1]["mask"].sum((1, 2))
    torch.testing.assert_close(out.losses, -means, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("steps", [1, 2])
def test_the_product_of_trpo_is_the_hessian_of_the_divergence(policy: str, steps: int) -> None:
    """Against the derivative of the gradient of the divergence: three times through the policy."""
    found = learner(POLICIES[policy](), steps, outer=rl.TRPO())
    batches, query = rounds(found)
    data = [found.data(t) for t in batches], found.data(query)
    module, names = found.policy, [n for n, _ in found.policy.named_parameters()]

    def adapted(theta: dict[str, Tensor], task: int) -> Any:
        for step, batch in enumerate(data[0]):
            one = {n: x[task] for n, x in batch.items() if isinstance(x, Tensor)}

            def loss(w: dict[str, Tensor], one: dict[str, Any] = one) -> Tensor:
                distribution = functional_call(module, w, (one["observations"],))
                weights = (distribution.log_prob(one["actions"]) - one["log_probs"]).exp()
                return -(weights * one["advantages"] * one["mask"]).sum() / one["mask"].sum()

            slope = torch.func.grad(loss)(theta)
            rate = 0.3 if step == 0 else 0.15
            theta = {n: theta[n] - rate * slope[n] for n in theta}
        return functional_call(module, theta, (data[1]["observations"][task],))

    start = {n: p.detach() for n, p in module.named_parameters()}
    fixed = [adapted(start, task) for task in range(query.tasks)]

    def mean_divergence(theta: dict[str, Tensor]) -> Tensor:
        mask = data[1]["mask"]
        each = [
            (divergence(old, adapted(theta, t)) * mask[t]).sum() / mask[t].sum()
            for t, old in enumerate(fixed)
        ]
        return torch.stack(each).mean()

    torch.manual_seed(0)
    v = {n: torch.randn_like(p) for n, p in start.items()}

    def along(theta: dict[str, Tensor]) -> Tensor:
        slope = torch.func.grad(mean_divergence)(theta)
        return sum((slope[n] * v[n]).sum() for n in names)  # type: ignore[return-value]

    exact = torch.func.grad(along)(start)
    own = found.fisher(*data)([v[n] for n in names])
    for n, x in zip(names, own, strict=True):
        torch.testing.assert_close(x, exact[n], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("first_order", [False, True])
def test_the_product_of_trpo_is_symmetric_and_positive(first_order: bool) -> None:
    found = learner(gaussian(), 2, outer=rl.TRPO(), first_order=first_order)
    batches, query = rounds(found)
    product = found.fisher([found.data(t) for t in batches], found.data(query))
    torch.manual_seed(0)
    u, v = ([torch.randn_like(p) for p in found.maml.parameters()] for _ in range(2))

    def dot(a: list[Tensor], b: list[Tensor]) -> float:
        return float(sum((x * y).sum() for x, y in zip(a, b, strict=True)))

    assert dot(u, product(v)) == pytest.approx(dot(v, product(u)), rel=1e-9)
    assert dot(v, product(v)) > 0


def test_a_step_of_trpo_stays_near_and_gains() -> None:
    found = learner(gaussian(), 1, outer=rl.TRPO(max_kl=0.02))
    batches, query = rounds(found)
    data = [found.data(t) for t in batches], found.data(query)
    before = found.meta_step(*data).loss.item()
    figures = found.update(batches, query)
    after = found.meta_step(*data)
    assert after.loss.item() < before
    assert 0.2 * 0.02 < float(after.outputs["kl"].detach().mean()) <= 1.5 * 0.02
    assert figures["kl"] == pytest.approx(float(after.outputs["kl"].detach().mean()), rel=1e-9)


def test_exploration_is_exact() -> None:
    """E-MAML on a bandit: every action before and after, weighted by its chance."""
    means = torch.tensor([1.0, 0.2, -0.5], dtype=torch.float64)
    theta = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)

    class Softmax(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(theta.clone())

        def forward(self, seen: Tensor) -> torch.distributions.Categorical:
            logits = self.logits.expand(*seen.shape[:-1], 3)
            return torch.distributions.Categorical(logits=logits, validate_args=False)

    found = rl.MetaPolicy(Softmax(), lr=0.8, surrogate=rl.LogProb(), outer=rl.VPG(exploration=True))
    pairs = [(a, b) for a in range(3) for b in range(3)]
    first, second = (torch.tensor(x).view(-1, 1, 1) for x in zip(*pairs, strict=True))
    ones = torch.ones(9, 1, 1, dtype=torch.float64)
    start = theta.log_softmax(0)[first]

    def data(actions: Tensor, log_probs: Tensor) -> dict[str, Any]:
        seen = torch.ones(9, 1, 1, 1, dtype=torch.float64)
        given = {"observations": seen, "actions": actions, "advantages": means[actions]}
        return {**given, "mask": ones, "log_probs": log_probs}

    slope = torch.nn.functional.one_hot(first.flatten(), 3) - theta.softmax(0)
    adapted = (theta + 0.8 * means[first.flatten()].unsqueeze(1) * slope).log_softmax(-1)
    after = adapted.gather(1, second.view(-1, 1)).view(-1, 1, 1)
    query = data(second, after) | {"returns": means[second.flatten()]}
    out = found.meta_step([data(first, start)], query)
    chances = (start + after).exp().flatten()
    parameter = next(found.maml.parameters())
    (own,) = torch.autograd.grad((out.losses * chances).sum(), parameter)

    free = theta.clone().requires_grad_()
    total: Any = 0.0
    for a in range(3):
        moved = free + 0.8 * means[a] * (torch.eye(3, dtype=torch.float64)[a] - free.softmax(0))
        total = total + free.softmax(0)[a] * (moved.softmax(0) * means).sum()
    (exact,) = torch.autograd.grad(-total, free)
    torch.testing.assert_close(own, exact, rtol=1e-10, atol=1e-13)


def test_an_update_raises_what_it_was_made_for() -> None:
    found = learner(gaussian(), 1, outer=rl.PPO(epochs=4))
    batches, query = rounds(found)
    data = [found.data(t) for t in batches], found.data(query)
    before = found.meta_step(*data).loss.item()
    found.update(batches, query, torch.optim.Adam(found.maml.parameters(), 1e-2))
    assert found.meta_step(*data).loss.item() < before


@pytest.mark.parametrize("policy", POLICIES)
def test_batched_acting_equals_one_task_at_a_time(policy: str) -> None:
    found = learner(POLICIES[policy](), 1)
    adapted = found.adapted(acted(found.act, 1))
    seen = torch.randn(3, 4, 2, dtype=torch.float64)
    for _ in range(3):  # looked at once, replayed then
        together = adapted(seen)
        for task in range(3):
            alone = adapted.module(task)(seen[task])
            actions = together.sample()
            torch.testing.assert_close(
                together.log_prob(actions)[task], alone.log_prob(actions[task]), rtol=1e-12, atol=0
            )


@pytest.mark.parametrize("kind", ["bernoulli", "student", "multivariate"])
@pytest.mark.parametrize("tasks", [1, 4])
def test_any_distribution_will_do(kind: str, tasks: int) -> None:
    found = learner(Odd(kind).double(), 1, outer=rl.PPO(clip=0.1, inner_kl=0.0))
    seen = torch.randn(tasks, 4, 2, dtype=torch.float64)
    before = acted(found.act, 1, tasks)
    adapted = found.adapted(before)
    query = acted(adapted, 2, tasks)
    for _ in range(3):
        together = adapted(seen)
        for task in range(tasks):
            alone, actions = adapted.module(task)(seen[task]), together.sample()
            own, other = together.log_prob(actions)[task], alone.log_prob(actions[task])
            torch.testing.assert_close(own, other)
    data = [found.data(before)], found.data(query)
    expected = by_hand(found, *data, WEIGHTS["lvc"][1], clipped_loss, lambda step: 0.3)
    close(gradient(found, *data)[1], expected[1])
    found.update([before], query, torch.optim.SGD(found.maml.parameters(), 0.01))


def test_trajectories_need_not_keep_their_distributions() -> None:
    """The penalty is then that of the drawn actions: where it begins, the mean of log-ratios."""
    found = learner(gaussian(), 1, outer=rl.PPO(inner_kl=0.5))
    batches, query = rounds(found)
    bare = [replace(t, policy=None) for t in (*batches, query)]
    data = [found.data(bare[0])], found.data(bare[1])
    out = found.meta_step(*data)
    assert float(out.outputs["kl"].detach().abs().max()) < 1e-12
    slopes = gradient(found, *data)[1]
    without = learner(gaussian(), 1, outer=rl.PPO(inner_kl=0.0))
    other = gradient(without, *data)[1]
    seen, actions, mask = (data[0][0][n] for n in ("observations", "actions", "mask"))
    each = (found.policy(seen).log_prob(actions) * mask).sum((1, 2)) / mask.sum((1, 2))
    penalty = torch.autograd.grad(-0.5 * each.mean(), list(found.maml.parameters()))
    close(slopes, [a + b for a, b in zip(other, penalty, strict=True)])
    found.update([bare[0]], bare[1], torch.optim.SGD(found.maml.parameters(), 0.01))


def test_a_step_of_trpo_that_fails_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = learner(gaussian(), 1, outer=rl.TRPO())
    batches, query = rounds(found)
    before = [p.clone() for p in found.maml.parameters()]
    step, calls = found.meta_step, [0]

    def failing(*given: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise OSError("the disk is gone")
        return step(*given)

    monkeypatch.setattr(found, "meta_step", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        found.update(batches, query)
    assert all(map(torch.equal, before, found.maml.parameters()))


def test_a_copy_adapts_as_the_first_one() -> None:
    found = learner(gaussian(), 1, scope="mean.2.*", batch_norm="module", tasks_chunk=2)
    other, given = found.copy(), acted(found.act, 1)
    assert other.maml.settings == found.maml.settings
    expected = found.adapted(given).parameters
    assert set(expected) == {"mean.2.weight", "mean.2.bias"}
    with torch.no_grad():
        next(found.maml.parameters()).add_(1)
    for n, p in other.adapted(given).parameters.items():
        assert torch.equal(p, expected[n])


def test_units_of_the_reward_do_not_matter_to_exploration() -> None:
    found = learner(gaussian(), 1, surrogate=rl.LogProb(), outer=rl.VPG(exploration=True))
    batches, query = rounds(found)
    larger = [replace(t, rewards=100 * t.rewards) for t in (*batches, query)]
    first = gradient(found, [found.data(batches[0])], found._query(query))[1]
    second = gradient(found, [found.data(larger[0])], found._query(larger[1]))[1]
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
