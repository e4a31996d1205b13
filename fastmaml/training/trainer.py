"""`MetaTrainer`: the outer loop, for those who have none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from fastmaml.episodes.batch import Episodes
from fastmaml.gradients import FirstOrder
from fastmaml.maml import MAML
from fastmaml.training.autocast import autocast
from fastmaml.training.callbacks import Callback
from fastmaml.training.config import LoopConfig
from fastmaml.training.evaluation import Evaluation, evaluate, extent
from fastmaml.training.meta_gradient import meta_gradient
from fastmaml.training.metrics import Choice, Metrics, chosen, of_next_tokens
from fastmaml.training.outer_loop import OuterLoop
from fastmaml.training.rates import Scheduler
from fastmaml.training.schedules import multi_step_weights
from fastmaml.training.source_states import digest


@final
class MetaTrainer(OuterLoop):
    """Meta-trains `maml`: progress, evaluation on unseen tasks, checkpoints, metrics and plots.

    On the CPU a run that was interrupted and resumed ends with the same parameters, bit for bit,
    as one that was not; how often it evaluates or saves does not change them either. Under
    torchrun, or where `torch.distributed` has a default group, every process draws the same
    meta-batches and computes its share of their tasks: the numbers are those of one process.

    Args:
        maml: what to train.
        train: an endless iterable of `Episodes`. To be resumed it needs ``state_dict()`` and
            ``load_state_dict()``, as everything in `fastmaml.episodes` has; without them,
            ``config.checkpoint_every`` has to be 0.
        config: of the outer loop; it is kept in the checkpoint, which only the same can resume.
        optimizer: of ``maml.parameters()``; None for the one that `config` describes.
        validation: episodes of unseen classes, evaluated every ``config.evaluate_every``
            iterations, the same ones each time.
        test: episodes of other unseen classes, for the end. Of finite sets, such as
            `fastmaml.episodes.Table.all` gives, no more than all are evaluated.
        metrics: what else validation and test measure, such as "f1,matthews"; as of
            `fastmaml.training.evaluation.evaluate`. Each has to be of some task of the validation
            and of the test: where these differ in kind, name the data sets that a metric is of.
        screen: whether to print.
        scheduler: of `torch.optim.lr_scheduler`, of the optimizer's learning rate, in the place of
            the configuration's: one of `optimizer`, or a function that makes one of the optimizer.
            It goes on with every iteration, ``ReduceLROnPlateau`` with every validation.
        callbacks: objects of `fastmaml.training.callbacks.Callback`, told how the run goes.

    Raises:
        ValueError: something that cannot be done as asked.

    Examples:
        >>> trainer = MetaTrainer(maml, fm.episodes.digits(), test=fm.episodes.digits("test"))
        >>> print(trainer.fit().text())
    """

    def __init__(
        self,
        maml: MAML,
        train: Iterable[Episodes],
        *,
        config: LoopConfig | None = None,
        optimizer: Optimizer | None = None,
        validation: Iterable[Episodes] | None = None,
        test: Iterable[Episodes] | None = None,
        metrics: Metrics | Choice | None = None,
        screen: bool = True,
        scheduler: Scheduler | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        config = LoopConfig() if config is None else config
        super().__init__(maml, config, optimizer, screen, scheduler, callbacks)
        for name, held_out in (("validation", validation), ("test", test)):
            if held_out is train:
                raise ValueError(
                    f"{name} is the same object as train, which each evaluation would put back to "
                    "where it began: give episodes of unseen classes or tasks."
                )
        self.train = train
        self.validation = None if validation is None else _Repeated(validation)
        self.test = None if test is None else _Repeated(test)
        self.metrics = chosen(metrics, of_next_tokens(maml))
        self._lower |= self.metrics.lower
        self._scores |= set(self.metrics.names)
        self._episodes = iter(train)
        self._compared = not self.ranks.several
        if self.ranks.several:
            self.ranks.require_divisible(getattr(config, "tasks", self.ranks.world))

    def step(self) -> dict[str, Any]:
        """One iteration: a meta-batch, its meta-gradient, and a step of the optimizer."""
        config, maml = self.config, self.maml
        self._put_back()
        first_order = FirstOrder() if self.iteration < config.first_order_until else None
        weights = multi_step_weights(maml.steps, self.iteration, config.multi_step_until)
        self.optimizer.zero_grad()
        with self._discardable():
            batches = [self._next() for _ in range(config.accumulate)]
            self._compare_draws(batches[0])
            how = {"gradient": first_order, "step_weights": weights}
            with autocast(config, self.device):
                found = meta_gradient(maml, batches, self.ranks, **how)
        norm = clip_grad_norm_(maml.parameters(), config.clip or float("inf"))
        self._schedule()
        rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self._advance()
        return {
            "iteration": self.iteration,
            "seconds": round(self.seconds, 3),
            **found,
            "gradient_norm": norm.item(),
            "lr": rate,
        }

    def _compare_draws(self, batch: Episodes) -> None:
        """Raise ValueError where processes, which divide a meta-batch, did not draw the same."""
        if self._compared:
            return
        sums = [x.double().sum().item() for batch in batch.sets().values() for x in batch.tensors()]
        if any(other != sums for other in self.ranks.gathered(sums)):
            raise ValueError(
                "the processes drew different meta-batches: each takes its share of the tasks of "
                "a whole one, so give the training episodes the same seed in all of them."
            )
        self._compared = True

    def _source_state(self) -> Any:
        return _state(self.train)

    def _load_source(self, state: Any) -> None:
        self.train.load_state_dict(state)  # type: ignore[attr-defined]
        self._episodes = iter(self.train)

    def _require_source(self, path: Path, state: Any) -> None:
        if state is None or not hasattr(self.train, "load_state_dict"):
            raise ValueError(
                f"{path} cannot be resumed: the training episodes (a {type(self.train).__name__}) "
                "have no state_dict() and load_state_dict() to continue where they stopped."
            )

    def _held_out(self) -> dict[str, Any]:
        both = {"validation": self.validation, "test": self.test}
        return {name: getattr(one, "start", None) for name, one in both.items()}

    def _measured_by(self, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        found = super()._measured_by(config)
        if config is None:
            found["what is validated on"] = digest(self._held_out().get("validation"))
            found["the metric of best_by"] = _described(self.metrics, self.config.best_by)
        return found

    def _next(self) -> Episodes:
        episodes = next(self._episodes, None)
        if episodes is None:
            raise ValueError(
                f"the training episodes ended after {self.iteration} of {self.config.iterations} "
                "iterations: give an endless iterable, or set iterations to what there is."
            )
        return episodes

    @property
    def _validates(self) -> bool:
        return self.validation is not None

    def _validate(self) -> dict[str, Any]:
        if self.validation is None:
            return {}
        found = self._evaluate(self.validation, self.config.validation_episodes)
        return {"validation": found.as_dict()}

    def _test_episodes(self) -> int:
        return extent(self.test, self.config.test_episodes)

    def _tested(self, after_batch: Callable[[int], None]) -> Evaluation | None:
        if self.test is None:
            return None
        return self._evaluate(self.test, self.config.test_episodes, after_batch)

    def _evaluate(self, episodes: _Repeated, count: int, *after_batch: Any) -> Evaluation:
        steps = self.maml.steps if self.config.eval_steps is None else self.config.eval_steps
        also: dict[str, Any] = {"metrics": self.metrics, "ranks": self.ranks}
        with autocast(self.config, self.device):
            return evaluate(self.maml, episodes, count, steps, *after_batch, **also)


class _Repeated:
    """Episodes that start from the same place each time they are iterated over."""

    def __init__(self, episodes: Iterable[Episodes]) -> None:
        self.source, self.start = episodes, _state(episodes)
        self.total = getattr(episodes, "total", None)  # of a finite set

    def __iter__(self) -> Iterator[Episodes]:
        if self.start is not None:
            self.source.load_state_dict(self.start)  # type: ignore[attr-defined]
        return iter(self.source)


def _described(choice: Choice, name: str | None) -> str | None:
    """The metrics of a name, with their settings; None where there are none."""
    groups = {"": choice.everywhere} if choice.by_name is None else choice.by_name
    found = [f"{of}: {x!r}" for of, metrics in groups.items() for x in metrics if x.name == name]
    return "; ".join(found) or None


def _state(episodes: Iterable[Episodes]) -> Any:
    return episodes.state_dict() if hasattr(episodes, "state_dict") else None
