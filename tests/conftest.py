"""A sample of the tables of tests by default, the whole product with ``--all``."""

from __future__ import annotations

import pytest
from sampling import left_out


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all", action="store_true", help="slow tests and all rows of sampled tables, too"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what only ``--all`` runs; tests that are named one by one all run."""
    if config.getoption("--all") or any("::" in argument for argument in config.args):
        return
    without = left_out(items)
    config.hook.pytest_deselected(items=[item for item in items if item in without])
    items[:] = [item for item in items if item not in without]
