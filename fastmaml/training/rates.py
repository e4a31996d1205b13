"""`Rates`: the outer learning rate, by the configuration or by a scheduler of torch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, final

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from fastmaml.training import checkpoint
from fastmaml.training.config import LoopConfig
from fastmaml.training.schedules import factor

Scheduler = LRScheduler | Callable[[Optimizer], LRScheduler]
"""One of the trainer's optimizer, or what makes one of it."""


@final
class Rates:
    """Sets the outer learning rate of every iteration.

    Args:
        config: of the outer loop.
        optimizer: whose rate it is.
        scheduler: in the place of the configuration's schedule; None for that.

    Raises:
        ValueError: `scheduler` is of another optimizer, or the configuration has a schedule, too,
            or its state cannot be kept.
    """

    def __init__(
        self, config: LoopConfig, optimizer: Optimizer, scheduler: Scheduler | None
    ) -> None:
        self._config = config
        if scheduler is not None and not isinstance(scheduler, LRScheduler):
            scheduler = scheduler(optimizer)
        self._scheduler = scheduler
        if scheduler is None:
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
            return
        if not isinstance(scheduler, LRScheduler):
            raise ValueError(
                f"scheduler made a {type(scheduler).__name__}: give a scheduler of "
                "torch.optim.lr_scheduler, or a function from the optimizer to one."
            )
        if scheduler.optimizer is not optimizer:
            raise ValueError(
                "scheduler is of another optimizer than the trainer's: give that one as "
                "optimizer=, or a function from the optimizer to a scheduler."
            )
        if config.schedule != "constant" or config.warmup:
            raise ValueError(
                f"schedule={config.schedule!r}, warmup={config.warmup} and a scheduler "
                f"({type(scheduler).__name__}): give one of them."
            )
        checkpoint.require_storable(scheduler.state_dict(), "the scheduler's state")

    @property
    def on_plateau(self) -> bool:
        """Whether it waits for validations."""
        return isinstance(self._scheduler, ReduceLROnPlateau)

    def before_step(self, optimizer: Optimizer, iteration: int) -> None:
        """Set the rate of an iteration, as the configuration has it."""
        config = self._config
        if self._scheduler is None and (config.schedule != "constant" or config.warmup):
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor(config, iteration)

    def after_step(self) -> None:
        """Let a scheduler go on."""
        if self._scheduler is not None and not self.on_plateau:
            self._scheduler.step()

    def require_direction(self, lower_is_better: bool) -> None:
        """Raise ValueError where one that waits for validations takes for worse what is better."""
        mode = "min" if lower_is_better else "max"
        if isinstance(self._scheduler, ReduceLROnPlateau) and self._scheduler.mode != mode:
            raise ValueError(
                f"ReduceLROnPlateau(mode={self._scheduler.mode!r}) would lower the rate as "
                f"validations get better: give mode={mode!r}."
            )

    def validated(self, value: float) -> None:
        """Let one that waits for validations see one."""
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(value)

    def state_dict(self) -> dict[str, Any] | None:
        """The kind and state of the scheduler; None without one."""
        if self._scheduler is None:
            return None
        return {"kind": type(self._scheduler).__name__, "state": self._scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on from there."""
        if self._scheduler is not None and state is not None:
            self._scheduler.load_state_dict(state["state"])

    def require(self, path: Path, state: dict[str, Any] | None) -> None:
        """Raise ValueError where a checkpoint was written with another scheduler."""
        own = None if self._scheduler is None else type(self._scheduler).__name__
        there = None if state is None else state["kind"]
        if own != there:
            raise ValueError(
                f"{path} was written with scheduler={there}, and the trainer has {own}: resume "
                "with the same."
            )
