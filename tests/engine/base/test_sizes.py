"""Numbers that follow from sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fastmaml.engine.base.sizes import Form, Number, Variables, fitted

ONE = [(5,), (9,), (7,)]
TWO = [(5, 2), (9, 4), (7, 7), (3, 8), (4, 4)]


def test_variables_are_sizes_that_vary_together() -> None:
    found = Variables.of([(8, 5, 3, 5), (8, 9, 3, 9), (8, 7, 3, 7)])
    assert found.places == ((1, 3),)
    assert found.values((8, 11, 3, 11)) == (11,)
    assert found.values((8, 11, 3, 12)) is None
    assert found.values((8, 11, 4, 11)) is None
    assert found.values((4, 11, 3, 11)) is None


FOLLOWS: dict[str, Callable[..., Number]] = {
    "constant": lambda n, m=0: 4,
    "negative": lambda n, m=0: -n,
    "multiple": lambda n, m=0: 3 * n,
    "half": lambda n, m=0: (n + 1) // 2 if n % 2 else n,
    "offset": lambda n, m=0: 40 * n - 7,
    "square": lambda n, m=0: 2 * n * n,
    "square and offset": lambda n, m=0: n * n + 1,
    "float": lambda n, m=0: float(n),
    "reciprocal": lambda n, m=0: 1 / n,
    "mean of squares": lambda n, m=0: -2 / (n * n),
    "variance": lambda n, m=0: 2 / (n - 1),
}


@pytest.mark.parametrize("name", FOLLOWS)
def test_forms_of_one_size(name: str) -> None:
    f = FOLLOWS[name]
    found = fitted([f(*v) for v in ONE], ONE)
    assert found is not None
    for n in (11, 13, 101):
        number = found.at((n,)) if isinstance(found, Form) else found
        assert (number, type(number)) == (f(n), type(f(n)))


def test_half_of_an_even_number_is_none() -> None:
    found = fitted([(n + 1) // 2 for (n,) in ONE], ONE)
    assert isinstance(found, Form)
    assert found.at((11,)) == 6
    assert found.at((12,)) is None


@pytest.mark.parametrize(
    "f",
    [
        lambda n, m: n * m,
        lambda n, m: 3 * m,
        lambda n, m: n + m,
        lambda n, m: 2 * n - 3 * m + 5,
        lambda n, m: m * m,
        lambda n, m: n * m + 2,
        lambda n, m: 1 / (n * m),
    ],
)
def test_forms_of_two_sizes(f: Callable[[int, int], Number]) -> None:
    found = fitted([f(*v) for v in TWO], TWO)
    assert isinstance(found, Form)
    assert [found.at(v) for v in ((6, 5), (21, 13))] == [f(6, 5), f(21, 13)]


@pytest.mark.parametrize(
    "numbers",
    [
        [min(n, 6) for (n,) in ONE],
        [n**0.5 for (n,) in ONE],
        [2**n for (n,) in ONE],
        [5, 9, 7.0],
        [0.0, -0.0, 0.0],
        [1.0, float("inf"), 2.0],
    ],
    ids=str,
)
def test_what_follows_no_form(numbers: list[Number]) -> None:
    assert fitted(numbers, ONE) is None


def test_sizes_seen_again_confirm_nothing() -> None:
    twice = [(5, 20), (5, 5), (20, 5), (20, 20), (5, 5)]
    assert fitted([2 / (n - 1) for n, _ in twice], twice) is None
    assert fitted([3 * n for n, _ in twice], twice) is None
    assert fitted([n + m for n, m in twice], twice) is None
    assert fitted([4 for _ in twice], twice) == 4


def test_a_form_needs_more_samples_than_coefficients() -> None:
    """Through two points there is always a line, and through three a plane."""
    assert fitted([41, 77], ONE[:2]) is None
    assert fitted([1, 10, 100], TWO[:3]) is None
