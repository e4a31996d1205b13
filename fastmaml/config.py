"""The configuration: one frozen dataclass for the flags, the TOML file and the checkpoint."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Config = TypeVar("Config", bound="LoopConfig")

_LEAST = {
    **dict.fromkeys(("iterations", "validation_episodes", "test_episodes", "eval_steps"), 1),
    **dict.fromkeys(("ways", "shots", "queries", "tasks", "filters"), 1),
    **dict.fromkeys(("inner_steps", "segments", "last", "tasks_chunk", "threads"), 1),
    **dict.fromkeys(("evaluate_every", "checkpoint_every", "seed", "validation_alphabets"), 0),
    **dict.fromkeys(("first_order_until", "multi_step_until"), 0),
    **dict.fromkeys(("inner_lr", "inner_momentum", "weight_decay"), 0),
}
"""The smallest value that a number may have."""

_POSITIVE = {"meta_lr", "clip"}

_FREE_ON_RESUME = {
    *("iterations", "evaluate_every", "checkpoint_every", "validation_episodes", "test_episodes"),
    *("eval_steps", "out", "plots", "threads", "root", "download"),
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
            _check(field.name, getattr(self, field.name), hints[field.name])

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
        unknown = [_did_you_mean(key, names) for key in values if key not in names]
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


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LoopConfig):
    """A whole run of `fastmaml train`: data, model, inner loop and outer loop.

    Raises:
        ValueError: a value of the wrong type or out of range.
    """

    data: Literal["digits", "omniglot", "sinusoid"] = "digits"
    """Data set."""
    root: str | None = None
    """Folder with the data set's files (Omniglot only)."""
    download: bool = True
    """Fetch missing files of the data set."""
    protocol: Literal["alphabets", "random"] = "alphabets"
    """Omniglot's test classes: the evaluation alphabets, or 423 characters at random."""
    validation_alphabets: int = 5
    """Omniglot's background alphabets that are validated on in place of trained on."""
    ways: int = 5
    """Classes an episode (not used for regression)."""
    shots: int = 1
    """Support examples a class."""
    queries: int = 5
    """Query examples a class."""
    tasks: int = 16
    """Episodes a meta-batch."""
    filters: int = 64
    """Channels of each convolution; hidden units of the sinusoid's network."""
    pool: Literal["stride", "max"] = "stride"
    """How the convolutional network shrinks the image."""
    inner_lr: float = 0.4
    """Learning rate of the inner loop (what learned rates start from)."""
    inner_steps: int = 1
    """Inner steps a task."""
    rule: Literal["sgd", "momentum", "adam", "meta-sgd", "lslr"] = "sgd"
    """How parameters move in the inner loop; meta-sgd and lslr learn their rates."""
    inner_momentum: float = 0.9
    """Momentum of the rule of that name."""
    gradient: Literal[
        "auto", "unrolled", "checkpointed", "mixed-mode", "first-order", "truncated", "reptile"
    ] = "auto"
    """How the inner loop is differentiated (auto: the best exact method)."""
    segments: int | None = None
    """Parts in which checkpointed and mixed-mode keep the inner loop (none: every step)."""
    last: int = 1
    """Inner steps that truncated differentiates."""
    scope: str = "all"
    """What adapts: all, head, body, or a pattern of parameter names."""
    tasks_chunk: int | None = None
    """Tasks computed at once (none: as many as fit)."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of model and data."""
    threads: int | None = None
    """CPU threads (none: PyTorch's default)."""
    seed: int = 0
    """Seed of initialization, episodes and dropout."""

    @property
    def title(self) -> str:
        """Such as "digits, 5-way 1-shot"."""
        task = "regression" if self.data == "sinusoid" else f"{self.ways}-way"
        return f"{self.data}, {task} {self.shots}-shot"


def read_toml(path: Path) -> dict[str, Any]:
    """The keys and values of a TOML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not TOML.
    """
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"--config {path}: there is no such file. Give the path of a TOML file "
            "with lines such as `ways = 5`."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}.") from None


def _did_you_mean(key: str, names: list[str]) -> str:
    nearest = difflib.get_close_matches(key.replace("-", "_"), names, n=1, cutoff=0.5)
    return f"{key!r} (did you mean {nearest[0]!r}?)" if nearest else f"{key!r}"


def _check(name: str, value: Any, hint: Any) -> None:
    """Raise ValueError unless `value` is of the field's type and in its range."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{name}={value!r}: choose one of {', '.join(get_args(hint))}.")
        return
    kinds = tuple(get_origin(kind) or kind for kind in get_args(hint) or (hint,))
    if value is None and type(None) in kinds:
        return
    if not _is_one_of(value, kinds):
        wanted = " or ".join("none" if k is type(None) else k.__name__ for k in kinds)
        raise ValueError(f"{name}={value!r} is a {type(value).__name__}; give a {wanted}.")
    if isinstance(value, str):
        return
    if not math.isfinite(value):
        raise ValueError(f"{name}={value!r}: give a finite number.")
    if name in _POSITIVE and value <= 0:
        raise ValueError(f"{name}={value!r}: give a positive number.")
    if value < _LEAST.get(name, value):
        raise ValueError(f"{name}={value!r}: give at least {_LEAST[name]}.")


def _is_one_of(value: Any, kinds: tuple[type, ...]) -> bool:
    """Whether `value` has one of the types; an int does for a float, a bool for neither."""
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (float in kinds and isinstance(value, int))
