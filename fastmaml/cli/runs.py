"""Runs that `fastmaml train` left: their checkpoint, configuration and weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmaml._files import same_place
from fastmaml.integrations.quantized.state import load_learned
from fastmaml.training.config import RunConfig
from fastmaml.training.presets import PRESETS


def checkpoint_in(path: Path, otherwise: str = "") -> Path:
    """The checkpoint itself, where a run's folder was given.

    Args:
        path: of either.
        otherwise: what else can be done where there is none, for the error.

    Raises:
        FileNotFoundError: there is none.
    """
    from fastmaml.training.run_folder import CHECKPOINT

    found = path / CHECKPOINT if path.is_dir() else path
    if not found.is_file():
        raise FileNotFoundError(
            f"there is no checkpoint {found}. Give the folder of a run of `fastmaml train`, or a "
            f".safetensors file that it wrote{otherwise}."
        )
    return found


def tested_in(path: Path) -> Path:
    """The checkpoint itself, or of a run's folder that with the weights which its test is of.

    Args:
        path: of either.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or the best one is of another run.
    """
    from fastmaml.training import checkpoint
    from fastmaml.training.own_folder import best_in
    from fastmaml.training.run_folder import BEST

    last = checkpoint_in(path)
    if not path.is_dir():
        return last
    saved = checkpoint.load(last)
    best = saved.state.get("best", {"value": None})
    on_best = saved.config.get("test_on") == "best" and best["value"] is not None
    if not on_best or best["iteration"] == saved.iteration:
        return last
    best_in(path, best["iteration"], saved.run)
    return path / BEST


def is_moved(before: str | None, now: str | None) -> bool:
    """Whether other data is named, and not the same in other words.

    Args:
        before: where the run's data was.
        now: where it is now.
    """
    if before is None or now is None:
        return before != now
    return not same_place(Path(before), Path(now))


def config_of(path: Path, saved: Mapping[str, Any]) -> RunConfig:
    """The configuration that a checkpoint holds.

    Raises:
        ValueError: it is of a `MetaTrainer`'s own program.
    """
    if saved.get("dataset") not in PRESETS:
        raise ValueError(
            f"{path} was not written by `fastmaml train`, so its model and episodes are unknown "
            "here: use MetaTrainer.resume in the program that made it."
        )
    return PRESETS[saved["dataset"]].updated(saved, str(path))


def load_into(maml: Any, state: Mapping[str, Any], path: Path) -> None:
    """Give a `MAML` the weights of a checkpoint.

    Raises:
        ValueError: they do not fit.
    """
    try:
        load_learned(maml, state)
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {path} do not fit the model: {error}. Leave out of --change what the "
            "model is made by."
        ) from error
