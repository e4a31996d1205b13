"""Changes between calls, a fixed few of them; `make fuzz` runs new ones."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from properties import changes
from properties.changes import Call, Case, Change
from properties.readers import LOSSES, READERS

# vmap says so of operations in place that it runs one by one.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")
fixed = settings(
    database=None, deadline=None, derandomize=True, max_examples=8,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
VERBS = ["train", "evaluate", "per_task"]
EVERY = 3  # of the kinds of things that are read: the rest is for `make fuzz`
IN_A_ROW = 5  # more kinds in a row than this, and fastmaml would leave off recording


@pytest.mark.slow
def test_a_call_gives_what_a_fresh_maml_gives() -> None:
    @fixed
    @given(changes.cases())
    def held(case: Case) -> None:
        changes.check(case)

    held()


def sequences(call: Call, reader: int, count: int) -> list[tuple[Call | Change, ...]]:
    """A call after every change, some changes in a row."""
    each = [(Change(reader, i, (2.0, 0.5)[i % 2]), call) for i in range(count)]
    rows = [each[i : i + IN_A_ROW] for i in range(0, count, IN_A_ROW)]
    return [(call, *(event for pair in row for event in pair)) for row in rows]


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("name", list(READERS)[::EVERY])
def test_every_change_of_what_a_model_reads_is_seen(name: str) -> None:
    call = Call(VERBS[list(READERS).index(name) % 3])
    for events in sequences(call, 0, len(READERS[name]()[1])):
        changes.check(Case((name,), events=events))


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("name", list(LOSSES)[::EVERY])
def test_every_change_of_what_a_loss_reads_is_seen(name: str) -> None:
    call = Call(VERBS[list(LOSSES).index(name) % 3])
    for events in sequences(call, -1, len(LOSSES[name]()[1])):
        changes.check(Case(("float",), name, events=events))


@pytest.mark.slow
def test_every_change_of_the_maml_is_seen() -> None:
    for events in sequences(Call(), -2, changes.OF_MAML):
        changes.check(Case(("float",), events=events))
