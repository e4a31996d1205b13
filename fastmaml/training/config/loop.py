"""`LoopConfig`: the outer loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from fastmaml.training.config.checks import check, check_loop, did_you_mean

Config = TypeVar("Config", bound="LoopConfig")


def annealed(iterations: int) -> dict[str, Any]:
    """MAML++'s settings of the outer loop, for so many iterations.

    Its authors' Omniglot runs have 100 epochs: 10 with the multi-step loss, 50 of first order.
    """
    return {
        "schedule": "cosine",
        "multi_step_until": iterations // 10,
        "first_order_until": iterations // 2,
    }


_FREE_ON_RESUME = {
    *("iterations", "evaluate_every", "checkpoint_every", "validation_episodes", "test_episodes"),
    *("eval_steps", "out", "plots", "threads", "root", "download"),
    *("data", "test_data", "test", "test_query", "cache", "test_trajectories", "metrics"),
    *("name", "loggers", "test_on", "patience"),
}
"""What may change when a run is resumed, as the parameters do not depend on it."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """The outer loop: all that `MetaTrainer` needs besides a model and episodes."""

    iterations: int = 1000
    """Steps of the outer optimizer, on one meta-batch each."""
    accumulate: int = 1
    """Meta-batches an iteration, whose tasks count as those of a single larger one."""
    meta_lr: float = 1e-3
    """Learning rate of the outer loop."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimizer of the outer loop (sgd has momentum 0.9)."""
    weight_decay: float = 0.0
    """Weight decay of the outer optimizer."""
    schedule: Literal["constant", "cosine", "linear", "step"] = "constant"
    """How the outer learning rate goes: constant, down to zero, or step_factor in step_every."""
    warmup: int = 0
    """Iterations in which the outer learning rate first rises, from nothing."""
    step_every: int | None = None
    """Iterations between two steps down of the schedule of that name."""
    step_factor: float = 0.1
    """What is left of the learning rate after such a step."""
    clip: float | None = None
    """Largest norm of the meta-gradient (none: not clipped)."""
    ema: float = 0.0
    """What a running average of the weights keeps an iteration, such as 0.999 (0: no average)."""
    autocast: Literal["none", "bfloat16"] = "none"
    """Compute under torch.autocast in this precision; weights stay as they are."""
    first_order_until: int = 0
    """Iterations with first-order gradients before the real ones (MAML++'s annealing)."""
    multi_step_until: int = 0
    """Iterations in which the query loss counts after every inner step (MAML++)."""
    eval_steps: int | None = None
    """Inner steps when evaluating (none: as in training)."""
    evaluate_every: int = 100
    """Iterations between evaluations on the validation classes (0: never)."""
    validation_episodes: int = 100
    """Episodes of each of these evaluations."""
    best_by: str | None = None
    """Score that says which validation is best (none: its accuracy, loss or return)."""
    patience: int | None = None
    """Validations in a row without a better one after which training ends (none: never)."""
    test_on: Literal["best", "last"] = "best"
    """Weights of the final test: those of the best validation, where there is one, or the last."""
    test_episodes: int = 600
    """Episodes of the final test."""
    checkpoint_every: int = 100
    """Iterations between checkpoints (0: at a better validation, the end and when interrupted)."""
    name: str | None = None
    """What the run is called in titles, loggers and its folder (none: by what it trains on)."""
    out: str | None = None
    """Folder for checkpoint, metrics and plots (none: runs/NAME)."""
    plots: bool = True
    """Write TensorBoard files and a PNG with the curves."""
    loggers: str | None = None
    """Where else metrics go, divided by commas: tensorboard, wandb, mlflow."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            check(field.name, getattr(self, field.name), hints[field.name])
        check_loop(self)

    @classmethod
    def mamlpp(cls: type[Config], iterations: int = 1000, **values: Any) -> Config:
        """The outer loop of MAML++ (Antoniou et al., 2019), for an inner loop of `fastmaml.mamlpp`.

        The cosine schedule (here down to 0), the multi-step loss in the first tenth of the
        iterations, and first-order gradients in their first half, as in the paper's 100 epochs.

        Args:
            iterations: meta-steps.
            values: of other fields, also of those three.
        """
        return cls(iterations=iterations, **{**annealed(iterations), **values})

    @property
    def title(self) -> str:
        """What the run is called in tables and plots."""
        return "meta-training"

    @property
    def full_title(self) -> str:
        """The title, after the name where the run has one."""
        return f"{self.name}: {self.title}" if self.name else self.title

    @property
    def folder(self) -> Path:
        """Where the run lies: ``out``, else ``runs/`` and its name or what it trains on."""
        own = self.name or getattr(self, "dataset", None) or "run"
        return Path("runs", own) if self.out is None else Path(self.out)

    def as_dict(self) -> dict[str, Any]:
        """Every field by name, ready for JSON."""
        return dataclasses.asdict(self)

    def updated(self: Config, values: Mapping[str, Any], source: str) -> Config:
        """The same configuration with some values replaced.

        Args:
            values: by field name.
            source: where they come from, for the error.

        Raises:
            ValueError: a name that is no field (the nearest one is given), or a bad value.
        """
        names = [field.name for field in fields(self)]
        unknown = [did_you_mean(key, names) for key in values if key not in names]
        if unknown:
            raise ValueError(f"{source} has unknown keys: {'; '.join(unknown)}.")
        try:
            return dataclasses.replace(self, **values)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None

    def differences(self, saved: Mapping[str, Any]) -> list[str]:
        """What keeps a run with configuration `saved` from being resumed with this one."""
        falls = self.schedule in ("cosine", "linear")
        free = _FREE_ON_RESUME - ({"iterations"} if falls else set())
        mine, usual = self.as_dict(), {field.name: field.default for field in fields(self)}
        found = []
        for name in [*mine, *(key for key in saved if key not in mine)]:
            now, there = mine.get(name, "absent"), saved.get(name, usual.get(name, "absent"))
            if name not in free and now != there:
                found.append(f"{name} is {now!r} now and {there!r} there")
                if name == "iterations":
                    found[-1] += f" (schedule={self.schedule!r} ends with them)"
        return found
