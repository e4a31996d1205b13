"""`PolicyTrainer`: the outer loop of policies that adapt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch.optim import Optimizer

from fastmaml.maml import MAML
from fastmaml.rl.environments.base import Environment
from fastmaml.rl.evaluation import adaptation, returns_by_step
from fastmaml.rl.learner import MetaPolicy
from fastmaml.training.callbacks import Callback
from fastmaml.training.config import PolicyConfig
from fastmaml.training.evaluation import Evaluation, evaluating
from fastmaml.training.outer_loop import OuterLoop
from fastmaml.training.reports import Report
from fastmaml.training.source_states import digest
from fastmaml.training.summary import averaged

_AT_ONCE = 20
"""Tasks that are evaluated together."""


@final
class PolicyTrainer(OuterLoop):
    """Meta-trains a policy: progress, evaluation on other tasks, checkpoints, metrics and plots.

    An iteration samples tasks, lets the policy act and adapt in each, and updates it by what the
    adapted policies got. On the CPU a run that was interrupted and resumed ends with the same
    parameters, bit for bit, as one that was not.

    Args:
        learner: what to train.
        train: where; tasks are drawn from its generator.
        validation: a like environment with a seed of its own, whose first tasks are evaluated on
            every ``config.evaluate_every`` iterations.
        test: another, for the end.
        config: of the run.
        optimizer: of ``learner.maml.parameters()``; None for the one that `config` describes.
        screen: whether to print.
        callbacks: objects of `fastmaml.training.callbacks.Callback`, told how the run goes.

    Raises:
        ValueError: there are several processes: policies are trained in one.
    """

    def __init__(
        self,
        learner: MetaPolicy,
        train: Environment,
        validation: Environment | None = None,
        test: Environment | None = None,
        *,
        config: PolicyConfig | None = None,
        optimizer: Optimizer | None = None,
        screen: bool = True,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.policy_config = PolicyConfig() if config is None else config
        super().__init__(learner.maml, self.policy_config, optimizer, screen, None, callbacks)
        if self.ranks.several:
            raise ValueError(
                f"{self.ranks.world} processes: policies are trained in one, without torchrun."
            )
        self.learner, self.train = learner, train
        self.validation, self.test = validation, test
        self._untrained = learner.copy()

    def step(self) -> dict[str, Any]:
        """One iteration: trajectories before and after adaptation, and what is learned of them."""
        config, learner = self.policy_config, self.learner
        self._put_back()
        tasks = _on(self.train.sample_tasks(config.tasks), self.maml)
        *found, after = adaptation(
            learner, self.train, tasks, config.trajectories, learner.steps, config.horizon
        )
        self._schedule()
        figures = learner.update(found, after, self.optimizer)
        self._advance()
        return {
            "iteration": self.iteration,
            "seconds": round(self.seconds, 3),
            "return": after.returns.mean().item(),
            "no_adaptation": found[0].returns.mean().item(),
            **figures,
            "lr": self.optimizer.param_groups[0]["lr"],
        }

    @property
    def _validates(self) -> bool:
        return self.validation is not None

    def _validate(self) -> dict[str, Any]:
        if self.validation is None:
            return {}
        count = self.config.validation_episodes
        found = self._evaluate(self.validation, count, lambda done: None)
        return {"validation": found.as_dict()}

    def _tested(self, after_batch: Callable[[int], None]) -> Evaluation | None:
        if self.test is None:
            return None
        count = self.config.test_episodes
        return self._evaluate(self.test, count, after_batch, self._untrained)

    def _evaluate(
        self,
        environment: Environment,
        count: int,
        after_batch: Callable[[int], None],
        untrained: MetaPolicy | None = None,
    ) -> Evaluation:
        config = self.policy_config
        steps = self.learner.steps if config.eval_steps is None else config.eval_steps
        start = environment.state_dict()
        try:
            return evaluate_policy(
                self.learner, environment, config, count, steps, untrained, after_batch
            )
        finally:
            environment.load_state_dict(start)

    def _finished(self, report: Report, found: Evaluation) -> list[str]:
        """A picture of paths in the plane, where the environment is one."""
        environment, config = self.test, self.policy_config
        if environment is None or not report.plots or not environment.planar:
            return []
        from fastmaml.training.paths import plot_paths

        with evaluating(self.maml):
            tasks = _on(environment.sample_tasks(4), self.maml)
            given = config.trajectories, found.steps, config.horizon
            shown = adaptation(self.learner, environment, tasks, *given)
        try:
            plot_paths(self.folder / "paths.png", shown, tasks, config.full_title)
        except ImportError:  # that matplotlib is missing was said for curves.png
            return []
        return ["paths.png"]

    def _source_state(self) -> Any:
        return self.train.state_dict()

    def _held_out(self) -> dict[str, Any]:
        both = {"validation": self.validation, "test": self.test}
        return {name: one.state_dict() for name, one in both.items() if one is not None}

    def _measured_by(self, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        found = super()._measured_by(config)
        if config is None:
            found["test_trajectories"] = self.policy_config.test_trajectories
            found["what is validated on"] = digest(self._held_out().get("validation"))
        elif "test_trajectories" in config:
            found["test_trajectories"] = config["test_trajectories"]
        return found

    def _load_source(self, state: Any) -> None:
        self.train.load_state_dict(state)

    def _require_source(self, path: Path, state: Any) -> None:
        if state is None:
            raise ValueError(f"{path} says nothing of the environment it was trained in.")


def evaluate_policy(
    learner: MetaPolicy,
    environment: Environment,
    config: PolicyConfig,
    count: int,
    steps: int,
    untrained: MetaPolicy | None = None,
    after_batch: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Returns after 0, 1, ..., steps inner steps, beside an untrained policy that adapts as often.

    PyTorch's random state is as before afterwards.

    Args:
        learner: what to evaluate; it does not change.
        environment: draws the tasks.
        config: says how many trajectories a task has.
        count: how many tasks.
        steps: inner steps.
        untrained: to compare with.
        after_batch: called with the number of tasks done.
    """
    given = config.test_trajectories, steps, config.horizon
    found, plain = [], []
    with evaluating(learner.maml):
        torch.manual_seed(count)
        done = 0
        while done < count:
            tasks = _on(environment.sample_tasks(min(_AT_ONCE, count - done)), learner.maml)
            found.append(returns_by_step(learner, environment, tasks, *given))
            if untrained is not None:
                plain.append(returns_by_step(untrained, environment, tasks, *given)[:, -1])
            done += len(tasks)
            after_batch(done)
    reference = torch.cat(plain).mean().item() if plain else None
    return averaged("return", torch.cat(found).cpu(), reference)


def _on(tasks: Any, maml: MAML) -> Any:
    """The tasks where the policy is, real ones in its precision."""
    like = next(maml.parameters())
    if not isinstance(tasks, torch.Tensor):
        return tasks
    return tasks.to(like) if tasks.is_floating_point() else tasks.to(like.device)
