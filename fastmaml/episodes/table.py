"""`table`: tasks of a table's rows, such as users, shops or patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from fastmaml.episodes.checks import check_choice, check_positive
from fastmaml.episodes.held_out import Held
from fastmaml.episodes.table_cells import check_alike, check_plain, cleaned, rows_kept
from fastmaml.episodes.table_columns import chosen, columns_of
from fastmaml.episodes.table_rows import (
    Small,
    check_enough,
    large_enough,
    members_of,
    parts_of,
    split_tasks,
)
from fastmaml.episodes.table_scaling import Categories, Scaling
from fastmaml.episodes.table_sizes import Queries, Shots, Sizes
from fastmaml.episodes.table_source import Table, Unequal
from fastmaml.episodes.table_targets import Kind, Labels
from fastmaml.episodes.table_tensors import WholeTable, fingerprint


def table(
    data: Any,
    *,
    task: str,
    target: str | Sequence[str],
    inputs: str | Sequence[str] | None = None,
    split: str = "train",
    shots: Shots = 0.5,
    queries: Queries = "rest",
    tasks: int = 16,
    kind: Kind | Literal["auto"] = "auto",
    labels: Labels = "table",
    unequal: Unequal = "mask",
    categorical: str | Sequence[str] = (),
    categories: Categories = "one-hot",
    scale: bool | Scaling = True,
    missing: Literal["error", "drop"] = "error",
    small: Small = "error",
    validation_tasks: Held | float = 0.15,
    test_tasks: Held | float = 0.15,
    tasks_seed: int = 0,
    split_column: str | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Table:
    """Tasks of a table: the rows that have the same value in one column are a task.

    Tasks may have different numbers of rows. With ``unequal="mask"``, smaller ones of a meta-batch
    are filled up with rows that do not count, exactly: losses, meta-gradients and accuracies are
    those of each task alone, for the loss `Table.loss` and models in which rows do not see one
    another. (`MAML` refuses BatchNorm; attention over rows, or a mean over them, it cannot know.)
    With ``unequal="buckets"`` nothing is filled up: tasks of like sizes go together, and larger
    ones lend as many of their rows as the smallest of the meta-batch has, others each time.

    Rows of a split's tasks, all of them different, in tensors on `device`:

        ``inputs [tasks, rows, features]``, of `dtype`, or a dict; see `categories`.
        ``targets`` of a regression or of several labels ``[tasks, rows, targets]``, of `dtype`;
        where sets are filled up, a dict of these ``values`` and of ``counts``, bool
        ``[tasks, rows]``. Of classes int64 ``[tasks, rows]``, -100 where a row does not count.

    Drawing costs as many random numbers as the meta-batch's largest task has rows, for each of
    its tasks, on the CPU: for tasks of a hundred thousand rows take a source of your own.

    Args:
        data: a file (``.csv``, ``.tsv``, ``.jsonl``, ``.json``, also with ``.gz``, or
            ``.parquet``), a data frame of pandas or polars, a ``datasets.Dataset``, or a dict of
            columns.
        task: the column that tells tasks apart, such as "user".
        target: the column that is to be predicted, or several.
        inputs: the columns that the model sees; None for all others.
        split: "train", "validation" or "test", whose tasks do not overlap; "all" for every task,
            none held out.
        shots: support rows of a task: a number; a share of its rows such as 0.5, rounded; or the
            least and the most, between which each task draws, such as ``(5, 20)``.
        queries: query rows of a task, or "rest" for all that are not in its support set.
        tasks: tasks a meta-batch; of held-out splits that have fewer, all of them.
        kind: "regression", "classification", "multi-label" (several columns of 0 and 1), or
            "auto": texts and truth values are classes, numbers are numbers; few different whole
            numbers could be both, so that `kind` has to say it.
        labels: "table" where a class means the same in all tasks; "task" where each task numbers
            its own classes, in random order each time. Either way, the support set has each class
            of the task, if it has rows enough.
        unequal: what happens where tasks have different numbers of rows; see above.
        categorical: columns of numbers that are names of categories, such as a weekday. Columns
            of texts are by themselves.
        categories: "one-hot": a number for each; "index": inputs are a dict of ``numbers`` (where
            there are any) and ``categories``, int64 ``[tasks, rows, columns]``, for an
            embedding, and the model is called as ``model(numbers=..., categories=...)``.
            Categories are those of the training tasks; see `Scaling`.
        scale: bring numbers to mean 0 and standard deviation 1, over the rows of the training
            tasks, also of those that `small` leaves out; targets of a regression, too. False to
            leave them. Or another source's `Table.scaling`, for a new table of the same columns,
            whose classes then have the numbers that they had there.
        missing: what to do with rows that lack a value: "error", or "drop" them.
        small: what to do with tasks that have too few rows: "error", or "drop" them.
        validation_tasks: tasks held out for validation: a share, how many, or their names.
        test_tasks: likewise for the test.
        tasks_seed: of which tasks are held out; they hang on it and on the names alone.
        split_column: a column that says train, validation or test of every row, in place of these
            three.
        seed: of the source's own generator.
        device: where episodes are made; None for the CPU.
        dtype: of inputs and floating targets.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: pyarrow is needed (parquet).
        ValueError: a value that means nothing, a column that is not there, a cell that is missing
            or no number, a class that `scale` does not know, a task with too few rows, or fewer
            tasks than a meta-batch has.
    """
    check_positive(tasks=tasks)
    for name, value, choices in (
        ("labels", labels, ("table", "task")),
        ("unequal", unequal, ("mask", "buckets")),
        ("categories", categories, ("one-hot", "index")),
        ("missing", missing, ("error", "drop")),
        ("small", small, ("error", "drop")),
    ):
        check_choice(name, value, choices)
    sizes = Sizes(tuple(shots) if isinstance(shots, list) else shots, queries)
    columns = columns_of(data)
    names = chosen(columns, task, inputs, target, split_column)
    cells = {name: cleaned(columns.column(name)) for name in names.all()}
    own = (categorical,) if isinstance(categorical, str) else tuple(categorical)
    classes = names.targets if kind == "classification" else ()
    check_plain(cells, {*names.without_numbers(), *own, *classes}, columns.origin)
    rows = rows_kept(cells, missing, columns.origin)
    kept = {name: [values[i] for i in rows] for name, values in cells.items()}
    members = members_of(kept[task])
    check_alike(members, task, columns.origin)
    held = (0, 0) if split == "all" else (validation_tasks, test_tasks)
    said = None if split_column is None else kept[split_column]
    parts = parts_of(members, said, held, tasks_seed, split_column)
    wanted = split_tasks(split, parts)
    left, few = large_enough(members, wanted, sizes, small, f"split={split!r}")
    fitted = wanted if split == "all" else parts["train"]
    train = [i for name in fitted for i in members[name]]
    if not train and not isinstance(scale, Scaling):
        raise ValueError(
            f"split={split!r}: there are no training tasks to learn the scaling from: give scale= "
            "the scaling of the source that was trained on, or hold out fewer tasks."
        )
    where = rows, columns.origin
    whole = WholeTable.of(names, kept, train, kind, labels, own, scale, categories, dtype, where)
    found = whole.rows(left, few, len(cells[task]) - len(rows), fingerprint(names, cells), fitted)
    outputs = whole.outputs
    if labels == "task" and whole.kind == "classification":
        outputs = max(len({*whole.targets[torch.tensor(m)].tolist()}) for m in members.values())
    if split in ("validation", "test"):
        tasks = min(tasks, len(found.names))
    check_enough(split, found, tasks)
    made = Table(
        found,
        whole.scaling,
        sizes,
        tasks=tasks,
        unequal=unequal,
        labels=labels,
        outputs=outputs,
        seed=seed,
        device="cpu" if device is None else device,
    )
    if made.own_labels:
        # Held-out tasks are as a rule taken by `all`, each with all of its rows.
        made.check_own_classes(each=split in ("validation", "test"))
    return made
