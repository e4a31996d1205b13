"""Numbers that follow from sizes: how something recorded at some sizes is for others.

Sizes are the lengths of all dimensions of a meta-step's tensors. Seen a few times, those that vary
are told apart (`Variables`), and each number of what was recorded with them is a constant, or a
short formula of theirs that all of the times confirm (`fitted`), or nothing that can be foretold.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, final

from torch import Tensor

LEAST_SIZES = 3
"""Different ones, at which a form has to be confirmed."""

Number = int | float
Sizes = tuple[int, ...]


def sizes_of(tensors: Sequence[Any]) -> Sizes:
    """All lengths of all dimensions of tensors, among what may be others."""
    return tuple([n for x in tensors if isinstance(x, Tensor) for n in x.shape])


def general(x: Tensor) -> tuple[Any, ...]:
    """What is alike in data ``[tasks, ...]`` of other sizes: 0 and 1 are no matter of degree."""
    kept = tuple([n if n < 2 else -1 for n in x.shape[1:]])
    return x.shape[:1], kept, x.dtype, x.device


@final
@dataclass(frozen=True)
class Variables:
    """Which of some sizes vary, and which of these together.

    Attributes:
        fixed: the others, by place.
        places: of each variable, where it stands.
    """

    fixed: tuple[tuple[int, int], ...]
    places: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(samples: Sequence[Sizes]) -> Variables:
        """Those of sizes that were seen, all equally many."""
        columns: dict[Sizes, list[int]] = {}
        for place, column in enumerate(zip(*samples, strict=True)):
            columns.setdefault(column, []).append(place)
        fixed = [(p, c[0]) for c, ps in columns.items() if len(set(c)) == 1 for p in ps]
        varying = [tuple(ps) for c, ps in columns.items() if len(set(c)) > 1]
        return Variables(tuple(fixed), tuple(varying))

    def values(self, sizes: Sizes) -> Sizes | None:
        """Of each variable; None where the sizes do not vary as those that were seen."""
        if any(sizes[place] != size for place, size in self.fixed):
            return None
        found = [{sizes[place] for place in places} for places in self.places]
        return None if any(len(x) > 1 for x in found) else tuple(x.pop() for x in found)


@final
@dataclass(frozen=True)
class Form:
    """offset + Σ factor · Π variables, or the quotient of two such.

    Attributes:
        terms: pairs of a factor and the numbers of variables, each as often as it is multiplied.
        offset: is added.
        numerator: where this is not None, the form is the quotient of it and the sum.
        whole: an int; else the sum as a float.
    """

    terms: tuple[tuple[Fraction, tuple[int, ...]], ...]
    offset: Fraction = Fraction(0)
    numerator: float | None = None
    whole: bool = True

    def at(self, values: Sizes) -> Number | None:
        """The number at these values of the variables; None where there is none."""
        total = self.offset + sum(
            factor * math.prod(values[v] for v in variables) for factor, variables in self.terms
        )
        if self.numerator is not None:
            return self.numerator / float(total) if total else None
        if not self.whole:
            return float(total)
        return int(total) if total.denominator == 1 else None


def fitted(numbers: Sequence[Number], values: Sequence[Sizes]) -> Number | Form | None:
    """What the numbers are: one and the same, or a form; None where nothing fits all of them.

    A form is believed if it is confirmed at more sizes than it has coefficients, at least three:
    through two points there is always a line, however often they were seen.

    Args:
        numbers: one a sample.
        values: of the variables, one tuple a sample.
    """
    first = numbers[0]
    if any(type(x) is not type(first) for x in numbers):
        return None
    if all(x == first for x in numbers):
        return first if len({repr(x) for x in numbers}) == 1 else None  # -0.0 is not 0.0
    if not all(math.isfinite(x) for x in numbers):
        return None
    found = _polynomial(numbers, values)
    if found is None and isinstance(first, float):
        found = _quotient(numbers, values)
    return found


def _polynomial(numbers: Sequence[Number], values: Sequence[Sizes]) -> Form | None:
    exact = [Fraction(x) for x in numbers]
    count, whole = len(values[0]), isinstance(numbers[0], int)
    single = [(v,) for v in range(count)]
    double = list(itertools.combinations_with_replacement(range(count), 2))
    for monomials in (single, double):
        for chosen in monomials:
            for offset in (False, True):
                found = _solved(exact, values, [chosen], offset)
                if found is not None:
                    return Form(found[0], found[1], whole=whole)
    for pair in itertools.combinations(single, 2):
        found = _solved(exact, values, list(pair), True)
        if found is not None:
            return Form(found[0], found[1], whole=whole)
    return None


Terms = tuple[tuple[Fraction, tuple[int, ...]], ...]


def _solved(
    numbers: Sequence[Fraction],
    values: Sequence[Sizes],
    monomials: Sequence[tuple[int, ...]],
    offset: bool,
) -> tuple[Terms, Fraction] | None:
    """Factors of monomials, and an offset, that give all numbers; None if there are none."""
    rows = [
        [Fraction(math.prod(x[v] for v in monomial)) for monomial in monomials]
        + [Fraction(1)] * offset
        for x in values
    ]
    sizes = [len({x[v] for x in values}) for monomial in monomials for v in monomial]
    if min(sizes) < LEAST_SIZES or len(set(map(tuple, rows))) <= len(rows[0]):
        return None
    solution = _eliminated([[*row, x] for row, x in zip(rows, numbers, strict=True)])
    if solution is None:
        return None
    factors = solution[: len(monomials)]
    terms = tuple((f, m) for f, m in zip(factors, monomials, strict=True) if f)
    return terms, solution[-1] if offset else Fraction(0)


def _eliminated(rows: list[list[Fraction]]) -> list[Fraction] | None:
    """The only solution of a system with more equations than unknowns, if it has one."""
    unknowns = len(rows[0]) - 1
    for column in range(unknowns):
        pivot = next((i for i in range(column, len(rows)) if rows[i][column]), None)
        if pivot is None:
            return None
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [x / rows[column][column] for x in rows[column]]
        for i, row in enumerate(rows):
            if i != column and row[column]:
                factor = row[column]
                rows[i] = [a - factor * b for a, b in zip(row, rows[column], strict=True)]
    if any(row[-1] for row in rows[unknowns:]):
        return None
    return [row[-1] for row in rows[:unknowns]]


def _quotient(numbers: Sequence[Number], values: Sequence[Sizes]) -> Form | None:
    """A whole number divided by a product of sizes, as means are, or by one less, as variances."""
    count = len(values[0])
    products = [
        *((v,) for v in range(count)),
        *itertools.combinations_with_replacement(range(count), 2),
    ]
    for chosen, less in itertools.product(products, (0, 1)):
        divisors = [math.prod(x[v] for v in chosen) - less for x in values]
        if len(set(divisors)) < LEAST_SIZES:
            continue
        numerator = float(round(numbers[0] * divisors[0]))
        form = Form(((Fraction(1), chosen),), Fraction(-less), numerator, whole=False)
        if all(form.at(x) == number for x, number in zip(values, numbers, strict=True)):
            return form
    return None
