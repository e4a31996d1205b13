"""`OuterLoop`: iterations, evaluation, checkpoints, metrics and plots, whatever is learned."""

from __future__ import annotations

import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer

from fastmaml._environment import describe_device, versions
from fastmaml.engine.base.errors import NonFiniteLoss
from fastmaml.integrations.quantized.state import learned_state, load_learned
from fastmaml.maml import MAML
from fastmaml.training import checkpoint
from fastmaml.training.checkpoint import Checkpoint
from fastmaml.training.config import LoopConfig
from fastmaml.training.evaluation import Evaluation
from fastmaml.training.interrupts import Interrupted, InterruptGuard
from fastmaml.training.run_folder import CHECKPOINT, RunReport, note
from fastmaml.training.schedules import cosine
from fastmaml.training.summary import trained


class OuterLoop(ABC):
    """What trainers have in common: `fit`, `save` and `resume`.

    Args:
        maml: what is trained.
        config: of the outer loop; it is kept in the checkpoint, which only the same can resume.
        optimizer: of ``maml.parameters()``; None for the one that `config` describes.
        screen: whether to print.
    """

    def __init__(
        self, maml: MAML, config: LoopConfig, optimizer: Optimizer | None, screen: bool
    ) -> None:
        self.maml, self.config, self.screen = maml, config, screen
        self.optimizer = _optimizer(maml, self.config) if optimizer is None else optimizer
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.device = next(maml.parameters()).device
        self.folder = Path(self.config.out)
        self.iteration = 0
        self._resumed: Path | None = None
        self._undo: Callable[[], None] | None = None
        self._given_up: int | None = None
        self._stepped = False
        self._seconds, self._since = 0.0, time.perf_counter()

    @abstractmethod
    def step(self) -> dict[str, Any]:
        """One iteration; its line of ``metrics.jsonl``."""

    @abstractmethod
    def _validate(self) -> dict[str, Any]:
        """What an evaluation in between adds to the line of an iteration; {} for nothing."""

    @abstractmethod
    def _tested(self, after_batch: Callable[[int], None]) -> Evaluation | None:
        """The final test; None where there is nothing to test on.

        Args:
            after_batch: is called with the number of episodes done.
        """

    def _test_episodes(self) -> int:
        """How many episodes the final test has."""
        return self.config.test_episodes

    @abstractmethod
    def _source_state(self) -> Any:
        """Where what is trained on stands; None where that cannot be said."""

    @abstractmethod
    def _load_source(self, state: Any) -> None:
        """Let it go on from there."""

    @abstractmethod
    def _require_source(self, path: Path, state: Any) -> None:
        """Raise ValueError where it cannot go on from there."""

    def _finished(self, report: RunReport, found: Evaluation) -> list[str]:
        """Write more files of the run, and name them."""
        return []

    def fit(self) -> Evaluation:
        """Train up to ``config.iterations``, then test.

        Returns:
            The test's result. Without test episodes: the accuracy or loss of the tasks of the last
            hundred iterations, on their query sets while they were trained on.

        Raises:
            Interrupted: by Ctrl-C, after the iteration was finished and saved; by SIGTERM, after
                which there may be seconds only, and by Ctrl-C before the first iteration of this
                process is finished, within it, where it can be run anew: the state before it is
                saved.
            NonFiniteLoss: a loss or meta-gradient is not finite; the state before it was saved.
        """
        continued = self._resumed is not None and self._resumed.parent == self.folder
        last = self.iteration if continued else None
        report = RunReport(self.folder, last, self.config.plots, self.screen)
        self._since = time.perf_counter()
        self._undo, self._given_up, self._stepped = None, None, False
        with report, InterruptGuard(report.stopping, self._can_give_up) as guard:
            try:
                self._train(report, guard)
                found = self._test(report, guard)
                return trained(report.lines, self.maml.steps) if found is None else found
            except NonFiniteLoss:
                self.save()
                raise
            except KeyboardInterrupt as error:
                raise self._stopped(error) from None

    def _train(self, report: RunReport, guard: InterruptGuard) -> None:
        """Run the outer loop up to the configured number of iterations."""
        config = self.config
        with report.bar("meta-training", self.iteration, config.iterations) as show:
            if self.iteration == 0 and not report.lines and config.evaluate_every:
                report.stage(show, 0, "first validation: planning and recording")
                with self._discardable(draws=False):
                    first = self._validate()
                report.line({"iteration": 0, "seconds": 0.0, **first})
            if self.iteration < config.iterations:
                report.stage(show, self.iteration, "first iteration: planning and recording")
            while self.iteration < config.iterations:
                line = self.step()
                self._stepped = True
                if self._due(config.evaluate_every):
                    line |= self._validate()
                report.line(line)
                show(self.iteration, note(line))
                if self._due(config.checkpoint_every):
                    self.save()
                guard.check()
        self.save()

    def _stopped(self, error: KeyboardInterrupt) -> KeyboardInterrupt:
        """Put back and save what was before, as is right for it; what to raise."""
        if self._given_up is not None and not isinstance(error, Interrupted):
            error = Interrupted(self._given_up)  # it was lost inside a recording
        if isinstance(error, Interrupted):  # else it is the second signal
            if self._undo is not None:
                self._undo()
            self.save()
        return error

    def _can_give_up(self, number: int) -> bool:
        """Whether a signal may stop what is going on: the state before it is kept."""
        urgent = number == signal.SIGTERM or not self._stepped  # the first one takes longest
        if urgent and self._undo is not None:
            self._given_up = number
        return self._given_up is not None

    @contextmanager
    def _discardable(self, draws: bool = True) -> Iterator[None]:
        """Inside, parameters do not change, so that an iteration can be given up, and run anew.

        Args:
            draws: whether episodes are drawn to train on, which must then be drawn again.
        """
        source = self._source_state()
        if draws:
            try:
                self._require_source(self.folder, source)
            except ValueError:  # it cannot be run anew: a signal waits for its end
                yield
                return
        random = _random_state(self.device)
        buffers = [(x, x.clone()) for x in self.maml.buffers()]

        def undo() -> None:
            if draws:
                self._load_source(source)
            self._load_random(random)
            for x, before in buffers:
                x.copy_(before)

        self._undo = undo  # by `fit`, as a signal may arrive when this is left, too
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException:
            self._undo = None
            raise
        self._undo = None

    def _load_random(self, state: dict[str, torch.Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)

    def save(self, path: Path | None = None) -> None:
        """Write a checkpoint, by default ``last.safetensors`` in the run's folder."""
        state = {
            "maml": learned_state(self.maml),
            "optimizer": self.optimizer.state_dict(),
            "episodes": self._source_state(),
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
        self._load_source(saved.state["episodes"])  # first, as it may be that of other data
        load_learned(self.maml, saved.state["maml"])
        self.optimizer.load_state_dict(saved.state["optimizer"])
        self._load_random(saved.state["random"])
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
        self._require_source(path, saved.state["episodes"])

    def _schedule(self) -> None:
        """Set the outer learning rate of this iteration."""
        if self.config.schedule == "cosine":
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * cosine(self.iteration, self.config.iterations)

    def _due(self, every: int) -> bool:
        return bool(every) and (
            self.iteration % every == 0 or self.iteration == self.config.iterations
        )

    def _test(self, report: RunReport, guard: InterruptGuard) -> Evaluation | None:
        with report.bar("final test", 0, self._test_episodes()) as show:

            def after_batch(done: int) -> None:
                show(done)
                guard.check()

            found = self._tested(after_batch)
        if found is None:
            return None
        result = {
            "title": self.config.title,
            "test": found.as_dict(),
            "iterations": self.iteration,
            "seconds": round(self.seconds, 1),
            "device": describe_device(self.device),
            "versions": versions(),
            "config": self.config.as_dict(),
        }
        report.finish(found, result, self.config.title, self._finished(report, found))
        return found


def _optimizer(maml: MAML, config: LoopConfig) -> Optimizer:
    parameters, decay = maml.parameters(), config.weight_decay
    if config.optimizer == "sgd":
        return SGD(parameters, config.meta_lr, momentum=0.9, weight_decay=decay)
    kind = {"adam": Adam, "adamw": AdamW}[config.optimizer]
    return kind(parameters, config.meta_lr, weight_decay=decay)


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state
