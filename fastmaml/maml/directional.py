"""`MAML.jvp`: how adapted models change along a direction of the meta-parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from fastmaml.engine.step.task_learner import TaskLearner
from fastmaml.engine.step.task_state import adapt_along, outputs_along, queried, start_along
from fastmaml.episodes.batch import Episodes, without_inference_mode
from fastmaml.maml.adapted import called
from fastmaml.maml.per_task import PerTask
from fastmaml.maml.predictions import usable

if TYPE_CHECKING:
    from fastmaml.maml.maml import MAML


class Directional(NamedTuple):
    """Query losses and outputs after adaptation, and their derivatives along a direction."""

    losses: Tensor
    """``[tasks]``."""
    outputs: Any
    """A tree of ``[tasks, ...]``."""
    losses_along: Tensor
    """``[tasks]``: the derivative of each loss."""
    outputs_along: Any
    """A tree like `outputs`; zero for what has no derivative."""


@final
class Directions:
    """The function of a task whose outputs these are, recorded; a copy begins empty."""

    def __init__(self) -> None:
        self._run: PerTask | None = None

    def __reduce__(self) -> Any:
        return Directions, ()

    def __call__(
        self, maml: MAML, episodes: Episodes, tangents: Mapping[str, Tensor], steps: int
    ) -> Directional:
        """See `MAML.jvp`."""
        _check(maml, tangents)
        if self._run is None:
            self._run = PerTask(maml, _function(maml), learns=False)
        direction = {n: x.detach().expand(episodes.tasks, *x.shape) for n, x in tangents.items()}
        with torch.inference_mode(False), torch.no_grad():  # it differentiates by itself
            support, query, *later = without_inference_mode(episodes).tree()
            direction = {n: usable(x) for n, x in direction.items()}
            supports = [support, *later]
            out = self._run(direction, supports, query, steps, maml._first_order)
        outputs, losses_along, along = out.outputs
        return Directional(out.losses, outputs, losses_along, along)


def _function(maml: MAML) -> Any:
    def function(
        learner: TaskLearner, v: Any, supports: Any, query: Any, steps: int, first_order: bool
    ) -> Any:
        loss: Any = maml.loss
        query_loss: Any = loss if maml.query_loss is None else maml.query_loss
        direction = start_along(learner, v)
        for step in range(steps):
            inputs, targets = supports[min(step, len(supports) - 1)]
            inner = loss(called(learner, inputs), targets)
            direction = adapt_along(learner, inner, direction, first_order)
        outputs = called(queried(learner), query[0])
        found = query_loss(outputs, query[1])
        leaves, spec = tree_flatten(outputs)
        smooth = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.requires_grad]
        slope, *slopes = outputs_along(learner, [found, *(leaves[i] for i in smooth)], direction)
        by_place = dict(zip(smooth, slopes, strict=True))
        along = [
            by_place.get(i, torch.zeros_like(x) if isinstance(x, Tensor) else x)
            for i, x in enumerate(leaves)
        ]
        return found, (outputs, slope, tree_unflatten(along, spec))

    return function


def _check(maml: MAML, tangents: Mapping[str, Tensor]) -> None:
    if maml.loss is None:
        raise ValueError("this MAML has no loss, which the inner loop needs: give MAML(loss=...).")
    named = {n: p for n, p in maml.module.named_parameters() if p.requires_grad}
    if maml._anew:
        raise ValueError(
            f"jvp goes along trainable parameters, and {', '.join(maml._anew)} of this model begin "
            "anew for every task."
        )
    if maml.settings.scope != "all" or maml._rate_names:
        raise ValueError(
            "jvp goes along parameters that adapt: it needs scope='all' and a rule that learns "
            f"nothing, not scope={maml.settings.scope!r} and {maml.rule}."
        )
    if set(tangents) != set(named):
        odd = sorted(set(tangents) ^ set(named))
        raise ValueError(
            f"tangents needs one tensor for each trainable parameter, by its name in the model: "
            f"{', '.join(odd[:5])} {'is' if len(odd) == 1 else 'are'} missing or unknown."
        )
    for name, x in tangents.items():
        if x.shape != named[name].shape:
            raise ValueError(
                f"the tangent of {name!r} has shape {list(x.shape)}, and the parameter "
                f"{list(named[name].shape)}."
            )
