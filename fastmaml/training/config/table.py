"""The configuration of runs on a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastmaml.training.config.run import RunConfig

WRITTEN = ("shots", "queries", "test_tasks", "validation_tasks", "hidden_layers")
"""Settings that are texts, as each may be more than a number, and are given as numbers, too."""


@dataclass(frozen=True, kw_only=True)
class TableConfig(RunConfig):
    """A whole run on a table whose rows belong to tasks, such as users, shops or patients.

    Raises:
        ValueError: a value of the wrong type or out of range.
    """

    dataset: Literal["table"] = "table"
    """Data set."""
    data: str = ""
    """The table: a .csv, .tsv, .jsonl, .json or .parquet file. Has to be given."""
    task: str = "task"
    """Column that tells tasks apart."""
    target: str = "target"
    """Column to predict, or several divided by commas."""
    inputs: str | None = None
    """Columns that the model sees, divided by commas (none: all others)."""
    kind: Literal["auto", "regression", "classification", "multi-label"] = "auto"
    """What the target is (auto: texts are classes, numbers are numbers)."""
    labels: Literal["table", "task"] = "table"
    """Classes mean the same in all tasks, or each task numbers its own."""
    categorical: str = ""
    """Columns of numbers that are names of categories, divided by commas."""
    shots: str = "0.5"
    """Support rows of a task: a number, a share of its rows, or two numbers such as 5-20."""
    queries: str = "rest"
    """Query rows of a task: a number, or rest."""
    unequal: Literal["mask", "buckets"] = "mask"
    """Tasks of different sizes are filled up, or tasks of like sizes go together."""
    missing: Literal["error", "drop"] = "error"
    """What to do with rows that lack a value."""
    small: Literal["error", "drop"] = "error"
    """What to do with tasks that have too few rows."""
    scale: bool = True
    """Scale numbers by the mean and deviation of the training tasks."""
    test_tasks: str = "0.15"
    """Tasks held out for the test: a share, how many, or names divided by commas."""
    validation_tasks: str = "0.15"
    """Likewise for validation."""
    tasks_seed: int = 0
    """Of which tasks are held out."""
    split_column: str | None = None
    """Column that says train, validation or test of every row, in place of these three."""
    hidden_layers: str = "64,64"
    """Units of the network's hidden layers, divided by commas."""
    metrics: str | None = None
    """What else is measured, divided by commas, such as rmse,pearson or f1 (none: rmse, if any)."""

    def __post_init__(self) -> None:
        """As of any run; ``shots = 3`` of a TOML file is "3"."""
        for name in WRITTEN:
            value = getattr(self, name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                object.__setattr__(self, name, str(value))
        super().__post_init__()

    @property
    def title(self) -> str:
        """Such as "table users.csv, score by user"."""
        return f"table {Path(self.data).name}, {self.target} by {self.task}"
