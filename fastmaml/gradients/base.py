"""The contract between a gradient method and the inner loop that it differentiates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from fastmaml.rules.base import Rule, State, Tensors


class Meta(NamedTuple):
    """Everything that is meta-learned, without a ``tasks`` dimension."""

    adapted: Tensors
    """Where the inner loop starts: θ."""
    shared: Tensors
    """Parameters that the inner loop leaves alone (the body, in ANIL)."""
    rates: Tensors
    """What the rule learns."""

    def tensors(self) -> list[Tensor]:
        """All of them, in the order of the tree's leaves."""
        return [x for part in self for x in part.values()]


Cotangents = dict[str, Tensor | None]
"""Derivatives by name; None stands for zero, because nothing reaches that tensor."""


class MetaGradient(NamedTuple):
    """A derivative for each tensor of `Meta`: of `adapted`, of `shared`, of `rates`."""

    adapted: Cotangents
    shared: Cotangents
    rates: Cotangents

    def tensors(self) -> list[Tensor | None]:
        """All of them, in the order of the tree's leaves."""
        return [x for part in self for x in part.values()]


class Carry(NamedTuple):
    """What the inner loop hands from step to step, every tensor ``[tasks, *shape]``."""

    parameters: Tensors
    """What adapts, by name."""
    state: State
    """The rule's."""


class Query(NamedTuple):
    """The query loss after some inner step."""

    step: int
    """After how many inner steps."""
    value: Tensor
    """Scalar: what this step adds to the meta-objective, tasks weighted and summed."""
    losses: Tensor
    """``[tasks]``, unweighted."""
    outputs: Any
    """The model's: a tree of ``[tasks, ...]``."""

    def detach(self) -> Query:
        """The same numbers without their graph."""
        return Query(self.step, *tree_map_only(Tensor, torch.detach, tuple(self[1:])))


class Loop(Protocol):
    """The inner loop of some tasks, as a gradient method sees it (`engine.InnerLoop`)."""

    @property
    def steps(self) -> int:
        """The number of inner steps."""

    @property
    def sets(self) -> range:
        """The inner steps on support sets of their own; the first, where all are on one."""

    @property
    def rule(self) -> Rule:
        """The rule that moves the parameters."""

    @property
    def changing(self) -> bool:
        """Whether the model is another one at every step, as with `models.PerStep`."""

    def start(self, meta: Meta) -> Carry:
        """θ for every task, and the rule's first state."""

    def support_loss(self, step: int, parameters: Tensors, shared: Tensors) -> Tensor:
        """The sum over tasks of the support loss: one scalar whose gradient is every task's."""

    def gradient(self, step: int, carry: Carry, meta: Meta, *, create_graph: bool) -> Tensors:
        """Every task's inner gradient; a constant unless `create_graph`."""

    def update(self, step: int, carry: Carry, gradient: Tensors, meta: Meta) -> Carry:
        """The next carry, given the inner gradient."""

    def step(self, step: int, carry: Carry, meta: Meta, *, create_graph: bool) -> Carry:
        """`gradient`, then `update`."""

    def observed(self, step: int) -> bool:
        """Whether the query loss after `step` steps is part of the meta-objective."""

    def query(self, step: int, parameters: Tensors, shared: Tensors) -> Query:
        """The query loss after `step` steps."""

    def weighted_sum(self, x: Tensor) -> Tensor:
        """The sum of ``[tasks, *shape]`` over tasks, each with its weight in the meta-objective."""


@dataclass(frozen=True)
class GradientMethod(ABC):
    """How the inner loop is differentiated.

    Attributes:
        exact: whether the result is the meta-gradient itself, up to rounding.
        steps_once: whether each inner step runs once, so that steps may share what they have in
            common; a method that runs them again keeps as little as it can in between.
        tried_once: whether it is right for a model only as far as `doubt` has tried.
        one_graph: whether it is backpropagation through the recorded loop, in which some steps'
            inner gradients are constants: all of it is then said by `differentiates`.
        adapted_only: whether it gives nothing to the meta-parameters that the inner loop leaves
            alone, and to learned rates.
        runs_loop: whether it runs the inner steps of the loop that it is given, and no others.
        rows_suffice: whether an embedding's rows that a task does not look up may be left out.
        differentiates_query: whether it differentiates the query loss; one that does not gives no
            meta-gradient and keeps nothing of the query pass.
    """

    exact: ClassVar[bool] = True
    steps_once: ClassVar[bool] = True
    tried_once: ClassVar[bool] = False
    one_graph: ClassVar[bool] = False
    adapted_only: ClassVar[bool] = False
    runs_loop: ClassVar[bool] = True
    rows_suffice: ClassVar[bool] = True
    differentiates_query: ClassVar[bool] = True

    @abstractmethod
    def meta_gradient(self, loop: Loop, meta: Meta) -> tuple[MetaGradient, list[Query]]:
        """The gradient of the meta-objective, and the query losses that it was made of.

        Pure: the result depends on the arguments alone, and nothing of them is changed. Works
        whether or not gradients are enabled outside. The meta-gradient's tensors are detached.
        """

    def differentiates(self, step: int, steps: int) -> bool:
        """Whether the inner gradient of `step` is differentiated, not taken as a constant.

        Memory estimates go by it. A method without second derivatives says so here.
        """
        return True

    def second_order(self, steps: int) -> bool:
        """Whether any second derivative is taken of so many inner steps."""
        return any(self.differentiates(step, steps) for step in range(steps))

    def held_steps(self, steps: int) -> int:
        """Of how many of so many inner steps memory is held at the same time.

        Memory estimates go by it, too: a method that runs steps again holds fewer.
        """
        return steps

    def holding_all(self) -> GradientMethod:
        """The method that holds all steps: what the small meta-step of an estimate runs."""
        return self

    def on(self, device: torch.device) -> GradientMethod:
        """The method as it runs on such a device: recordings and memory estimates go by it."""
        return self

    @property
    def unrecordable(self) -> str:
        """Why no recording can hold what it does; "" where one can."""
        return ""

    def steps_away(self, steps: int) -> int:
        """Of how many of so many inner steps a copy waits in the CPU's memory at the same time."""
        return 0

    def unfit(self, rule: Rule, learns: bool) -> str:
        """Why it cannot differentiate the loop of such a rule; "" where it can.

        Args:
            rule: that moves the parameters.
            learns: whether the rule has learned rates.
        """
        return ""

    @property
    def code(self) -> Any:
        """What of it runs: recordings and plans are held to its settings."""
        return self

    def doubt(self, loop: Loop, meta: Meta) -> str:
        """Why the result would be wrong for such a loop, tried out once for a plan; "" if it holds.

        Args:
            loop: of one task, at least one inner step.
            meta: as for `meta_gradient`.
        """
        return ""


def leaves_of(tree: Any) -> Any:
    """The same tree with every floating or complex tensor a fresh leaf that requires a gradient.

    Args:
        tree: of dicts, lists, tuples and tensors; what else is in it stays as it is.
    """
    return tree_map_only(Tensor, lambda x: x.detach().requires_grad_() if smooth(x) else x, tree)


def smooth(x: Tensor) -> bool:
    """Whether there are derivatives with respect to such a tensor."""
    return x.is_floating_point() or x.is_complex()


def inner_product(x: Tensor, cotangent: Tensor) -> Tensor:
    """The scalar whose gradient with respect to `x` is `cotangent`, real also where they are not.

    PyTorch's gradient of a real number by a complex one is that by its real part plus i times that
    by its imaginary part.
    """
    if x.is_complex():
        return (x * cotangent.conj()).real.sum()
    return (x * cotangent).sum()


def detached(tree: Any) -> Any:
    """The same tree without graphs; it shares the memory of `tree`."""
    return tree_map_only(Tensor, torch.detach, tree)


def pull_back(outputs: Any, cotangents: Any, inputs: Any) -> Any:
    """The vector-Jacobian product of trees: a tree like `inputs`, None where nothing arrives.

    Args:
        outputs: a tree of tensors computed from `inputs`.
        cotangents: a tree of the same structure; None stands for zero.
        inputs: a tree of leaves that require a gradient.
    """
    flat_inputs, spec = tree_flatten(inputs)
    pairs = [
        (y, c)
        for y, c in zip(tree_leaves(outputs), tree_leaves(cotangents), strict=True)
        if c is not None and isinstance(y, Tensor) and y.requires_grad
    ]
    wanted = [i for i, x in enumerate(flat_inputs) if isinstance(x, Tensor) and x.requires_grad]
    found: list[Tensor | None] = [None] * len(flat_inputs)
    if pairs and wanted:
        ys, cs = zip(*pairs, strict=True)
        gradients = torch.autograd.grad(
            ys, [flat_inputs[i] for i in wanted], list(cs), allow_unused=True
        )
        for i, g in zip(wanted, gradients, strict=True):
            found[i] = g
    return tree_unflatten(found, spec)


def add(a: Any, b: Any) -> Any:
    """The sum of two trees `a` and `b` of one structure, in which None stands for zero."""
    flat, spec = tree_flatten(a)
    other = tree_leaves(b)
    total = [
        y if x is None else x if y is None else x + y for x, y in zip(flat, other, strict=True)
    ]
    return tree_unflatten(total, spec)
