"""Random networks, rules, scopes, heads, methods: a fixed few; `make fuzz` runs new ones."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings

from properties import modules

# vmap says so of operations in place that it runs one by one.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")
fixed = settings(
    database=None, deadline=None, derandomize=True, max_examples=6,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("executor", ["eager", "captured"])
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_a_meta_step_is_the_plain_loop(executor: str, backend: str) -> None:
    @fixed
    @given(modules.cases())
    def held(case: modules.Case) -> None:
        with contextlib.suppress(modules.RefusedError):
            modules.check(dataclasses.replace(case, executor=executor, backend=backend))

    held()
