"""A pytest plugin: each test's outcome is written as it ends, and tests end in time.

A test that leaves CUDA unusable takes its process with it, and pytest-xdist starts another.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_parts import health

BEGAN = time.monotonic()


def controls(config: pytest.Config) -> bool:
    """Whether this is the process that the reports arrive in."""
    return not hasattr(config, "workerinput")


def tell(row: dict[str, Any]) -> None:
    """A line."""
    with Path(os.environ["FASTMAML_TOLD"]).open("a") as file:
        file.write(json.dumps(row) + "\n")


class Telling:
    """In the process that the reports arrive in."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.seconds: dict[str, float] = {}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A line for a file that cannot be collected; every worker says so."""
        if report.failed and report.nodeid not in self.seconds:
            self.seconds[report.nodeid] = 0.0
            why = str(report.longreprtext or report.longrepr)[-4000:]
            tell({"name": report.nodeid, "outcome": "error", "why": why, "seconds": 0.0})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A line for each test: of its call, or of the phase that skipped or failed it."""
        name = report.nodeid
        self.seconds[name] = self.seconds.get(name, 0.0) + report.duration
        failed, skipped = report.failed, report.skipped
        if report.when == "call" or failed or skipped:
            outcome = report.outcome if report.when == "call" or skipped else "error"
            why = "" if report.passed else str(report.longreprtext or report.longrepr)[-4000:]
            tell(
                {
                    "name": name.removeprefix("tests/"), "outcome": outcome, "why": why,
                    "seconds": round(self.seconds.pop(name), 3),
                }
            )  # fmt: skip


class Leaving:
    """Where tests run: none begins when time is over, and none after CUDA has broken."""

    def __init__(self, config: pytest.Config) -> None:
        self.controls = controls(config)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        """End the session in time."""
        if time.monotonic() - BEGAN > float(os.environ["FASTMAML_TOLD_UNTIL"]):
            item.session.shouldstop = "the time is over"

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """End a worker whose CUDA is unusable; its report went out before."""
        if not report.failed or self.controls:
            return
        torch = sys.modules.get("torch")
        if torch and health.broken("cuda" if torch.cuda.is_initialized() else "cpu"):
            time.sleep(0.5)  # for the report to arrive
            os._exit(health.BROKEN)


def pytest_configure(config: pytest.Config) -> None:
    """Where which of them belongs."""
    if controls(config):
        config.pluginmanager.register(Telling(config))
    config.pluginmanager.register(Leaving(config))


def pytest_collection_finish(session: pytest.Session) -> None:
    """How many there are; once, whoever collected them."""
    count = len(session.items)
    config = session.config
    first = controls(config) or vars(config)["workerinput"]["workerid"] == "gw0"
    if first and count:
        tell({"selected": count})
