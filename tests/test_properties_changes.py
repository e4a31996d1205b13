"""Random changes between calls, a fixed few of them; `make fuzz` runs new ones."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from properties import changes
from properties.readers import LOSSES, READERS

fixed = settings(
    database=None, deadline=None, derandomize=True, max_examples=30,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def test_a_call_gives_what_a_fresh_maml_gives() -> None:
    @fixed
    @given(changes.cases())
    def held(case: changes.Case) -> None:
        changes.check(case)

    held()


@pytest.mark.parametrize("name", READERS)
def test_every_change_of_what_a_model_reads_is_seen(name: str) -> None:
    """Each change by itself; the verbs take turns."""
    for i in range(len(READERS[name]()[1])):
        call = changes.Call(("train", "evaluate", "per_task")[i % 3])
        up, down = changes.Change(0, i, 2.0), changes.Change(0, i, 0.5)
        changes.check(changes.Case((name,), events=(call, up, call, down, call)))


@pytest.mark.parametrize("name", LOSSES)
def test_every_change_of_what_a_loss_reads_is_seen(name: str) -> None:
    for i in range(len(LOSSES[name]()[1])):
        call = changes.Call(("train", "per_task")[i % 2])
        up, down = changes.Change(-1, i, 2.0), changes.Change(-1, i, 0.5)
        changes.check(changes.Case(("float",), name, events=(call, up, call, down, call)))
