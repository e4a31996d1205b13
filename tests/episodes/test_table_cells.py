"""Cells of a table that are neither plain numbers nor texts, or hardly numbers."""

from __future__ import annotations

import datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from user_table import source, users


def made(name: str, make: Any) -> dict[str, Any]:
    data: dict[str, Any] = users()
    data[name] = [make(x) for x in data[name]]
    return data


@pytest.mark.parametrize("kind", [Decimal, Fraction])
def test_decimals_and_fractions_are_numbers(kind: Any) -> None:
    """As parquet files and data bases have them."""
    data = users()
    for name in ("score", "price"):
        data[name] = [kind(x) for x in data[name]]
    found, expected = source(data), source()
    assert (found.kind, found.outputs, found.features) == ("regression", 1, expected.features)
    torch.testing.assert_close(found.sample().tree(), expected.sample().tree(), rtol=0, atol=0)


def test_decimals_of_a_parquet_file(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    data = made("score", lambda x: Decimal(f"{x:.3f}"))
    data["user"] = [Decimal(int(u[1:])) for u in users()["user"]]
    parquet.write_table(pa.table(data), tmp_path / "t.parquet")
    found = source(tmp_path / "t.parquet", test_tasks=["3"], validation_tasks=0)
    assert (found.kind, len(found.names)) == ("regression", 39)


def test_missing_decimals() -> None:
    data = made("score", Decimal)
    data["score"][4] = Decimal("NaN")
    with pytest.raises(
        ValueError, match=r"row 5 of the dict .* has no value in the column 'score'"
    ):
        source(data)


DAY = datetime.date(2026, 1, 1)
ODD: dict[str, Any] = {
    "date": lambda x: DAY + datetime.timedelta(int(x)),
    "time": lambda x: datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    "duration": lambda x: datetime.timedelta(hours=x),
    "list": lambda x: [x, x],
    "tensor": lambda x: torch.tensor([x, x]),
    "bytes": lambda x: b"a",
    "complex": lambda x: complex(x),
}


@pytest.mark.parametrize("name", ["hour", "score"])
@pytest.mark.parametrize("case", ODD)
def test_what_is_no_number_and_no_text_is_refused(case: str, name: str) -> None:
    with pytest.raises(
        ValueError, match=f"row 1 of the dict .* in the column '{name}', a .*: make"
    ):
        source(made(name, ODD[case]))


@pytest.mark.parametrize("dtype", ["datetime64[ns]", "timedelta64[ns]"])
def test_times_of_numpy_are_no_counts_of_nanoseconds(dtype: str) -> None:
    data: dict[str, Any] = users()
    data["hour"] = np.array(data["hour"]).astype(dtype)
    with pytest.raises(ValueError, match=r"in the column 'hour', a (datetime|timedelta)64"):
        source(data)
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match=r"in the column 'hour', a Time"):
        source(pandas.DataFrame(data))


def test_columns_of_several_numbers_are_refused() -> None:
    data: dict[str, Any] = users()
    data["hour"] = torch.zeros(len(data["user"]), 3)
    with pytest.raises(ValueError, match=r"in the column 'hour', a list, which is no number"):
        source(data)
    with pytest.raises(ValueError, match=r"a list, .*: give a column of texts or numbers"):
        source(data, categorical="hour")


def test_dates_may_be_names() -> None:
    data = made("hour", ODD["date"])
    assert source(data, categorical="hour").features == 24 + 1 + 2
    by_day = {"t": [DAY, DAY, ODD["date"](1)] * 4, "x": [*range(12)], "y": [0.5] * 12}
    found = source(by_day, task="t", target="y", split="all", tasks=1)
    assert found.names == ("2026-01-01", "2026-01-02")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("5_479", "row 5 .* has '5_479' in the column 'price', which is no number"),
        (10**400, "row 5 .* has 1000.* in the column 'price', which is not finite"),
        (-(10**400), "row 5 .* has -1000.* in the column 'price', which is not finite"),
        (Decimal("1e999"), "row 5 .* in the column 'price', which is not finite"),
        (Fraction(10**400, 3), "row 5 .* in the column 'price', which is not finite"),
    ],
)
def test_what_is_no_number_of_a_table(value: Any, message: str) -> None:
    data = users()
    data["price"][4] = value
    with pytest.raises(ValueError, match=message):
        source(data)


def test_huge_numbers_are_scaled_or_refused() -> None:
    """Whose squares overflow; what no dtype holds is an error, in place of infinite."""
    data = made("price", lambda x: x * 1e300)
    found, expected = source(data), source()
    told = found.scaling.inputs["price"]
    assert told == pytest.approx([x * 1e300 for x in expected.scaling.inputs["price"]])
    torch.testing.assert_close(found.sample().tree(), expected.sample().tree())
    match = r"the column 'price' has 3.\d+e\+304, which torch.float32 cannot hold"
    with pytest.raises(ValueError, match=match):
        source(data, scale=False)


ALIKE: dict[str, tuple[str, str]] = {
    "space": ("mon", "mon "),
    "encoding": ("\xe9t\xe9", "e\u0301t\xe9"),
}


@pytest.mark.parametrize("column", ["user", "day", "kind"])
@pytest.mark.parametrize("case", ALIKE)
def test_names_that_read_alike_are_refused(case: str, column: str) -> None:
    """Of tasks, categories and classes."""
    one, other = ALIKE[case]
    rows = range(40)
    data: dict[str, Any] = {
        "user": [f"u{i % 8}" for i in rows],
        "day": [("sat", "sun")[i % 2] for i in rows],
        "kind": [("a", "b", "c")[i % 3] for i in rows],
    }
    data[column] = [(one, other)[i % 2] for i in rows]
    with pytest.raises(ValueError, match=f"the column {column!r} of the dict has .*, which read"):
        source(data, target="kind", split="all", tasks=1)


def test_a_new_table_may_not_write_categories_otherwise() -> None:
    data = users()
    train = source(data)
    data["day"] = [f"{x} " for x in data["day"]]
    with pytest.raises(
        ValueError, match=r"'day' of the dict has '(mon|tue)' and '(mon|tue) ', which read"
    ):
        source(data, split="all", scale=train.scaling)


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("user,x,y\n\xe9,1,2.5\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"t.csv is not in UTF-8 .*: save it as UTF-8"):
        source(path, target="y")
