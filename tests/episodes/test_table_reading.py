"""Tables as tasks: what is read, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from user_table import COLUMNS, source, users


def test_every_kind_of_table_is_read_alike(tmp_path: Path) -> None:
    """A csv, tsv, jsonl, parquet file, a frame of pandas, a data set and a dict."""
    pandas = pytest.importorskip("pandas")
    datasets = pytest.importorskip("datasets")
    data = users()
    rows = [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)]
    for ending, delimiter in ((".csv", ","), (".tsv", "\t")):
        with (tmp_path / f"t{ending}").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(data), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    frame = pandas.DataFrame(data)
    frame.to_parquet(tmp_path / "t.parquet")
    arrays = data | {"hour": torch.tensor(data["hour"]), "score": frame["score"].to_numpy()}
    files = [tmp_path / f"t{ending}" for ending in (".csv", ".tsv", ".jsonl", ".parquet")]
    expected = source(data).sample()
    for given in (*files, frame, datasets.Dataset.from_dict(data), arrays):
        found = source(given).sample()
        torch.testing.assert_close(found.tree(), expected.tree(), rtol=0, atol=0)


def test_a_frame_of_polars() -> None:
    """By what it can do: columns by name, which become lists."""
    data = users()

    class Series:
        def __init__(self, values: list[Any]) -> None:
            self.to_list = lambda: values

    class DataFrame:
        def __init__(self) -> None:
            self.columns = list(data)

        def __getitem__(self, name: str) -> Series:
            return Series(data[name])

    found, expected = source(DataFrame()).sample(), source(data).sample()
    torch.testing.assert_close(found.tree(), expected.tree(), rtol=0, atol=0)


def changed(name: str, row: int, value: Any) -> dict[str, list[Any]]:
    data = users()
    data[name][row] = value
    return data


def with_one_row() -> dict[str, list[Any]]:
    data = users()
    for name, value in zip(COLUMNS, ("alone", 1, 2, "mon", 0.5), strict=True):
        data[name].append(value)
    return data


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "nan": (
        lambda: changed("price", 4, float("nan")),
        {},
        r"row 5 of the dict .* has no value in the column 'price', and 1 of \d+ rows lack one: .*"
        "missing='drop'",
    ),
    "empty": (lambda: changed("day", 0, ""), {}, "row 1 .* no value in the column 'day'"),
    "text": (
        lambda: changed("price", 4, "cheap"),
        {},
        "row 5 of the dict .* has 'cheap' in the column 'price', which is no number: .*categorical",
    ),
    "infinite": (lambda: changed("score", 2, float("inf")), {}, "'score', which is not finite"),
    "column": (
        users,
        {"inputs": ["hour", "prize"]},
        r"inputs='prize': the dict has no such column \(did you mean 'price'\?\). Its columns are",
    ),
    "task": (users, {"task": "User"}, r"task='User': .*did you mean 'user'"),
    "twice": (users, {"inputs": ["score"]}, r"'score' is named twice \(inputs, target\)"),
    "one row": (
        with_one_row,
        {"split": "all"},
        "the task 'alone' has 1 row, and shots=0.5 with queries='rest' needs at least 2: .*"
        "small='drop'",
    ),
    "shots": (users, {"shots": 1.5}, "shots=1.5: give a number of rows"),
    "share": (users, {"test_tasks": 1.5}, "test_tasks=1.5: give a share"),
    "few": (users, {"tasks": 99}, "tasks=99, but split='train' has 28 tasks: give tasks=28"),
    "split": (users, {"split": "dev"}, "split='dev': choose one of train, validation, test, all"),
    "ambiguous": (
        lambda: users() | {"score": [i % 3 for i in range(len(users()["user"]))]},
        {},
        "has only 0, 1, 2: say whether these are numbers, kind='regression', or names",
    ),
    "bits": (
        lambda: users() | {"z": [1.0] * len(users()["user"])},
        {"target": ["score", "z"], "kind": "multi-label"},
        "in the column 'score', and kind='multi-label' has 0 and 1 alone",
    ),
    "several texts": (
        users,
        {"target": ["score", "day"]},
        "the targets score, day of the dict are several, and 'day' holds texts",
    ),
    "free text": (
        lambda: users() | {"day": [f"note {i}" for i in range(len(users()["user"]))]},
        {},
        "the column 'day' .* different texts, such as 'note",
    ),
    "own classes": (
        users,
        {"target": "day", "labels": "task", "shots": 1},
        "has 2 classes, and its support set may have 1 rows only",
    ),
    "no training": (
        lambda: users() | {"part": ["test"] * len(users()["user"])},
        {"split": "test", "split_column": "part"},
        "no training tasks to learn the scaling from",
    ),
    "lengths": (lambda: users() | {"hour": [1]}, {}, "columns of different lengths"),
    "kind": (lambda: 3, {}, "data is a int; give a file"),
    "unequal": (users, {"unequal": "pad"}, "unequal='pad' is unknown; choose one of mask, buckets"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    make, options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        source(make(), **options)


def test_held_out_splits_have_no_more_tasks_than_there_are() -> None:
    test = source(split="test", tasks=99)
    assert test.tasks == len(test.names) == len(test.sample()) == 6


def test_no_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"data='no.csv': there is no such file. Give one"):
        source("no.csv")


def test_what_is_left_out_is_told() -> None:
    table = source(changed("price", 4, None), missing="drop")
    assert table.dropped == 1
    table = source(with_one_row(), split="all", small="drop")
    assert table.left_out == ("alone",)
    assert "alone" not in table.names
