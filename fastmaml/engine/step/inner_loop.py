"""The inner loop, written once: start, gradient, update, query loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fastmaml.engine.routing.row_tables import gathered
from fastmaml.engine.step.forward import TaskForward
from fastmaml.engine.step.head_layer import HeadLayer
from fastmaml.engine.step.shared_passes import Kept, SharedPasses
from fastmaml.gradients.base import Carry, Meta, Query, detached, inner_product
from fastmaml.models.per_step import PerStep
from fastmaml.rules.base import Rule, Tensors


@dataclass(frozen=True)
class Objective:
    """What the meta-loss is made of.

    Attributes:
        weights: ``[tasks]``, each task's share of the meta-loss.
        step_weights: the weight of the query loss after 0, 1, ..., steps inner steps (the last
            one is always evaluated); MAML is 0, ..., 0, 1, and MAML++'s multi-step loss is not.
            Tensors count whatever their value, which may be another one at each call.
        outputs: cotangents of the query outputs, one a leaf, where something else than the loss
            uses them.
    """

    weights: Tensor
    step_weights: Sequence[float | Tensor]
    outputs: Sequence[Tensor | None] | None = None


@dataclass(frozen=True)
class InnerLoop:
    """θ_0 = θ, θ_{k+1} = U_k(θ_k, ∇L(θ_k; support)), for some tasks at once.

    It is the `Loop` that gradient methods differentiate.

    Attributes:
        forward: model and loss.
        rule: U.
        steps: the number of inner steps.
        episodes: these tasks' support and query sets, or what a user's function is given.
        seeds: ``[tasks]``.
        objective: the meta-loss.
        buffers: filled with the buffers ``[tasks, *shape]`` that the last query pass left.
        head: a layer that begins anew for every task.
        rows: ``[tasks, rows]``, for embeddings that adapt in some rows only: which.
        passes: what its support passes share; None where each is to run whole.
    """

    forward: TaskForward
    rule: Rule
    steps: int
    episodes: Any
    seeds: Tensor
    objective: Objective
    buffers: Tensors = field(default_factory=dict)
    head: HeadLayer | None = None
    rows: Tensors = field(default_factory=dict)
    passes: SharedPasses | None = None

    @property
    def sets(self) -> range:
        """The inner steps on support sets of their own; the first, where all are on one."""
        return range(min(self.steps, support_sets(self.episodes)))

    @property
    def changing(self) -> bool:
        """Whether the model is another one at every step, as with `models.PerStep`."""
        return any(isinstance(module, PerStep) for module in self.forward.model.modules())

    def start(self, meta: Meta) -> Carry:
        """θ for every task (a view, not a copy), a head of its own, and the rule's first state."""
        parameters = self._for_every_task(meta)
        if self.head is not None:
            # From other views of θ: the inner gradient is that at fixed head, not through it.
            shared, support = meta.shared, self.episodes.support
            given = (shared, support, self.seeds, self.rows, self._kept(shared))
            parameters |= self.forward.head(self.head, self._for_every_task(meta), *given)
        return Carry(parameters, self.rule.init(parameters))

    def _for_every_task(self, meta: Meta) -> Tensors:
        """θ, or its rows that matter, ``[tasks, ...]``."""
        tasks = len(self.seeds)
        return {
            n: gathered(p, self.rows[n]) if n in self.rows else p.expand(tasks, *p.shape)
            for n, p in meta.adapted.items()
        }

    def support_losses(self, step: int, parameters: Tensors, shared: Tensors) -> Tensor:
        """Every task's support loss, ``[tasks]``."""
        given = (parameters, shared, self.episodes.support_of(step), self.seeds, step)
        return self.forward(*given, rows=self.rows, kept=self._kept(shared))[0]

    def kept(self, shared: Tensors, inputs: Any = ()) -> Kept | None:
        """What passes with these shared parameters have in common, where there can be something."""
        own = () if self.head is None else self.head.names
        body = shared or self.forward.frozen.keys() - own
        return self.passes.of(shared, inputs) if self.passes is not None and body else None

    def _kept(self, shared: Tensors) -> Kept | None:
        """The same of the support set, where there are several passes over it."""
        several = self.steps + (self.head is not None and self.head.head.needs_features) > 1
        return self.kept(shared) if several and not self.episodes.later else None

    def support_loss(self, step: int, parameters: Tensors, shared: Tensors) -> Tensor:
        """The sum over tasks, whose gradient with respect to a task's parameters is that task's."""
        return self.support_losses(step, parameters, shared).sum()

    def gradient(self, step: int, carry: Carry, meta: Meta, *, create_graph: bool) -> Tensors:
        """Every task's inner gradient ``[tasks, *shape]``; zero where the loss does not reach."""
        with torch.enable_grad():
            parameters, shared = carry.parameters, meta.shared
            if not create_graph:
                parameters = {n: p.detach().requires_grad_() for n, p in parameters.items()}
                shared = self.passes.detached(shared) if self.passes else detached(shared)
            else:  # a head may begin as a constant
                parameters = {n: _differentiable(p) for n, p in parameters.items()}
            loss = self.support_loss(step, parameters, shared)
            if not loss.requires_grad:
                raise ValueError(
                    "the support loss does not depend on any adapted parameter "
                    f"({', '.join(list(parameters)[:5])}): check scope=, and that neither the "
                    "model nor the loss detaches its result."
                )
            gradients = torch.autograd.grad(
                loss, list(parameters.values()), create_graph=create_graph, materialize_grads=True
            )
        # The zeros for what the loss does not reach are trainable leaves, and nobody's to train.
        return {
            n: g.detach() if create_graph and g.is_leaf else g
            for n, g in zip(parameters, gradients, strict=True)
        }

    def update(self, step: int, carry: Carry, gradient: Tensors, meta: Meta) -> Carry:
        """Let the rule move the parameters."""
        given = (step, gradient, carry.state, carry.parameters, meta.rates)
        return Carry(*self.rule.move(*given, self.forward.backend))

    def step(self, step: int, carry: Carry, meta: Meta, *, create_graph: bool) -> Carry:
        """One inner step of every task: its gradient, then the update."""
        gradient = self.gradient(step, carry, meta, create_graph=create_graph)
        if self.passes and step == self.steps - 1:
            self.passes.clear()
        return self.update(step, carry, gradient, meta)

    def observed(self, step: int) -> bool:
        """Whether the query loss after `step` steps counts; the last one is always wanted."""
        weight = self.objective.step_weights[step]
        return step == self.steps or isinstance(weight, Tensor) or weight != 0

    def query(self, step: int, parameters: Tensors, shared: Tensors) -> Query:
        """The query loss and outputs after `step` steps."""
        losses, outputs, buffers = self.forward(
            parameters, shared, self.episodes.query, self.seeds, step, query=True, rows=self.rows
        )
        self.buffers.update(detached(buffers))
        weights = self.objective.weights.to(losses.dtype)
        value = (losses * weights).sum() * self.objective.step_weights[step]
        if self.objective.outputs is not None and step == self.steps:
            pairs = zip(tree_leaves(outputs), self.objective.outputs, strict=True)
            value = value + sum(inner_product(y, c) for y, c in pairs if c is not None)
        return Query(step, value, losses, outputs)

    def weighted_sum(self, x: Tensor) -> Tensor:
        """The sum over tasks with their weights in the meta-loss."""
        return torch.tensordot(self.objective.weights.to(x.dtype), x, dims=1)


def support_sets(data: Any) -> int:
    """How many support sets there are for the inner steps."""
    return 1 + len(getattr(data, "later", ()))


def _differentiable(x: Tensor) -> Tensor:
    return x if x.requires_grad else x.detach().requires_grad_()
