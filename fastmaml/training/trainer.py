"""`MetaTrainer`: the outer loop, for those who have none."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam, AdamW, Optimizer

from fastmaml._environment import describe_device, versions
from fastmaml.engine.base.errors import NonFiniteLoss
from fastmaml.episodes.batch import Episodes
from fastmaml.gradients import FirstOrder
from fastmaml.maml import MAML
from fastmaml.training import checkpoint
from fastmaml.training.checkpoint import Checkpoint
from fastmaml.training.config import LoopConfig
from fastmaml.training.evaluation import Evaluation, evaluate
from fastmaml.training.interrupts import Interrupted, InterruptGuard
from fastmaml.training.run_folder import CHECKPOINT, RunReport
from fastmaml.training.schedules import cosine, multi_step_weights


class MetaTrainer:
    """Meta-trains `maml`: progress, evaluation on unseen tasks, checkpoints, metrics and plots.

    On the CPU a run that was interrupted and resumed ends with the same parameters, bit for bit,
    as one that was not; how often it evaluates or saves does not change them either.

    Args:
        maml: what to train.
        train: an endless iterable of `Episodes`. To be resumed it needs ``state_dict()`` and
            ``load_state_dict()``, as everything in `fastmaml.episodes` has.
        config: of the outer loop; it is kept in the checkpoint, which only the same can resume.
        optimizer: of ``maml.parameters()``; None for the one that `config` describes.
        validation: episodes of unseen classes, evaluated every ``config.evaluate_every``
            iterations, the same ones each time.
        test: episodes of other unseen classes, for the end.
        screen: whether to print.

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
        screen: bool = True,
    ) -> None:
        self.maml, self.train, self.screen = maml, train, screen
        self.config = LoopConfig() if config is None else config
        self.optimizer = _optimizer(maml, self.config) if optimizer is None else optimizer
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.validation = None if validation is None else _Repeated(validation)
        self.test = None if test is None else _Repeated(test)
        self.device = next(maml.parameters()).device
        self.folder = Path(self.config.out)
        self.iteration = 0
        self._resumed: Path | None = None
        self._seconds, self._since = 0.0, time.perf_counter()
        self._episodes = iter(train)

    def fit(self) -> Evaluation | None:
        """Train up to ``config.iterations``, then test.

        Returns:
            The test's result; None without test episodes.

        Raises:
            Interrupted: by Ctrl-C or SIGTERM, after the iteration was finished and saved.
            NonFiniteLoss: a loss or meta-gradient is not finite; the state before it was saved.
        """
        continued = self._resumed is not None and self._resumed.parent == self.folder
        last = self.iteration if continued else None
        report = RunReport(self.folder, last, self.config.plots, self.screen)
        self._since = time.perf_counter()
        with report, InterruptGuard(report.stopping) as guard:
            try:
                self._train(report, guard)
                return self._test(report, guard)
            except (Interrupted, NonFiniteLoss):
                self.save()
                raise

    def _train(self, report: RunReport, guard: InterruptGuard) -> None:
        """Run the outer loop up to the configured number of iterations."""
        config = self.config
        with report.bar("meta-training", self.iteration, config.iterations) as show:
            if self._resumed is None and config.evaluate_every:
                report.line({"iteration": 0, "seconds": 0.0, **self._validate()})
            while self.iteration < config.iterations:
                line = self.step()
                if self._due(config.evaluate_every):
                    line |= self._validate()
                report.line(line)
                show(self.iteration, line)
                if self._due(config.checkpoint_every):
                    self.save()
                guard.check()
        self.save()

    def step(self) -> dict[str, Any]:
        """One iteration: a meta-batch, its meta-gradient, and a step of the optimizer."""
        config, maml = self.config, self.maml
        first_order = FirstOrder() if self.iteration < config.first_order_until else None
        weights = multi_step_weights(maml.steps, self.iteration, config.multi_step_until)
        out = maml(self._next(), gradient=first_order, step_weights=weights)
        self.optimizer.zero_grad()
        out.loss.backward()
        norm = clip_grad_norm_(maml.parameters(), config.clip or float("inf"))
        if config.schedule == "cosine":
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * cosine(self.iteration, config.iterations)
        self.optimizer.step()
        self.iteration += 1
        return {
            "iteration": self.iteration,
            "seconds": round(self.seconds, 3),
            "loss": out.loss.item(),
            "accuracy": None if out.accuracy is None else out.accuracy.item(),
            "gradient_norm": norm.item(),
            "lr": self.optimizer.param_groups[0]["lr"],
        }

    def save(self, path: Path | None = None) -> None:
        """Write a checkpoint, by default ``last.safetensors`` in the run's folder."""
        state = {
            "maml": dict(self.maml.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "episodes": _state(self.train),
            "random": _random_state(self.device),
            "device": self.device.type,
            "seconds": self.seconds,
        }
        saved = Checkpoint(self.config.as_dict(), self.iteration, state)
        checkpoint.save(path or self.folder / CHECKPOINT, saved)

    def resume(self, path: Path) -> None:
        """Take the state of a checkpoint; `fit` then goes on from there.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a damaged file, or one of another configuration or kind of device.
        """
        saved = checkpoint.load(path)
        self._check_resumable(path, saved)
        self.maml.load_state_dict(saved.state["maml"])
        self.optimizer.load_state_dict(saved.state["optimizer"])
        self.train.load_state_dict(saved.state["episodes"])  # type: ignore[attr-defined]
        self._episodes = iter(self.train)
        torch.set_rng_state(saved.state["random"]["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(saved.state["random"]["cuda"], self.device)
        self.iteration, self._seconds = saved.iteration, saved.state["seconds"]
        self._since, self._resumed = time.perf_counter(), path

    @property
    def seconds(self) -> float:
        """Seconds spent so far, of the resumed run too."""
        return self._seconds + time.perf_counter() - self._since

    def _check_resumable(self, path: Path, saved: Checkpoint) -> None:
        different = self.config.differences(saved.config)
        if different:
            raise ValueError(
                f"{path} is of another run: {'; '.join(different)}. Resume with the values of the "
                "checkpoint, or train anew without --resume."
            )
        if saved.iteration > self.config.iterations:
            raise ValueError(
                f"{path} is at iteration {saved.iteration}, past iterations="
                f"{self.config.iterations}: raise iterations to go on."
            )
        if saved.state["device"] != self.device.type:
            raise ValueError(
                f"{path} was saved on {saved.state['device']} and cannot be resumed on "
                f"{self.device.type}, where other episodes would follow: choose the same device."
            )
        if saved.state["episodes"] is None or not hasattr(self.train, "load_state_dict"):
            raise ValueError(
                f"{path} cannot be resumed: the training episodes (a {type(self.train).__name__}) "
                "have no state_dict() and load_state_dict() to continue where they stopped."
            )

    def _next(self) -> Episodes:
        episodes = next(self._episodes, None)
        if episodes is None:
            raise ValueError(
                f"the training episodes ended after {self.iteration} of {self.config.iterations} "
                "iterations: give an endless iterable, or set iterations to what there is."
            )
        return episodes

    def _due(self, every: int) -> bool:
        return bool(every) and (
            self.iteration % every == 0 or self.iteration == self.config.iterations
        )

    def _validate(self) -> dict[str, Any]:
        if self.validation is None:
            return {}
        found = self._evaluate(self.validation, self.config.validation_episodes)
        return {"validation": found.as_dict()}

    def _test(self, report: RunReport, guard: InterruptGuard) -> Evaluation | None:
        if self.test is None:
            return None
        count = self.config.test_episodes
        with report.bar("final test", 0, count) as show:

            def after_batch(done: int) -> None:
                show(done)
                guard.check()

            found = self._evaluate(self.test, count, after_batch)
        result = {
            "title": self.config.title,
            "test": found.as_dict(),
            "iterations": self.iteration,
            "seconds": round(self.seconds, 1),
            "device": describe_device(self.device),
            "versions": versions(),
            "config": self.config.as_dict(),
        }
        report.finish(found, result, self.config.title)
        return found

    def _evaluate(self, episodes: _Repeated, count: int, *after_batch: Any) -> Evaluation:
        steps = self.maml.steps if self.config.eval_steps is None else self.config.eval_steps
        return evaluate(self.maml, iter(episodes), count, steps, *after_batch)


class _Repeated:
    """Episodes that start from the same place each time they are iterated over."""

    def __init__(self, episodes: Iterable[Episodes]) -> None:
        self.episodes, self.start = episodes, _state(episodes)

    def __iter__(self) -> Iterator[Episodes]:
        if self.start is not None:
            self.episodes.load_state_dict(self.start)  # type: ignore[attr-defined]
        return iter(self.episodes)


def _optimizer(maml: MAML, config: LoopConfig) -> Optimizer:
    parameters, decay = maml.parameters(), config.weight_decay
    if config.optimizer == "sgd":
        return SGD(parameters, config.meta_lr, momentum=0.9, weight_decay=decay)
    kind = {"adam": Adam, "adamw": AdamW}[config.optimizer]
    return kind(parameters, config.meta_lr, weight_decay=decay)


def _state(episodes: Iterable[Episodes]) -> Any:
    return episodes.state_dict() if hasattr(episodes, "state_dict") else None


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state
