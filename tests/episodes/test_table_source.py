"""Tables as tasks: what is drawn, filled up, held out, scaled and refused."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from user_table import counts, source, users

import fastmaml as fm
from fastmaml.episodes.table_sizes import Sizes, filled_up_to


def test_rows_are_of_one_task_and_differ() -> None:
    """Which row it is stands in a column: every row of a task once, support and query apart."""
    data = users()
    table = source(data, inputs=["price"], scale=False, dtype=torch.float64)
    sizes = {name: data["user"].count(name) for name in set(data["user"])}
    score = dict(zip(data["price"], data["score"], strict=True))
    for episodes in islice(table, 20):
        seen = set()
        for task in episodes:
            rows = []
            for batch in (task.support, task.query):
                there = counts(batch)[0]
                prices = batch.inputs[0, :, 0]
                wanted = [score[int(x)] for x in prices]
                assert batch.targets["values"][0, :, 0].tolist() == pytest.approx(wanted)
                assert there.any()
                assert (prices[~there] == prices[0]).all()
                rows.append(prices[there].long().tolist())
            name = f"u{rows[0][0] // 1000}"
            assert {f"u{x // 1000}" for x in rows[0] + rows[1]} == {name}
            assert len({*rows[0], *rows[1]}) == len(rows[0]) + len(rows[1]) == sizes[name]
            assert len(rows[0]) == round(0.5 * sizes[name])
            seen.add(name)
        assert len(seen) == 8
        assert seen <= set(table.names)


def test_all_rows_are_drawn_alike() -> None:
    """Of a task of 10 rows each is in a support set of 3 in 3 of 10 draws."""
    data = {"t": ["a"] * 10 + ["b"] * 7, "x": list(range(17)), "y": [0.5] * 17}
    table = fm.episodes.table(
        data, task="t", target="y", inputs="x", split="all", shots=3, tasks=1, scale=False
    )
    found = torch.zeros(17)
    for episodes in islice(table, 6000):
        rows = episodes.support.inputs[counts(episodes.support)].flatten().long()
        found[rows] += 1
    assert found[:10] == pytest.approx([6000 / 2 * 0.3] * 10, rel=0.15)
    assert found[10:] == pytest.approx([6000 / 2 * 3 / 7] * 7, rel=0.15)


@pytest.mark.parametrize(
    ("shots", "queries", "supports", "rest"),
    [
        (3, 1, {3}, {1}),
        (2, "rest", {2}, {2, 5, 8}),
        (0.5, "rest", {2, 4, 5}, {2, 3, 5}),
        (0.5, 2, {2, 4, 5}, {2}),
        (0.9, 1, {3, 6, 9}, {1}),
        ((1, 6), 2, {1, 2, 3, 4, 5, 6}, {2}),
    ],
)
def test_sizes(shots: Any, queries: Any, supports: set[int], rest: set[int]) -> None:
    sizes, rows = Sizes(shots, queries), torch.tensor([4, 7, 10])
    found: list[set[int]] = [set(), set()]
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        drawn = sizes.drawn(rows, generator, together=False)
        assert ((drawn[0] + drawn[1]) <= rows).all()
        for known, values in zip(found, drawn, strict=True):
            known |= {*values.tolist()}
    assert found == [supports, rest]
    assert sizes.largest(10) == (max(supports), max(rest))
    assert sizes.alike == (shots == 3)


def test_few_sizes_are_filled_up_to() -> None:
    assert {filled_up_to(n, 60) for n in range(1, 61)} == {1, 2, 4, 8, 15, 30, 60}
    assert all(n <= filled_up_to(n, 60) < 2 * n + 1 for n in range(1, 61))


def test_buckets_fill_nothing_up() -> None:
    """Sets of one size, of tasks of like sizes; every task and every row has its turn."""
    data = users()
    table = source(data, inputs="price", scale=False, unequal="buckets", dtype=torch.float64)
    seen: set[int] = set()
    for episodes in islice(table, 400):
        assert isinstance(episodes.support.targets, Tensor)
        names = episodes.support.inputs[:, 0, 0].long() // 1000
        assert len(names.unique()) == 8
        seen |= {int(x) for b in (episodes.support, episodes.query) for x in b.inputs.flatten()}
    expected = [p for p, u in zip(data["price"], data["user"], strict=True) if u in table.names]
    assert seen == set(expected)


def test_classes_are_in_every_support_set() -> None:
    """Also those of a single row; with as many rows as classes, one of each."""
    classes = ["often"] * 12 + ["rare"] + ["seldom"] * 3
    data = {"t": ["a"] * 16 + ["b"] * 16, "x": list(range(32)), "y": classes * 2}
    table = fm.episodes.table(
        data, task="t", target="y", split="all", shots=(3, 9), tasks=2, seed=3
    )
    assert (table.kind, table.classes, table.outputs) == (
        "classification",
        ("often", "rare", "seldom"),
        3,
    )
    for episodes in islice(table, 50):
        for task in episodes:
            labels = task.support.targets[task.support.targets != -100]
            assert {*labels.tolist()} == {0, 1, 2}
            assert task.support.targets.dtype == torch.int64


def test_own_classes_are_numbered_anew() -> None:
    """0, 1, ... in each task, in random order; more rows than these are of the right class."""
    data = {
        "t": [t for t in "abc" for _ in range(12)],
        "x": list(range(36)),
        "y": [f"{t}{i % (2 if t == 'a' else 3)}" for t in "abc" for i in range(12)],
    }
    table = fm.episodes.table(
        data, task="t", target="y", split="all", labels="task", tasks=3, scale=False, shots=4
    )
    assert table.outputs == 3
    orders = set()
    for episodes in islice(table, 60):
        for task in episodes:
            found: dict[str, int] = {}
            for batch in (task.support, task.query):
                for x, label in zip(batch.inputs[0, :, 0], batch.targets[0], strict=True):
                    if label >= 0:
                        name = data["y"][int(x)]
                        assert found.setdefault(name, int(label)) == int(label)
            assert sorted(found.values()) == list(range(len(found)))
            assert len(found) == (2 if "a0" in found else 3)
            if "b0" in found:
                orders.add(tuple(found[f"b{i}"] for i in range(3)))
    assert len(orders) == 6


def test_several_labels_and_values() -> None:
    data = users()
    data |= {"late": [float(x > 12) for x in data["hour"]], "dear": [x % 2 for x in data["price"]]}
    bits = source(data, target=["late", "dear"], inputs="hour", kind="multi-label")
    assert bits.outputs == 2
    values = bits.sample().support.targets["values"]
    assert values.shape[2] == 2
    assert {*values.flatten().tolist()} == {0.0, 1.0}
    again = {"inputs": "hour", "kind": "multi-label", "split": "test", "scale": bits.scaling}
    assert source(data, target=["late", "dear"], **again).scaling is bits.scaling
    for targets in (["dear", "late"], ["late"]):
        with pytest.raises(ValueError, match="learned of the targets late, dear"):
            source(data, target=targets, **again)
    number = source(data, target="late", inputs="hour", kind="regression").scaling
    with pytest.raises(ValueError, match="as numbers to predict, and these are labels"):
        source(data, target="late", **{**again, "scale": number})
    two = source(data, target=["score", "price"], inputs="hour")
    assert (two.kind, two.outputs, two.sample().query.targets["values"].shape[2]) == (
        "regression",
        2,
        2,
    )


def test_splits_are_apart_and_hang_on_names_alone() -> None:
    data = users()
    parts = {s: source(data, split=s, tasks=1).names for s in ("train", "validation", "test")}
    assert [len(x) for x in parts.values()] == [28, 6, 6]
    assert {n for names in parts.values() for n in names} == set(data["user"])
    backwards = {name: values[::-1] for name, values in data.items()}
    assert source(backwards, split="test", tasks=1).names == parts["test"]
    assert source(data, split="test", tasks_seed=1, tasks=1).names != parts["test"]
    named = source(data, split="test", test_tasks=["u3", "u1"], tasks=2)
    assert named.names == ("u3", "u1")
    assert len(source(data, split="all").names) == 40
    of_user = {u: ("train", "val", "test")[i % 3] for i, u in enumerate(sorted(set(data["user"])))}
    data["part"] = [of_user[u] for u in data["user"]]
    found = source(data, split="validation", split_column="part")
    assert set(found.names) == {u for u, part in of_user.items() if part == "val"}
    assert found.features == 4  # the split is no input


def test_scaling_is_of_the_training_tasks() -> None:
    data = users()
    table = source(data, inputs=["hour", "price"], dtype=torch.float64)
    rows = [i for i, u in enumerate(data["user"]) if u in table.names]
    for name, told in {**table.scaling.inputs, **table.scaling.targets}.items():
        values = torch.tensor([float(data[name][i]) for i in rows], dtype=torch.float64)
        assert told == pytest.approx((values.mean().item(), values.std(correction=0).item()))
    test = source(data, inputs=["hour", "price"], split="test", tasks=1)
    assert test.scaling == table.scaling
    y = torch.randn(3, 5, 1)
    torch.testing.assert_close(table.scaling.scaled(table.scaling.unscaled(y)), y)
    new = {name: values[:50] for name, values in data.items()}
    given = source(new, inputs=["hour", "price"], split="all", scale=table.scaling, small="drop")
    assert given.scaling is table.scaling
    with pytest.raises(ValueError, match="scale= was learned of the inputs hour, price, and"):
        source(new, inputs=["hour"], split="all", scale=table.scaling, small="drop")


def test_categories() -> None:
    """Texts are by themselves, and numbers where named; what training tasks lack is unknown."""
    data = users()
    data["shop"] = [int(u[1:]) % 3 for u in data["user"]]
    hot = source(data, inputs=["hour", "day", "shop"], categorical="shop")
    assert hot.features == 1 + 2 + 3
    x = hot.sample().support.inputs
    assert (x[..., 1:3].sum(-1) == 1).all()
    assert (x[..., 3:].sum(-1) == 1).all()
    index = source(data, inputs=["hour", "day", "shop"], categorical="shop", categories="index")
    found = index.sample().support.inputs
    assert found["numbers"].shape[2] == index.features == 1
    assert found["categories"].dtype == torch.int64
    assert found["categories"][..., 1].max() == 2
    unknown = set(source(data, split="test", tasks=1).names)
    data["day"] = [
        "sun" if u in unknown else d for u, d in zip(data["user"], data["day"], strict=True)
    ]
    test = source(data, inputs=["hour", "day"], split="test", tasks=2)
    assert (test.sample().query.inputs[..., 1:] == 0).all()
    test = source(data, inputs=["day"], split="test", tasks=2, categories="index")
    assert (test.sample().query.inputs["categories"] == 2).all()


@pytest.mark.parametrize("unequal", ["mask", "buckets"])
def test_each_task_once(unequal: Any) -> None:
    data = users()
    table = source(data, inputs="price", scale=False, unequal=unequal, dtype=torch.float64)
    every = table.all()
    assert every.total == len(table.names) == 28
    for _ in range(2):
        seen: list[int] = []
        for episodes in every:
            assert len(episodes) <= 8
            seen += (episodes.support.inputs[:, 0, 0].long() // 1000).tolist()
        assert sorted(f"u{x}" for x in seen) == sorted(table.names)
    first, again = next(iter(every)), next(iter(every))
    torch.testing.assert_close(first.tree(), again.tree(), rtol=0, atol=0)
    if unequal == "buckets":  # each has all of its rows
        rows = sum(b.inputs.numel() for e in every for b in (e.support, e.query))
        assert rows == sum(data["user"].count(name) for name in table.names)


def test_a_stream_goes_on_where_it_was(tmp_path: Path) -> None:
    data = users()
    table = source(data)
    table.sample()
    state = table.state_dict()
    expected = table.sample()
    other = source(data)
    other.load_state_dict(state)
    torch.testing.assert_close(other.sample().tree(), expected.tree(), rtol=0, atol=0)
    data["score"][7] += 1
    with pytest.raises(ValueError, match="the table has changed since the state was saved"):
        source(data).load_state_dict(state)


def test_buckets_are_for_models_with_batch_norm() -> None:
    """Which are refused where rows fill up."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
    for unequal in ("buckets", "mask"):
        table = source(inputs=["hour", "price"], unequal=unequal)
        maml = fm.MAML(net, 0.1, loss=table.loss, executor="eager")
        if unequal == "buckets":
            maml(table.sample()).loss.backward()
        else:
            with pytest.raises(ValueError, match="unequal='buckets'"):
                maml(table.sample())


def test_repr() -> None:
    assert repr(source(inputs=["hour", "day"])) == (
        "Table(regression, 28 tasks of 4 to 19 rows, features=3, outputs=1, shots=0.5, "
        "queries='rest', tasks=8, unequal='mask', device='cpu')"
    )
