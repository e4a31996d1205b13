"""Classes of a table: their numbers in a new table, and each task's own in buckets."""

from __future__ import annotations

from typing import Any

import pytest

import fastmaml as fm


def labelled(classes: str, tasks: str = "uvwxyz", rows: int = 8) -> dict[str, list[Any]]:
    total = len(tasks) * rows
    return {
        "t": [t for t in tasks for _ in range(rows)],
        "x": [0.1 * i for i in range(total)],
        "y": [classes[i % len(classes)] for i in range(total)],
    }


def source(data: Any, **options: Any) -> fm.episodes.Table:
    return fm.episodes.table(data, **({"task": "t", "target": "y", "tasks": 1} | options))


def test_a_new_table_numbers_its_classes_as_the_training_table_did() -> None:
    train = source(labelled("abc"))
    assert train.scaling.classes == train.classes == ("a", "b", "c")
    new = source(labelled("bc", "n"), split="all", scale=train.scaling)
    assert (new.classes, new.outputs) == (("a", "b", "c"), 3)
    query = new.sample().query
    x, y = query.inputs[0], query.targets[0].tolist()
    mean, deviation = train.scaling.inputs["x"]
    rows = ((x[:, 0] * deviation + mean) * 10).round().long()
    assert [("b", "c")[i % 2] for i in rows] == ["abc"[i] for i in y]
    with pytest.raises(ValueError, match=r"row 2 of the dict .* class 'd', .* classes a, b, c: "):
        source(labelled("bd", "n"), split="all", scale=train.scaling)


def test_each_tasks_own_classes_may_be_new() -> None:
    train = source(labelled("abc"), labels="task")
    assert train.scaling.classes == ()
    new = source(labelled("de", "n"), split="all", labels="task", scale=train.scaling)
    assert new.outputs == 2
    with pytest.raises(ValueError, match="without classes that mean the same in all tasks"):
        source(labelled("ab", "n"), split="all", scale=train.scaling)


def test_targets_keep_their_order() -> None:
    data = labelled("ab") | {"y": [0.5 * i for i in range(48)], "z": [7.5 * i for i in range(48)]}
    train = source(data, target=["y", "z"])
    with pytest.raises(ValueError, match=r"targets y, z, and these are z, y: .* in that order"):
        source(data, target=["z", "y"], scale=train.scaling)


def of_sizes(sizes: tuple[int, ...]) -> dict[str, list[Any]]:
    """Tasks of 6 rows of 2 classes, and larger ones of 10."""
    data: dict[str, list[Any]] = {"t": [], "x": [], "y": []}
    for t, size in enumerate(sizes):
        for i in range(size):
            row = (f"t{t}", float(i), "abcdefghij"[i % (2 if size == 6 else 10)])
            for name, value in zip(data, row, strict=True):
                data[name].append(value)
    return data


def test_a_buckets_smallest_task_has_to_leave_rows_for_all_classes() -> None:
    options: dict[str, Any] = {"labels": "task", "unequal": "buckets", "split": "all"}
    mixed = of_sizes((6, 60) * 8)
    match = "has 10 classes, .* 3 rows only .beside smaller tasks, .*or unequal='mask'"
    with pytest.raises(ValueError, match=match):
        source(mixed, tasks=16, **options)
    apart = source(mixed, tasks=8, **options)  # buckets of one size each
    for _, episodes in zip(range(20), apart, strict=False):
        for support, query in zip(episodes.support.targets, episodes.query.targets, strict=True):
            assert {*query.tolist()} <= {*support.tolist()}


def test_held_out_tasks_of_all_are_each_of_their_own_size() -> None:
    held = ["t1", "t2", "t3", "t4"]
    data = of_sizes((60,) * 3 + (6, 60) + (60,) * 8)
    test = source(
        data, labels="task", unequal="buckets", split="test", test_tasks=held, tasks=4,
        validation_tasks=0,
    )  # fmt: skip
    assert sum(len(episodes) for episodes in test.all()) == 4
    with pytest.raises(ValueError, match=r"3 rows only .beside smaller tasks"):
        test.sample()
