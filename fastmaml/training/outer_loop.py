"""`OuterLoop`: iterations, evaluation, checkpoints, metrics and plots, whatever is learned."""

from __future__ import annotations

import signal
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer

from fastmaml._environment import describe_device, versions
from fastmaml.engine.base.errors import NonFiniteLoss
from fastmaml.maml import MAML
from fastmaml.training.best import LOWER, figure
from fastmaml.training.callbacks import Callback
from fastmaml.training.config import LoopConfig
from fastmaml.training.config.checks import logger_names
from fastmaml.training.evaluation import Evaluation
from fastmaml.training.interrupts import Interrupted, InterruptGuard
from fastmaml.training.loop_state import LoopState
from fastmaml.training.rates import Scheduler
from fastmaml.training.reports import Report, Silent
from fastmaml.training.run_folder import BEST, RunReport, note
from fastmaml.training.summary import trained


class OuterLoop(LoopState):
    """What trainers have in common: `fit`, `stop`, `save` and `resume`.

    Args:
        maml: what is trained.
        config: of the outer loop; it is kept in the checkpoint, which only the same can resume.
        optimizer: of ``maml.parameters()``; None for the one that `config` describes.
        screen: whether to print.
        scheduler: of its learning rate; None for the one that `config` describes.
        callbacks: what is told how the run goes.
    """

    def __init__(
        self,
        maml: MAML,
        config: LoopConfig,
        optimizer: Optimizer | None,
        screen: bool,
        scheduler: Scheduler | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        super().__init__(maml, config, optimizer, scheduler, callbacks)
        self.screen = screen
        self._lower = LOWER
        self._scores = frozenset({"accuracy", "loss", "return"})
        self._given_up: int | None = None
        self._stepped = self._stop = False

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

    @property
    @abstractmethod
    def _validates(self) -> bool:
        """Whether there is something to validate on."""

    def _finished(self, report: Report, found: Evaluation) -> list[str]:
        """Write more files of the run, and name them."""
        return []

    def stop(self) -> None:
        """End the run after this iteration, as if it were the last: it is saved and tested."""
        self._stop = True

    def fit(self) -> Evaluation:
        """Train up to ``config.iterations``, then test.

        The learner then has the weights that were tested: of the best validation, or of the last
        iteration, by ``config.test_on``; `save` and `fit` go on from what was trained.

        Returns:
            The test's result. Without test episodes: the accuracy or loss of the tasks of the last
            hundred iterations, on their query sets while they were trained on.

        Raises:
            ValueError: something that the configuration asks for cannot be done, said before
                training.
            Interrupted: by Ctrl-C, after the iteration was finished and saved; by SIGTERM, after
                which there may be seconds only, and by Ctrl-C before the first iteration of this
                process is finished, within it, where it can be run anew: the state before it is
                saved. Several processes finish the iteration.
            NonFiniteLoss: a loss or meta-gradient is not finite; the state before it was saved.
        """
        self.require_ready()
        self._put_back()
        self._same_random()
        self._since = time.perf_counter()
        self._undo, self._given_up, self._stepped, self._stop = None, None, False, False
        report, found = self._report(), None
        several = self.ranks.several
        notice = self._stopping_together(report) if several else report.stopping
        guard = InterruptGuard(notice, self._can_give_up, once=not several)
        with report, guard, self._own.held():
            started: list[Callback] = []
            try:
                self._bring_best()
                if self._best_is_earlier:
                    self._own.best(self.best.iteration)  # raises before any work is lost
                for one in self.callbacks:
                    one.on_start(self)
                    started.append(one)
                self._train(report, guard)
                tested = self._test(report, guard)
                found = trained(report.lines, self.maml.steps) if tested is None else tested
                return found
            except NonFiniteLoss:
                self.save()
                raise
            except KeyboardInterrupt as error:
                raise self._stopped(error) from None
            finally:
                for one in started:
                    one.on_end(self, found)

    def require_ready(self) -> None:
        """Raise ValueError where the run could not do what it was asked for; `fit` does so, too."""
        config = self.config
        validated = self._validates and config.evaluate_every > 0
        for what, asked in {
            f"patience={config.patience}": config.patience is not None,
            f"best_by={config.best_by!r}": config.best_by is not None,
            "the scheduler ReduceLROnPlateau": self.rates.on_plateau,
        }.items():
            if asked and not validated:
                raise ValueError(
                    f"{what} goes by validations, and there are none: give validation episodes "
                    "and evaluate_every."
                )
        if config.best_by not in {None, *self._scores}:
            raise ValueError(
                f"best_by={config.best_by!r}: it is none of the scores "
                f"{', '.join(sorted(self._scores))}; measure it, too (metrics=), or leave it."
            )
        if config.checkpoint_every:
            try:
                self._require_source(self.folder, self._source_state())
            except ValueError as error:
                raise ValueError(f"{error} Give checkpoint_every=0 to train without.") from None

    def _report(self) -> Report:
        """What the run tells; of several processes only the first one does."""
        own = self._own
        last = self.iteration if own.continued else None
        report: Report = Silent(())
        with self.ranks.together():
            if self.ranks.first:
                config = self.config
                board = "tensorboard" in logger_names(config.loggers)
                self._read_best()  # before it may be moved
                require = own.require if own.continued else None
                report = RunReport(self.folder, last, config.plots, self.screen, board, require)
        own.continued = True  # another `fit` goes on here
        lines = self.ranks.of_first(report.lines)
        return report if self.ranks.first else Silent(lines)

    def _train(self, report: Report, guard: InterruptGuard) -> None:
        """Run the outer loop up to the configured number of iterations."""
        config = self.config
        with report.bar("meta-training", self.iteration, config.iterations) as show:
            if self.iteration == 0 and not report.lines and config.evaluate_every:
                report.stage(show, 0, "first validation: planning and recording")
                line: dict[str, Any] = {"iteration": 0, "seconds": 0.0}
                with self._discardable(draws=False):
                    line |= self._validated()
                self._compare(line)
                report.line(line)
            if self._goes_on():
                self._measure_best_anew(report, show)
                report.stage(show, self.iteration, "first iteration: planning and recording")
            while self._goes_on():
                line = self.step()
                self._stepped = True
                for one in self.callbacks:
                    one.on_iteration(self, line)
                if self._due(config.evaluate_every):
                    line |= self._validated()
                better = self._compare(line)
                report.line(line)
                show(self.iteration, note(line))
                if better or self._due(config.checkpoint_every):
                    self.save()
                self._check(guard)
        self.save()

    def _goes_on(self) -> bool:
        """Whether there is an iteration to come."""
        patience = self.config.patience
        waited = patience is not None and self.best.waited >= patience
        return self.iteration < self.config.iterations and not waited and not self._stop

    def _validated(self) -> dict[str, Any]:
        """The validation, of averaged weights where there are any."""
        with self._averaged():
            return self._validate()

    def _compare(self, line: dict[str, Any]) -> bool:
        """Tell of a validation; whether it is the best so far, of those after an iteration."""
        if "validation" not in line:
            return False
        value, lower = figure(line["validation"], self.config.best_by, self._lower)
        self.rates.require_direction(lower)
        for one in self.callbacks:
            one.on_validation(self, line)
        if self.iteration == 0:
            return False
        self.rates.validated(value)
        return self.best.seen(self.iteration, value, lower, self._measured_by())

    def _measure_best_anew(self, report: Report, show: Callable[..., None]) -> None:
        """Validate the best weights where validations are of something else by now.

        Its old value would be compared with what it cannot be compared with.
        """
        config, best = self.config, self.best
        known = best.value is not None and self._validates and config.evaluate_every
        changed = self.ranks.of_first(best.changes(self._measured_by()) if known else [])
        if not changed:
            return
        report.say(
            f"{'; '.join(changed)}: the best validation so far, after iteration {best.iteration}, "
            "is measured anew."
        )
        with self._discardable(draws=False):
            self._put_weights(best.iteration)
            try:
                found = self._validate()["validation"]
            finally:
                self._put_back()
        best.measured(figure(found, config.best_by, self._lower)[0], self._measured_by())

    def _check(self, guard: InterruptGuard) -> None:
        """Stop where a signal has arrived, or a callback asked for it, in whichever process."""
        received, stop = self.ranks.highest(guard.received or 0, self._stop)
        self._stop = bool(stop)
        if received:
            raise Interrupted(received)

    def _stopping_together(self, report: Report) -> Callable[[str], None]:
        return lambda name: report.say(f"{name}: all processes stop after this iteration.")

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
        if urgent and self._undo is not None and not self.ranks.several:
            self._given_up = number
        return self._given_up is not None

    def _schedule(self) -> None:
        """Set the outer learning rate of this iteration."""
        self.rates.before_step(self.optimizer, self.iteration)

    def _advance(self) -> None:
        """Count an iteration, after the optimizer's step."""
        self.iteration += 1
        self.rates.after_step()
        if self._averages is not None:
            self._averages.update(self.maml, self.iteration)

    def _due(self, every: int) -> bool:
        return bool(every) and (
            self.iteration % every == 0 or self.iteration == self.config.iterations
        )

    @property
    def _best_is_earlier(self) -> bool:
        """Whether the test would be of the file of the best validation."""
        best, asked = self.best, self.config.test_on == "best"
        return asked and best.value is not None and best.iteration != self.iteration

    def _choose_weights(self) -> int:
        """Give the learner the weights to test; the iteration that they are of."""
        return self._put_weights(self.best.iteration if self._best_is_earlier else self.iteration)

    def _put_weights(self, iteration: int) -> int:
        """Give the learner the weights after an iteration: that of the best one, or this one."""
        if iteration != self.iteration:
            self._put(self._own.best(iteration).weights)
        elif self._averages is not None:
            self._put(self._averages.state_dict())
        return iteration

    def _test(self, report: Report, guard: InterruptGuard) -> Evaluation | None:
        title, tested = self.config.full_title, self._choose_weights()
        try:
            with report.bar("final test", 0, self._test_episodes()) as show:

                def after_batch(done: int) -> None:
                    show(done)
                    self._check(guard)

                found = self._tested(after_batch)
        except BaseException:
            self._put_back()
            raise
        if found is None:
            return None
        result = {
            "title": title,
            "test": found.as_dict(),
            "iterations": self.iteration,
            "tested": {"iteration": tested, "on": self._tested_on()},
            "seconds": round(self.seconds, 1),
            "device": describe_device(self.device),
            "versions": versions(),
            "config": self.config.as_dict(),
        }
        if tested != self.iteration:
            report.say(f"Tested: the best validation, after iteration {tested}.")
        with self.ranks.together():
            best = [] if self.best.value is None else [BEST]
            report.finish(found, result, title, [*best, *self._finished(report, found)])
        return found

    def _tested_on(self) -> str:
        """Which weights the final test is of."""
        return "last" if self.best.value is None else self.config.test_on
