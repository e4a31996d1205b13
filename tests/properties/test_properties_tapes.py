"""Random tapes, a fixed few seconds of them; `make fuzz` runs new ones."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings

from properties import tapes

# vmap says so of operations in place that it runs one by one.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")
fixed = settings(
    database=None, deadline=None, derandomize=True, max_examples=60,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("mode", ["plain", "grad", "twice", "vmap"])
def test_a_replay_gives_what_the_function_gives(mode: str) -> None:
    @fixed
    @given(tapes.programs(mode))
    def held(program: tapes.Program) -> None:
        with contextlib.suppress(tapes.RefusedError):
            tapes.check(program)

    held()
