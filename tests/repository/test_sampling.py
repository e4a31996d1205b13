"""The sample that `make test` runs of a table."""

from __future__ import annotations

import itertools
import random

import pytest
from sampling import covering, left_out

pytest_plugins = ["pytester"]

PRODUCT = [*itertools.product("abcde", range(4), (True, False), "xyz")]
HOLES = [row for row in PRODUCT if row[0] != "e" or row[1] != 2]


def together(rows: list[tuple[object, ...]], count: int) -> set[object]:
    return {group for row in rows for group in itertools.combinations(enumerate(row), count)}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("rows", [PRODUCT, HOLES], ids=["product", "with holes"])
def test_what_stands_together_in_a_row_does_so_in_the_sample(
    rows: list[tuple[object, ...]], count: int
) -> None:
    chosen = covering(rows, count)
    assert together([rows[i] for i in chosen], count) == together(rows, count)
    assert len(chosen) < len(rows)


def test_pairs_need_few_rows() -> None:
    assert 5 * 4 <= len(covering(PRODUCT)) <= 24
    assert covering(PRODUCT) == covering(PRODUCT)
    assert len(covering([(x,) for x in "abca"])) == 3
    assert covering([]) == []


def test_few_rows_are_far_apart_and_show_most() -> None:
    assert covering([(i,) for i in range(100)], at_most=4) == [12, 33, 67, 88]
    assert {PRODUCT[i][0] for i in covering(PRODUCT, at_most=5)} == set("abcde")


def test_a_shuffled_table_is_covered_too() -> None:
    rows = random.Random(0).sample(HOLES, len(HOLES))
    assert together([rows[i] for i in covering(rows)], 2) == together(rows, 2)


TABLES = """
import pytest

@pytest.mark.sampled
@pytest.mark.parametrize("c", [object(), object()])
@pytest.mark.parametrize("b", "uvw")
@pytest.mark.parametrize("a", range(3))
def test_pairs(a, b, c): ...

@pytest.mark.sampled(together=1)
@pytest.mark.parametrize(("a", "b"), [(i, j) for i in range(4) for j in "xy"])
def test_values(a, b): ...

@pytest.mark.sampled(together=1)
def test_without_parameters(): ...

@pytest.mark.sampled(at_most=3)
@pytest.mark.parametrize("a", range(7))
def test_three(a): ...

@pytest.mark.sampled(columns=lambda a: [a % 2])
@pytest.mark.parametrize("a", range(7))
def test_kinds(a): ...

@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_slow(device): ...

@pytest.mark.sampled(at_most=1)
@pytest.mark.gpu
@pytest.mark.parametrize("a", range(7))
def test_gpu(a): ...

@pytest.mark.parametrize("a", range(7))
def test_others(a): ...
"""


def test_markers_choose(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nmarkers =\n    sampled:\n    slow:\n    gpu:\n")
    items = [item for item in pytester.getitems(TABLES) if isinstance(item, pytest.Function)]
    without = left_out(items)
    kept = [item for item in items if item not in without]

    def rows(name: str) -> list[list[object]]:
        mine = [item for item in kept if item.originalname == name]
        return [[*item.callspec.params.values()] for item in mine]

    assert 9 <= len(rows("test_pairs")) < 18
    assert [a for a, _ in rows("test_values")] == [0, 1, 2, 3]
    assert [b for _, b in rows("test_values")].count("x") == 2
    assert "test_without_parameters" in {item.name for item in kept}
    assert rows("test_three") == [[1], [4], [6]]
    assert {a % 2 for [a] in rows("test_kinds")} == {0, 1}
    assert len(rows("test_kinds")) == 2
    assert rows("test_slow") == [["cuda"]]
    assert len(rows("test_gpu")) == len(rows("test_others")) == 7
