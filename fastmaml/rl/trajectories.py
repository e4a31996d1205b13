"""What policies did and got: trajectories of all tasks at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from fastmaml.engine.base.distributions import Parts


@final
@dataclass(frozen=True)
class Trajectories:
    """``n`` trajectories of every task, ``steps`` long at the most.

    Attributes:
        observations: ``[tasks, steps, n, ...]``: what the policy saw before each action.
        actions: ``[tasks, steps, n, ...]``, as they were sampled: clipping is the environment's.
        rewards: ``[tasks, steps, n]``; the discounted sum of them is what a policy is to raise.
        mask: ``[tasks, steps, n]`` bool: the steps that were taken. A trajectory that ended early
            goes on with steps that count nowhere.
        log_probs: ``[tasks, steps, n]``: of the actions, by the policy that took them.
        truncated: ``[tasks, n]`` bool: trajectories that the environment cut where their task goes
            on (a time limit of its own), so that what comes later is estimated. One that ended, or
            that ran for as many steps as were asked for, is no such trajectory: the return of so
            many steps is the objective. None: there are none.
        last: ``[tasks, n, ...]``: what would have been seen next, where a trajectory was truncated.
        policy: the distributions that the actions were drawn from, by their tensors
            ``[tasks, steps, n, ...]``, for divergences from them. None: not kept.

    Raises:
        ValueError: shapes that do not fit, a NaN (its task, trajectory and step are named), a task
            without a step, a mask with gaps.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    mask: Tensor
    log_probs: Tensor
    truncated: Tensor | None = None
    last: Tensor | None = None
    policy: Parts | None = None

    def __post_init__(self) -> None:
        shape = self.rewards.shape
        if len(shape) != 3:
            raise ValueError(f"rewards has shape {list(shape)}; give [tasks, steps, n].")
        if self.mask.dtype != torch.bool:
            raise ValueError(f"mask has dtype {self.mask.dtype}; give torch.bool.")
        for name in ("mask", "log_probs"):
            self._check(name, list(shape))
        for name in ("observations", "actions"):
            self._check(name, list(shape), 3)
        if self.truncated is not None:
            self._check("truncated", [shape[0], shape[2]])
            if bool(self.truncated.any()) and self.last is None:
                raise ValueError(
                    "some trajectories are truncated, and last= is missing: give what would have "
                    "been seen next, [tasks, n, ...], which says what they were still worth."
                )
        if self.last is not None:
            self._check("last", [shape[0], shape[2], *self.observations.shape[3:]])
        self._check_mask()
        for name in ("observations", "rewards", "log_probs", "actions"):
            self._check_finite(name)

    def _check(self, name: str, shape: list[int], dims: int | None = None) -> None:
        found = list(getattr(self, name).shape)
        if found[:dims] != shape:
            more = ", ..." if dims else ""
            raise ValueError(
                f"{name} has shape {found}, and rewards {list(self.rewards.shape)}: give "
                f"{str(shape)[:-1]}{more}], tasks first, then steps."
            )

    def _check_mask(self) -> None:
        empty = (~self.mask.any(1).any(1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"the mask leaves nothing of task {empty[0]}: every task needs a step."
            )
        gaps = (~self.mask[:, :-1] & self.mask[:, 1:]).nonzero().tolist()
        if gaps:
            task, step, trajectory = gaps[0]
            raise ValueError(
                f"the mask of task {task}, trajectory {trajectory} has a gap after step {step}: "
                "what follows the end of a trajectory does not count."
            )

    def _check_finite(self, name: str) -> None:
        x = getattr(self, name)
        if not x.is_floating_point():
            return
        finite = x.isfinite().flatten(3).all(-1) if x.ndim > 3 else x.isfinite()
        if bool(finite.all()):
            return
        wrong = (~finite & self.mask).nonzero().tolist()
        if wrong:
            task, step, trajectory = wrong[0]
            raise ValueError(
                f"{name} is not finite in task {task}, trajectory {trajectory}, step {step}: "
                f"{x[task, step, trajectory].tolist()}."
            )
        # Beyond the end anything may stand; times the mask, it has to be nothing.
        wide = finite.view(*finite.shape, *[1] * (x.ndim - 3))
        object.__setattr__(self, name, torch.where(wide, x, 0))

    @property
    def tasks(self) -> int:
        """The number of tasks."""
        return self.rewards.shape[0]

    @property
    def returns(self) -> Tensor:
        """``[tasks, n]``: the sum of each trajectory's rewards, not discounted."""
        return (self.rewards * self.mask).sum(1)

    @property
    def lengths(self) -> Tensor:
        """``[tasks, n]`` int64: how many steps each trajectory has."""
        return self.mask.sum(1)

    def to(self, *args: Any, **kwargs: Any) -> Trajectories:
        """As `torch.Tensor.to`, for every tensor; a dtype concerns floating-point tensors only."""
        return self.map(lambda x: _to(x, *args, **kwargs))

    def map(self, function: Callable[[Tensor], Tensor]) -> Trajectories:
        """The same with `function` applied to every tensor."""
        names = ("observations", "actions", "rewards", "mask", "log_probs", "truncated", "last")
        given = {n: getattr(self, n) for n in names}
        changed: dict[str, Any] = {n: function(x) for n, x in given.items() if x is not None}
        if self.policy is not None:
            changed["policy"] = self.policy.map(function)
        return replace(self, **changed)


def _to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """As `Tensor.to`; whole numbers and truth values keep their dtype."""
    if x.is_floating_point():
        return x.to(*args, **kwargs)
    args = tuple(a for a in args if not isinstance(a, torch.dtype))
    kwargs.pop("dtype", None)
    return x.to(*args, **kwargs) if args or kwargs else x
