"""The configurations of runs with a pretrained language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastmaml.training.config.run import RunConfig


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(RunConfig):
    """What all runs with a language model have."""

    model: str = "bert-base-uncased"
    """Pretrained model: a folder, or a name on the Hugging Face hub."""
    scope: str = "all"
    """What adapts: all, head, body, last-N (layers), bias, lora, or a pattern of names."""
    lora_rank: int = 8
    """Rank of the adapters of the scope lora; all else but the head is then frozen."""
    dropout: float | None = 0.0
    """Every dropout probability of the model (none: as it was pretrained with)."""
    max_length: int = 128
    """Longer texts are cut to so many tokens."""
    cache: str | None = None
    """Folder where token numbers are kept (none: ~/.cache/fastmaml/tokens)."""
    metrics: str | None = None
    """What else is measured, divided by commas, such as f1,matthews (none: accuracy alone)."""


@dataclass(frozen=True, kw_only=True)
class TextConfig(LanguageConfig):
    """What all runs with a classifier of texts have."""

    pooling: Literal["model", "mean"] = "model"
    """What the head sees: what the model's own classifier does, or the mean over the tokens."""
    head: Literal["shared", "zero", "prototype"] = "shared"
    """The last layer: one for all tasks, or each task's own, from zero or from class means."""
    prototype_scale: float = 1.0
    """Of the squared distances of a prototype head; smaller is softer."""


@dataclass(frozen=True, kw_only=True)
class IntentsConfig(TextConfig):
    """A whole run on labelled texts with many classes, such as intents.

    Raises:
        ValueError: a value of the wrong type or out of range.
    """

    dataset: Literal["intents"] = "intents"
    """Data set."""
    data: str = "clinc/clinc_oos:plus"
    """Texts with labels: a .jsonl, .csv, .tsv or .parquet file, or a name on the hub."""
    test_data: str | None = None
    """Another such data set, all of whose classes are tested on, too."""
    leave_out: str = "oos"
    """Labels that are no classes, divided by commas."""
    rows: str | None = None
    """Only the rows with one of these in the column `split`, divided by commas (none: all)."""
    text: str | None = None
    """Column of texts, or two divided by a comma (none: a usual name)."""
    label: str | None = None
    """Column of labels (none: a usual name)."""
    test_rows: str | None = None
    """As --rows, of --test-data (none: as --rows; "": all)."""
    test_text: str | None = None
    """As --text, of --test-data (none: as --text; "": a usual name)."""
    test_label: str | None = None
    """As --label, of --test-data (none: as --label; "": a usual name)."""
    test_classes: int = 50
    """Classes of --data that are held out for the test (0: only --test-data is tested on)."""
    validation_classes: int = 0
    """Classes that are held out for validation."""
    classes_seed: int = 0
    """Of the order in which classes are held out."""
    ways: int = 5
    """Classes an episode."""
    shots: int = 1
    """Support examples a class."""
    queries: int = 5
    """Query examples a class."""

    @property
    def title(self) -> str:
        """Such as "intents, 5-way 1-shot"."""
        return f"intents, {self.ways}-way {self.shots}-shot"


@dataclass(frozen=True, kw_only=True)
class GlueConfig(TextConfig):
    """A whole run on tasks of GLUE.

    Raises:
        ValueError: a value of the wrong type or out of range.
    """

    dataset: Literal["glue"] = "glue"
    """Data set."""
    data: str | None = None
    """Folder with files such as SST-2.train.jsonl.gz (none: FASTMAML_DATA, else the hub)."""
    train: str = "sst2,qnli,mnli,qqp"
    """Tasks to meta-train on, divided by commas; their development rows are for validation."""
    test: str = "mrpc,rte,cola"
    """Tasks that are held out for the test: adapted to from their training rows."""
    support: int = 16
    """Support examples a task, evenly over its classes."""
    query: int = 16
    """Query examples a task."""
    test_query: int = 64
    """Query examples of a task in validation and test, from its development rows."""
    sampling: Literal["uniform", "proportional", "sqrt"] = "uniform"
    """How often each task is drawn: alike, by its size, or by the square root of it."""
    balance: Literal["both", "support", "none"] = "both"
    """Which sets have as many examples of each class."""
    metrics: str | None = None
    """What else is measured, divided by commas, such as f1,loss (none: GLUE's own of each task)."""

    @property
    def title(self) -> str:
        """Such as "glue, sst2,qnli to rte, 16 examples"."""
        return f"glue, {self.train} to {self.test}, {self.support} examples"
