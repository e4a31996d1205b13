"""Checks of a configuration's values, and the names that were meant."""

from __future__ import annotations

import difflib
import math
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

if TYPE_CHECKING:
    from fastmaml.training.config.loop import LoopConfig

LEAST = {
    **dict.fromkeys(("iterations", "validation_episodes", "test_episodes", "eval_steps"), 1),
    **dict.fromkeys(("ways", "shots", "queries", "tasks", "filters", "outputs"), 1),
    **dict.fromkeys(("support", "query", "test_query", "max_length", "lora_rank", "limit"), 1),
    **dict.fromkeys(("inner_steps", "segments", "last", "tasks_chunk", "threads"), 1),
    **dict.fromkeys(("evaluate_every", "checkpoint_every", "seed", "validation_alphabets"), 0),
    **dict.fromkeys(("first_order_until", "multi_step_until", "warmup", "ema"), 0),
    **dict.fromkeys(("accumulate", "patience", "step_every"), 1),
    **dict.fromkeys(("inner_lr", "inner_momentum", "proximal", "weight_decay", "dropout"), 0),
    **dict.fromkeys(("validation_classes", "test_classes", "classes_seed", "tasks_seed"), 0),
    **dict.fromkeys(("size", "channels"), 1),
    "splits_seed": 0,
    **dict.fromkeys(("trajectories", "horizon", "hidden", "epochs", "test_trajectories"), 1),
    **dict.fromkeys(("discount", "trace", "inner_kl", "inner_decay"), 0),
}
"""The smallest value that a number may have."""

POSITIVE = {
    "meta_lr",
    "step_factor",
    "clip",
    "prototype_scale",
    "deviation",
    "ratio_clip",
    "max_kl",
}


LOGGERS = ("tensorboard", "wandb", "mlflow")


def check_loop(config: LoopConfig) -> None:
    """Raise a ValueError where settings of the outer loop do not go together."""
    if config.warmup and config.warmup >= config.iterations:
        raise ValueError(
            f"warmup={config.warmup} with iterations={config.iterations}: give fewer than those."
        )
    if (config.schedule == "step") != (config.step_every is not None):
        raise ValueError(
            f"step_every={config.step_every!r} with schedule={config.schedule!r}: schedule='step' "
            "needs step_every, and other schedules have none."
        )
    if config.ema >= 1:
        raise ValueError(f"ema={config.ema!r}: give less than 1, such as 0.999, or 0 for none.")
    if config.patience is not None and not config.evaluate_every:
        raise ValueError(
            f"patience={config.patience} with evaluate_every=0: nothing is validated that could "
            "be better. Give evaluate_every, or leave patience."
        )
    if config.name is not None and (not config.name or set(config.name) & set("/\\\0")):
        raise ValueError(
            f"name={config.name!r}: give a name without slashes; out= is for the folder."
        )
    for name in logger_names(config.loggers):
        if name not in LOGGERS:
            raise ValueError(
                f"loggers={config.loggers!r} has {did_you_mean(name, list(LOGGERS))}: "
                f"there are {', '.join(LOGGERS)}."
            )


def logger_names(loggers: str | None) -> list[str]:
    """What commas divide."""
    return [name.strip() for name in (loggers or "").split(",") if name.strip()]


def did_you_mean(key: str, names: list[str]) -> str:
    """`key` in quotes, with the nearest of `names` where there is one."""
    nearest = difflib.get_close_matches(key.replace("-", "_"), names, n=1, cutoff=0.5)
    return f"{key!r} (did you mean {nearest[0]!r}?)" if nearest else f"{key!r}"


def check(name: str, value: Any, hint: Any) -> None:
    """Raise a ValueError unless `value` is of the field's type and in its range."""
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
    if name in POSITIVE and value <= 0:
        raise ValueError(f"{name}={value!r}: give a positive number.")
    if value < LEAST.get(name, value):
        raise ValueError(f"{name}={value!r}: give at least {LEAST[name]}.")


def _is_one_of(value: Any, kinds: tuple[type, ...]) -> bool:
    """Whether `value` has one of the types; an int does for a float, a bool for neither."""
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (float in kinds and isinstance(value, int))
