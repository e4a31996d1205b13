"""`LoopConfig`: the outer loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_type_hints

from fastmaml.training.config.checks import check, did_you_mean

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
}
"""What may change when a run is resumed, as the parameters do not depend on it."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """The outer loop: all that `MetaTrainer` needs besides a model and episodes."""

    iterations: int = 1000
    """Meta-steps, one meta-batch each."""
    meta_lr: float = 1e-3
    """Learning rate of the outer loop."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimizer of the outer loop (sgd has momentum 0.9)."""
    weight_decay: float = 0.0
    """Weight decay of the outer optimizer."""
    schedule: Literal["constant", "cosine"] = "constant"
    """How the outer learning rate goes: constant, or down to zero along a cosine."""
    clip: float | None = None
    """Largest norm of the meta-gradient (none: not clipped)."""
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
    test_episodes: int = 600
    """Episodes of the final test."""
    checkpoint_every: int = 100
    """Iterations between checkpoints (0: only at the end and when interrupted)."""
    out: str = "runs/run"
    """Folder for checkpoint, metrics and plots."""
    plots: bool = True
    """Write TensorBoard files and a PNG with the curves."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            check(field.name, getattr(self, field.name), hints[field.name])

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
        free = _FREE_ON_RESUME - ({"iterations"} if self.schedule == "cosine" else set())
        mine = self.as_dict()
        return [
            f"{name} is {mine.get(name, 'absent')!r} now and {saved.get(name, 'absent')!r} there"
            for name in [*mine, *(key for key in saved if key not in mine)]
            if name not in free and mine.get(name, ...) != saved.get(name, ...)
        ]
