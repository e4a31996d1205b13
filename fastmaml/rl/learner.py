"""`MetaPolicy`: a policy, how it adapts, and how it learns to adapt."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.optim import Optimizer

from fastmaml.engine.base.distributions import Parts
from fastmaml.engine.step.task_state import adapt_along, outputs_along, start_along
from fastmaml.maml import MAML, MetaOutput
from fastmaml.maml.adapted import Adapted
from fastmaml.rl.advantages import GAE
from fastmaml.rl.outer import PPO, Outer, mean
from fastmaml.rl.policies import divergence, parts_of
from fastmaml.rl.surrogates import LVC, Surrogate
from fastmaml.rl.trajectories import Trajectories
from fastmaml.rules import Rule

APART = {torch.float64: 1e-6}
"""How far log-probabilities may be from those of the policy that is said to have acted; 1e-3 in
lower precision. Relative to 1 plus their size."""


@final
class MetaPolicy:
    """A policy that adapts to a task in a few policy gradient steps, and learns to do so.

    The meta-gradient is exact for the surrogate that is chosen; all tasks run at once, recorded.
    The meta-parameters are ``maml.parameters()``.

    Args:
        policy: a module from observations ``[..., observation]`` to a
            `torch.distributions.Distribution` of actions.
        lr: the inner learning rate, of plain gradient descent; or give `rule`.
        steps: inner steps, each on trajectories of its own.
        rule: how parameters move.
        surrogate: what the inner loop descends.
        outer: what adapted policies' trajectories are for.
        advantages: from `Trajectories` to ``[tasks, steps, n]``.
        settings: others of `MAML`, such as ``first_order``, ``executor`` or ``scope``.

    Examples:
        >>> learner = rl.MetaPolicy(rl.GaussianPolicy(2, 2), lr=0.1)
        >>> before = rl.sample(environment, tasks, learner.act, 20)
        >>> adapted = learner.adapted(before)
        >>> after = rl.sample(environment, tasks, adapted, 20)
        >>> learner.update([before], after, optimizer)
    """

    def __init__(
        self,
        policy: nn.Module,
        lr: float | Tensor | None = None,
        steps: int = 1,
        *,
        rule: Rule | None = None,
        surrogate: Surrogate | None = None,
        outer: Outer | None = None,
        advantages: Callable[[Trajectories], Tensor] | None = None,
        **settings: Any,
    ) -> None:
        if lr is None and rule is None:
            lr = 0.1
        self.maml = MAML(policy, lr, steps=steps, rule=rule, **settings)
        self._surrogate = LVC() if surrogate is None else surrogate
        self.advantages = GAE() if advantages is None else advantages
        self.outer = PPO() if outer is None else outer
        self._prepare()

    def _prepare(self) -> None:
        """The functions of one task, for all at once."""
        self._inner = self._inner_loss  # the same object each time
        self._step = self.maml.per_task(self._objective)
        self._along = self.maml.per_task(self._outputs_along)
        self._back = self.maml.per_task(self._outputs_back)

    @property
    def policy(self) -> nn.Module:
        """The policy before adaptation."""
        return self.maml.module

    @property
    def surrogate(self) -> Surrogate:
        """What the inner loop descends; another one needs another learner."""
        return self._surrogate

    @property
    def outer(self) -> Outer:
        """What adapted policies' trajectories are for; may be replaced by another that fits."""
        return self._outer

    @outer.setter
    def outer(self, outer: Outer) -> None:
        if not isinstance(outer, Outer):
            raise ValueError(f"outer is {outer!r}: give an object such as rl.PPO().")
        if outer.exploration and not self.surrogate.explores:
            raise ValueError(
                f"exploration=True says how actions before adaptation are chosen, which "
                f"{self.surrogate} counts as well: give surrogate=LogProb() with it, or neither."
            )
        outer.check(self)
        self._outer = outer

    @property
    def steps(self) -> int:
        """The number of inner steps."""
        return self.maml.steps

    def copy(self) -> MetaPolicy:
        """Another one with parameters of its own, equal to these as they are now."""
        other = copy.copy(self)
        other.maml = copy.deepcopy(self.maml)
        other._prepare()
        return other

    def act(self, observations: Tensor) -> Distribution:
        """The policy before adaptation, the same for all tasks; no graphs."""
        with torch.no_grad():
            found = self.policy(observations)
        parts_of(found)
        return found

    def adapted(self, trajectories: Trajectories, start: Adapted | None = None) -> Adapted:
        """Every task's policy after one inner step more on its trajectories.

        Args:
            trajectories: of the policy before that step.
            start: where the tasks stand; None for the policy before adaptation.
        """
        data = self.data(trajectories)
        if start is not None:
            return start.step(data)
        return self.maml.adapted(data, steps=1, loss=self._inner)

    def data(self, trajectories: Trajectories) -> dict[str, Any]:
        """What losses take of trajectories, all tasks.

        Raises:
            ValueError: actions that are none of this policy's; advantages of another shape, with a
                graph or not finite.
        """
        _check_actions(trajectories, self.act(trajectories.observations[:, :1]))
        advantages, rewards = self.advantages(trajectories), trajectories.rewards
        if advantages.shape != rewards.shape:
            raise ValueError(
                f"the advantages have shape {list(advantages.shape)}; give {list(rewards.shape)}: "
                "[tasks, steps, n], one for each reward."
            )
        if advantages.requires_grad:
            raise ValueError(
                "the advantages carry a graph: compute them under torch.no_grad(), as the policy "
                "gradient takes them for constants."
            )
        if not bool(advantages.isfinite().all()):
            raise ValueError("an advantage is not finite: look at the baseline and the rewards.")
        data = {
            "observations": trajectories.observations,
            "actions": trajectories.actions,
            "advantages": advantages,
            "mask": trajectories.mask.to(rewards.dtype),
            "log_probs": trajectories.log_probs,
        }
        return data | ({} if trajectories.policy is None else {"policy": trajectories.policy})

    def update(
        self,
        batches: Sequence[Trajectories],
        query: Trajectories,
        optimizer: Optimizer | None = None,
    ) -> dict[str, float]:
        """Move the meta-parameters by what one round of trajectories says.

        Args:
            batches: of the inner steps 0, 1, ..., each of the policies before that step.
            query: of the adapted policies.
            optimizer: of ``maml.parameters()``; TRPO needs none.

        Returns:
            Figures by name: the loss before, the norm of the meta-gradient, the divergence of
            adapted policies from those that acted.

        Raises:
            ValueError: not one batch for each inner step, other numbers of tasks, trajectories
                of other policies than these.
        """
        if len(batches) != self.steps:
            raise ValueError(
                f"update() was given trajectories of {len(batches)} inner steps, and the policy "
                f"adapts in {self.steps}: give one Trajectories for each."
            )
        tasks = [t.tasks for t in (*batches, query)]
        if len(set(tasks)) > 1:
            raise ValueError(f"the trajectories are of different numbers of tasks: {tasks}.")
        given = [self.data(t) for t in batches], self._query(query)
        return self.outer.update(self, *given, optimizer)

    def meta_step(self, batches: Sequence[dict[str, Any]], query: dict[str, Any]) -> MetaOutput:
        """The outer loss, whose ``backward()`` gives the meta-gradient.

        Args:
            batches, query: from `data`; the query's with "returns" where the outer objective
                explores.
        """
        return self._step(list(batches), query)

    def fisher(
        self, batches: Sequence[dict[str, Any]], query: dict[str, Any]
    ) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        """The product of JᵀFJ with a vector: see `TRPO`.

        Args:
            batches, query: from `data`, of the policies as they are.

        Returns:
            A function of a list like the trainable ``maml.parameters()``, which gives one.
        """
        given, names = list(batches), [n for n, p in self._trainable()]
        parameters, tasks = [p for _, p in self._trainable()], len(query["mask"])

        def product(v: Sequence[Tensor]) -> list[Tensor]:
            along = {n: x.expand(tasks, *x.shape) for n, x in zip(names, v, strict=True)}
            with torch.no_grad():
                outputs, tangents = self._along(along, given, query).outputs
                cotangents = _fisher_product(outputs, tangents, query)
            with torch.enable_grad():
                total = self._back(given, query, cotangents).loss
                return list(torch.autograd.grad(total, parameters, materialize_grads=True))

        return product

    def check_behaviour(self, apart: Tensor) -> None:
        """Raise ValueError where trajectories are not of the policies that are to have acted.

        Args:
            apart: ``[tasks, steps + 1]``: how far the log-probabilities are from theirs.
        """
        apart = apart.detach()
        most = APART.get(apart.dtype, 1e-3)
        wrong = (~(apart <= most)).nonzero().tolist()
        if wrong:
            task, step = wrong[0]
            far = float(apart[task, step])
            raise ValueError(
                f"log_probs of task {task} after {step} inner steps are {far:.2g} "
                "from those of the policy that is to have acted: store the actions as they were "
                "sampled, not as an environment clipped them, sample with this learner's act() and "
                "with adapted() of these very trajectories, and update once with them."
            )

    # ------------------------------------------------------------------ functions of one task

    def _inner_loss(self, learner: Any, data: dict[str, Any]) -> Tensor:
        return self.surrogate.loss(learner(data["observations"]), data)

    def _objective(self, learner: Any, batches: list[Any], query: dict[str, Any]) -> Any:
        """The outer loss of one task, and figures."""
        outer, apart = self.outer, []
        extra: Any = 0.0
        for data in batches:
            distribution = learner(data["observations"])
            apart.append(_apart(distribution, data))
            if outer.inner_kl:
                kl = _estimated(data, distribution)
                extra = extra + outer.inner_kl / len(batches) * mean(kl, data)
            if outer.exploration:
                log_probs = distribution.log_prob(data["actions"]) * data["mask"]
                extra = extra - query["returns"] * log_probs.sum()
            learner.adapt(self.surrogate.loss(distribution, data))
        distribution = learner(query["observations"])
        loss = outer.loss(distribution, query) + extra
        kl = mean(_estimated(query, distribution), query)
        apart.append(_apart(distribution, query))
        return loss, {"apart": torch.stack(apart).detach(), "kl": kl.detach()}

    def _outputs_along(self, learner: Any, v: Any, batches: list[Any], query: Any) -> Any:
        """What the adapted policy is made of, and its derivative along v."""
        direction, first_order = start_along(learner, v), self.maml._first_order
        for data in batches:
            loss = self._inner_loss(learner, data)
            direction = adapt_along(learner, loss, direction, first_order)
        parts = Parts.of(learner(query["observations"]))
        tangents = parts.like(outputs_along(learner, parts.tensors, direction))
        return parts.tensors[0].sum() * 0, (parts, tangents)

    def _outputs_back(
        self, learner: Any, batches: list[Any], query: dict[str, Any], cotangents: Parts
    ) -> Tensor:
        """Its inner product with cotangents."""
        for data in batches:
            learner.adapt(self._inner_loss(learner, data))
        parts = Parts.of(learner(query["observations"]))
        pairs = zip(parts.tensors, cotangents.tensors, strict=True)
        return sum((x * c).sum() for x, c in pairs)  # type: ignore[return-value]

    # ------------------------------------------------------------------ what the above stand on

    def _query(self, query: Trajectories) -> dict[str, Any]:
        """Data of adapted policies, with what exploration is worth."""
        data = self.data(query)
        if not self.outer.exploration:
            return data
        returns = query.returns.mean(1)
        steps = data["mask"].sum((1, 2)) / query.returns.shape[1]
        others = (returns.sum() - returns) / max(len(returns) - 1, 1)  # of their own no part
        gain = returns - others
        normalize = getattr(self.advantages, "normalize", False)
        if normalize:  # the others are in units of a deviation
            gain = gain / query.returns.std().clamp(min=torch.finfo(gain.dtype).tiny)
        return data | {"returns": gain / steps}

    def _trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.policy.named_parameters() if p.requires_grad]


def _apart(distribution: Distribution, data: dict[str, Any]) -> Tensor:
    """The largest difference of log-probabilities from those of the policy that acted."""
    now, before = distribution.log_prob(data["actions"]), data["log_probs"]
    return ((now - before).abs() / (1 + before.abs()) * data["mask"]).max()


def _estimated(data: dict[str, Any], now: Distribution) -> Tensor:
    """The divergence of the policy that acted from the one now, at each step.

    Where that was not kept, or PyTorch has no formula, by the actions that were drawn: the mean is
    the divergence, and the mean of the gradients its gradient.
    """
    if "policy" in data:
        before = data["policy"].distribution()
        try:
            return divergence(before, now)
        except NotImplementedError:  # of torch.distributions.kl_divergence: no formula
            pass
    return data["log_probs"] - now.log_prob(data["actions"])


def _fisher_product(parts: Parts, tangents: Parts, query: dict[str, Any]) -> Parts:
    """F·tangents: the derivative of the divergence's gradient, at no divergence, mean over all."""
    mask, fixed = query["mask"], parts.distribution()
    weights = mask / mask.sum((1, 2), keepdim=True)
    with torch.enable_grad():
        tensors = [x.detach().requires_grad_() for x in parts.tensors]
        try:
            total = (divergence(fixed, parts.like(tensors).distribution()) * weights).sum()
        except NotImplementedError as error:
            raise ValueError(
                f"TRPO needs the divergence of a {type(fixed).__name__}, for which PyTorch has no "
                "formula (torch.distributions.kl_divergence): use PPO, or register one."
            ) from error
        slope = torch.autograd.grad(total, tensors, create_graph=True, materialize_grads=True)
        along: Any = sum((g * t).sum() for g, t in zip(slope, tangents.tensors, strict=True))
        found = torch.autograd.grad(along, tensors, materialize_grads=True)
    for g, x in zip(slope, tensors, strict=True):
        if float(g.detach().abs().max()) > 1e-3 * float(weights.max()):
            raise ValueError(
                f"the divergence of a {type(fixed).__name__} has a slope in its tensor of shape "
                f"{list(x.shape)} where both distributions are the same, so that its tensors are "
                "no free coordinates: TRPO needs one such as Normal or Categorical(logits=)."
            )
    return parts.like(found)


def _check_actions(trajectories: Trajectories, distribution: Distribution) -> None:
    """Raise ValueError where actions are of another kind than the policy's."""
    devices = {x.device for x in parts_of(distribution).tensors if x.is_cuda}
    with torch.random.fork_rng(devices=[d.index or 0 for d in devices]), torch.no_grad():
        drawn = distribution.sample()
    given = trajectories.actions
    if drawn.is_floating_point() != given.is_floating_point():
        raise ValueError(
            f"the actions are {given.dtype}, and the policy's {type(distribution).__name__} draws "
            f"{drawn.dtype}: give the trajectories of this policy."
        )
    event, shape = distribution.event_shape, given.shape[3:]
    if event != shape:
        raise ValueError(f"an action has shape {list(shape)}, and the policy's {list(event)}.")
