"""`LoopState`: all that an outer loop needs to go on where it was, and to undo an iteration."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from fastmaml._files import write_whole
from fastmaml.integrations.quantized.state import learned_state, load_learned
from fastmaml.maml import MAML
from fastmaml.training import checkpoint
from fastmaml.training.averages import Averages
from fastmaml.training.best import Best
from fastmaml.training.callbacks import Callback
from fastmaml.training.checkpoint import Checkpoint
from fastmaml.training.config import LoopConfig
from fastmaml.training.loggers import loggers_of
from fastmaml.training.own_folder import OwnFolder, best_beside
from fastmaml.training.ranks import Ranks
from fastmaml.training.rates import Rates, Scheduler
from fastmaml.training.run_folder import BEST, CHECKPOINT
from fastmaml.training.source_states import data_of, has_changed


class LoopState(ABC):
    """Checkpoints of a run: `save` and `resume`.

    Args:
        maml: what is trained.
        config: of the outer loop; it is kept in the checkpoint, which only the same can resume.
        optimizer: of ``maml.parameters()``; None for the one that `config` describes.
        scheduler: of its learning rate; None for the one that `config` describes.
        callbacks: what is told how the run goes, besides the loggers that `config` names.
    """

    def __init__(
        self,
        maml: MAML,
        config: LoopConfig,
        optimizer: Optimizer | None,
        scheduler: Scheduler | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.maml, self.config = maml, config
        self.optimizer = _optimizer(maml, config) if optimizer is None else optimizer
        self.rates = Rates(config, self.optimizer, scheduler)
        self.device = next(maml.parameters()).device
        self.ranks = Ranks.here(self.device)
        self.ranks.share(maml)
        self.callbacks = [*callbacks, *(loggers_of(config) if self.ranks.first else ())]
        self.folder = config.folder
        self.iteration = 0
        self.best = Best(config.best_by)
        self._averages = Averages(maml, config.ema) if config.ema else None
        self._aside: dict[str, Tensor] | None = None
        self._best_from: Path | None = None
        self._brought: bytes | None = None
        self._own = OwnFolder(self.folder, self.ranks.of_first(uuid.uuid4().hex))
        self._undo: Callable[[], None] | None = None
        self._seconds, self._since = 0.0, time.perf_counter()

    @abstractmethod
    def _source_state(self) -> Any:
        """Where what is trained on stands; None where that cannot be said."""

    @abstractmethod
    def _load_source(self, state: Any) -> None:
        """Let it go on from there."""

    @abstractmethod
    def _require_source(self, path: Path, state: Any) -> None:
        """Raise ValueError where it cannot go on from there."""

    @abstractmethod
    def _held_out(self) -> dict[str, Any]:
        """Where validation and test begin, by name, as far as that can be said."""

    def _measured_by(self, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What the figures of a validation hang on, besides the weights.

        Args:
            config: of a checkpoint, for what it tells; None for all that is known of this run.
        """
        values = self.config.as_dict() if config is None else config
        found = {x: values[x] for x in ("validation_episodes", "eval_steps") if x in values}
        if found.get("eval_steps", 0) is None:
            found["eval_steps"] = self.maml.steps
        return found

    @property
    def seconds(self) -> float:
        """Seconds spent so far, of the resumed run too."""
        return self._seconds + time.perf_counter() - self._since

    def save(self, path: Path | None = None) -> None:
        """Write a checkpoint; where several processes train together, the first one does.

        Args:
            path: of the file; None for ``last.safetensors`` in the run's folder, and
                ``best.safetensors``, too, where the last validation was the best.

        Raises:
            RunFolderError: another run is training into the run's folder, or has written there.
        """
        self._put_back()
        paths = [path or self.folder / CHECKPOINT]
        if path is None and self.best.value is not None and self.best.iteration == self.iteration:
            paths.append(self.folder / BEST)  # the last: what it names as best is itself, or there
        state = {
            "maml": learned_state(self.maml),
            "optimizer": self.optimizer.state_dict(),
            "episodes": self._source_state(),
            "random": _random_state(self.device),
            "device": self.device.type,
            "seconds": self.seconds,
            "scheduler": self.rates.state_dict(),
            "averages": {} if self._averages is None else self._averages.state_dict(),
            "best": self.best.state_dict(),
            "held_out": {name: data_of(state) for name, state in self._held_out().items()},
            "callbacks": [[type(x).__name__, x.state_dict()] for x in self.callbacks],
        }
        saved = Checkpoint(self.config.as_dict(), self.iteration, state, self._own.run)
        with self.ranks.together():
            if self.ranks.first:
                with self._own.writing(paths[0]):
                    for one in paths:
                        checkpoint.save(one, saved)

    def resume(self, path: Path) -> None:
        """Take the state of a checkpoint; `fit` then goes on from there.

        Args:
            path: of the file; the run's ``best.safetensors`` lies beside it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a damaged file, or one of another configuration or kind of device.
        """
        saved = checkpoint.load(path)
        self._check_resumable(path, saved)
        best = best_beside(path, saved)
        state = saved.state
        source = self._source_state()
        self._load_source(state["episodes"])  # first, as it may be that of other data
        try:
            self._check_held_out(path, state.get("held_out", {}))
        except ValueError:
            self._load_source(source)
            raise
        load_learned(self.maml, state["maml"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._load_random(state["random"])
        self.rates.load_state_dict(state.get("scheduler"))
        if self._averages is not None:
            self._averages.load_state_dict(state["averages"])
        if "best" in state:
            self.best = self._best_of(saved)
        self._load_callbacks(state.get("callbacks", []))
        self._best_from = best
        self._aside = None
        self.iteration, self._seconds = saved.iteration, state["seconds"]
        self._since = time.perf_counter()
        self._own.resumed(path, saved.run)

    def _check_held_out(self, path: Path, saved: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Raise ValueError where what is validated or tested on is other data by now."""
        now = self._held_out()
        for name, then in saved.items():
            if has_changed(then, data_of(now.get(name))):
                raise ValueError(
                    f"{path} cannot be resumed: the data of the {name} episodes has changed since "
                    "it was saved (examples, classes, splits or their size): restore it, or train "
                    "anew."
                )

    def _best_of(self, saved: Checkpoint) -> Best:
        """The best validation that a checkpoint tells of."""
        found = Best(self.config.best_by)
        if "best" in saved.state:
            found.load_state_dict(saved.state["best"])
            found.measured_by = found.measured_by or self._measured_by(saved.config)
        return found

    def _load_callbacks(self, states: list[Any]) -> None:
        """Each gets the first state of its kind that none before it got."""
        rest = list(states)
        for one in self.callbacks:
            mine = next((x for x in rest if x[0] == type(one).__name__), None)
            if mine is not None:
                rest.remove(mine)
                one.load_state_dict(mine[1])

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
        self.rates.require(path, saved.state.get("scheduler"))
        self._require_source(path, saved.state["episodes"])
        changed = self._best_of(saved).changes(self._measured_by())
        if changed and self.rates.on_plateau:
            raise ValueError(
                f"{path}: {'; '.join(changed)}, and ReduceLROnPlateau would compare what cannot be "
                "compared: validate as before, or give another scheduler and train anew."
            )

    def _read_best(self) -> None:
        """Read the best checkpoint of a run that is resumed from elsewhere."""
        source, own = self._best_from, self.folder / BEST
        here = self._own.continued and own.exists()
        if source is not None and not (here and source.samefile(own)):
            self._brought = source.read_bytes()
        self._best_from = None

    def _bring_best(self) -> None:
        """Write it to this run's folder."""
        with self.ranks.together():
            if self._brought is not None:
                write_whole(self.folder / BEST, self._brought)
        self._brought = None

    def _put(self, weights: dict[str, Any]) -> None:
        """Give the learner these weights, and keep what is trained."""
        self._put_back()
        own = self.maml.state_dict()
        given = {name: x for name, x in weights.items() if isinstance(x, Tensor)}
        self._aside = {name: own[name].clone() for name in given}
        _copy(own, given)

    def _put_back(self) -> None:
        """Give the learner what is trained again."""
        if self._aside is not None:
            _copy(self.maml.state_dict(), self._aside)
            self._aside = None

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the learner has the averages of its weights, where there are any."""
        if self._averages is not None:
            self._put(self._averages.state_dict())
        try:
            yield
        finally:
            self._put_back()

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

    def _same_random(self) -> None:
        """Give all processes the first one's random state."""
        if self.ranks.several:
            self._load_random(self.ranks.of_first(_random_state(self.device)))

    def _load_random(self, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)


def _copy(own: dict[str, Any], given: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, x in given.items():
            own[name].copy_(x)


def _optimizer(maml: MAML, config: LoopConfig) -> Optimizer:
    parameters, decay = maml.parameters(), config.weight_decay
    if config.optimizer == "sgd":
        return SGD(parameters, config.meta_lr, momentum=0.9, weight_decay=decay)
    kind = {"adam": Adam, "adamw": AdamW}[config.optimizer]
    return kind(parameters, config.meta_lr, weight_decay=decay)


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state
