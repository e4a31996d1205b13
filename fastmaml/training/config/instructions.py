"""The configuration of runs on prompts and answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastmaml.training.config.text import LanguageConfig


@dataclass(frozen=True, kw_only=True)
class InstructionsConfig(LanguageConfig):
    """A whole run of a model that generates, on tasks of prompts and answers.

    Raises:
        ValueError: a value of the wrong type or out of range.
    """

    dataset: Literal["instructions"] = "instructions"
    """Data set."""
    base: Literal["full", "bfloat16", "int8"] = "full"
    """The frozen weights under the adapters of the scope lora: as --dtype, or in fewer bits."""
    data: str = ""
    """Prompts and answers: a file, a folder of files, or a name on the hub. Has to be given."""
    test_data: str | None = None
    """Other such data, all of whose tasks are tested on, too."""
    prompt: str | None = None
    """Column of prompts or messages, or a template: "{premise} So {hypothesis}?" (none: usual)."""
    answer: str | None = None
    """Column of answers, or a template (none: a usual name)."""
    options: str | None = None
    """Column of the texts to choose from, or these divided by | for all rows (none: usual)."""
    task: str | None = None
    """Column that tells tasks apart (none: a usual name, or else each file is a task)."""
    rows: str | None = None
    """Only the rows with one of these in the column `split`, divided by commas (none: all)."""
    query_rows: str | None = None
    """Likewise for query sets (none: they are drawn from the same rows as support sets)."""
    header: str | None = None
    """Names of the columns of files that have none, divided by commas, such as input,output."""
    limit: int | None = None
    """No more rows than this of each file or data set (none: all)."""
    leave_out: str = ""
    """Tasks that are not used, divided by commas."""
    test_tasks: str = "0"
    """Tasks of --data that are held out for the test: how many, or names divided by commas."""
    validation_tasks: str = "0"
    """Likewise for validation."""
    tasks_seed: int = 0
    """Of the order in which tasks are held out."""
    support: int = 8
    """Support examples a task."""
    query: int = 8
    """Query examples a task."""
    test_query: int = 16
    """Query examples a task in validation and test."""
    choose: bool = False
    """Validate and test by choosing the likeliest of each example's options."""
    separator: str = " "
    """Between prompt and answer."""
    chat: bool = False
    """Put prompts into the tokenizer's chat template, as messages always are."""
    sampling: Literal["uniform", "proportional", "sqrt"] = "uniform"
    """How often each task is drawn: alike, by its size, or by the square root of it."""

    metrics: str | None = None
    """What is measured besides the loss (none: exact_match,perplexity; with --choose: option)."""

    @property
    def title(self) -> str:
        """Such as "instructions, tasks.jsonl, 8 examples"."""
        return f"instructions, {Path(self.data).name}, {self.support} examples"
