"""`given`: tasks whose support and query sets someone else drew, as benchmarks publish them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, final

import torch
from torch import Tensor

from fastmaml.episodes.checks import check_positive
from fastmaml.episodes.class_names import Label
from fastmaml.episodes.column_names import Columns
from fastmaml.episodes.given_tasks import GivenTasks, LabelledRows, PlacedTask
from fastmaml.episodes.tables import Table, read_table
from fastmaml.episodes.text_task import Labels
from fastmaml.episodes.tokens import Cache, Tokens, joined, tokenised


@final
@dataclass(frozen=True)
class GivenTask:
    """One task for `given`: where its support and query set are.

    Attributes:
        name: for reports; several draws of one task have one name.
        support: the examples to adapt to, all of them: a file, a `datasets.Dataset` or
            `DatasetDict`, or a name on the Hugging Face hub, as
            `fastmaml.episodes.tables.read_table` reads them.
        query: the examples to be judged on, likewise.
        classes: as of `text_task`; None: the labels that occur in the support set.
        value_range: as of `text_task`: makes the task a regression.
        rows: of the support data, only the rows with one of these in the column ``split``.
        query_rows: likewise of the query data.
        text: the column of texts, or two of pairs; None for a usual name.
        label: the column of labels; None for a usual name.
    """

    name: str
    support: Any
    query: Any
    _: KW_ONLY
    classes: Sequence[Label] | None = None
    value_range: tuple[float, float] | None = None
    rows: Columns = None
    query_rows: Columns = None
    text: Columns = None
    label: str | None = None


def given(
    tasks: Sequence[GivenTask],
    tokenizer: Any,
    *,
    tasks_per_batch: int = 1,
    shuffle: bool = False,
    max_length: int = 128,
    seed: int = 0,
    device: torch.device | str | None = None,
    cache: Cache = True,
) -> GivenTasks:
    """Episodes of tasks whose support and query sets are given, such as a benchmark's files.

    Nothing is drawn: each support set is adapted to as it is, and each query set is whole, with as
    many examples of each class as it has. Every file is read and tokenised once, also where several
    tasks share it, as the draws of one task do their query set.

    Args:
        tasks: in the order of the first pass.
        tokenizer: of transformers; `fastmaml.integrations.transformers.tokenizer` loads one.
        tasks_per_batch: tasks a meta-batch, at most: only tasks with equally many support, and
            equally many query examples stand in one.
        shuffle: whether every pass has an order of its own, as for meta-training.
        max_length: longer texts are cut to so many tokens.
        seed: of the orders.
        device: where the texts are held and episodes are handed out; None for the CPU.
        cache: where token numbers are kept from one run to the next: a folder, True for
            ``~/.cache/fastmaml/tokens``, or False.

    Raises:
        FileNotFoundError, ConnectionError, ImportError: as `read_table`.
        ValueError: no tasks, a task whose support and query data are the same, draws of one task
            that differ in their classes, or as `text_task`; the message names the task.

    Examples:
        >>> draws = [
        ...     fm.episodes.GivenTask("airline", f"airline_train_{i}_8.json", "airline_eval.json")
        ...     for i in range(10)
        ... ]
        >>> test = fm.episodes.given(draws, tokenizer)
        >>> for episodes in test.once():
        ...     print(episodes.names, maml.evaluate(episodes).accuracies)
    """
    check_positive(tasks_per_batch=tasks_per_batch)
    tasks = list(tasks)
    wrong = next((x for x in tasks if not isinstance(x, GivenTask)), None)
    if wrong is not None or not tasks:
        got = "is empty" if wrong is None else f"holds a {type(wrong).__name__}"
        raise ValueError(f"tasks {got}: give a list of GivenTask(name, support, query).")
    reader = _Reader(tokenizer, max_length, cache)
    found = [reader.task(i, task) for i, task in enumerate(tasks)]
    _check_draws(tasks, found)
    return GivenTasks(
        found,
        joined(reader.tokens),
        tasks_per_batch=tasks_per_batch,
        shuffle=shuffle,
        seed=seed,
        device=device,
    )


@final
class _Reader:
    """Reads and tokenises every table once.

    Args:
        tokenizer, max_length, cache: as of `given`.

    Attributes:
        tokens: of the tables so far, whose rows are numbered through.
    """

    def __init__(self, tokenizer: Any, max_length: int, cache: Cache) -> None:
        self._how = tokenizer, max_length, cache
        self._known: dict[Any, tuple[Table, Tensor]] = {}
        self.tokens: list[Tokens] = []

    def task(self, number: int, task: GivenTask) -> PlacedTask:
        """The sets of a task, its texts among `tokens`."""
        keys = _key(task.support, task.rows), _key(task.query, task.query_rows)
        try:
            if keys[0] == keys[1]:
                raise ValueError(
                    f"support and query are both {task.support!r}: it would be judged on what it "
                    "adapts to. Give two files, or rows= and query_rows=."
                )
            support, rows = self._table(task, task.support, task.rows)
            query, query_rows = self._table(task, task.query, task.query_rows)
            labels = Labels.of(task.name, support, task.classes, task.value_range)
            one = LabelledRows(rows, labels.tensor(support))
            other = LabelledRows(query_rows, labels.tensor(query))
        except ValueError as error:
            raise ValueError(f"task {number} ({task.name!r}): {error}") from error
        return PlacedTask(task.name, labels, one, other)

    def _table(self, task: GivenTask, data: Any, rows: Columns) -> tuple[Table, Tensor]:
        key = *_key(data, rows), _plain(task.text), task.label
        if key not in self._known:
            table = read_table(data, text=task.text, label=task.label, rows=rows)
            first = sum(map(len, self.tokens))
            self.tokens.append(tokenised(table, *self._how))
            self._known[key] = table, torch.arange(first, first + len(table))
        return self._known[key]


def _key(data: Any, rows: Columns) -> tuple[Any, Any]:
    """Alike for the same rows of the same data."""
    return str(data) if isinstance(data, str | os.PathLike) else id(data), _plain(rows)


def _plain(columns: Columns) -> Any:
    return columns if columns is None or isinstance(columns, str) else tuple(columns)


def _check_draws(tasks: Sequence[GivenTask], found: Sequence[PlacedTask]) -> None:
    """Raise ValueError where tasks of one name are not told by the same classes."""
    first: dict[str, int] = {}
    for i, task in enumerate(found):
        j = first.setdefault(task.name, i)
        one, other = found[j].labels, task.labels
        given = tasks[i].classes is not None and tasks[j].classes is not None
        same = one.classes == other.classes if given else one.same_names(other)
        if not same or one.value_range != other.value_range:
            raise ValueError(
                f"tasks {j} and {i} are both called {task.name!r}, but one has {one.about()} and "
                f"the other {other.about()}: results of one name are averaged. Give all draws of a "
                "task its classes= (or its value_range=), and other tasks other names."
            )
