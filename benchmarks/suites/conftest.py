"""The suites' own options; `benchmarks/programs/run_suites.py` runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.support.results import synchronize
from fastmaml import ops


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("suites")
    group.addoption("--device", choices=["cpu", "cuda"], default="cpu")
    group.addoption("--quick", action="store_true", help="fewer and smaller rows")
    group.addoption("--threads", type=int, default=1)


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(config.getoption("--threads"))
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return name


@pytest.fixture
def timed(benchmark: Any, device: str) -> Callable[..., None]:
    """``timed(run, **row)``: time a function until the device is done; `row` is kept beside it."""

    def time(run: Callable[[], Any], **row: Any) -> None:
        def whole() -> None:
            run()
            synchronize(device)

        benchmark.extra_info.update(row)
        benchmark(whole)

    return time


def require(backend: str) -> None:
    """Skip, with the reason, where this backend's kernels are not there."""
    if not ops.status()[backend].startswith("available"):
        pytest.skip(f"{backend}: {ops.status()[backend]}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A benchmark's module lists its rows: ``rows(device, quick)``, of which each is a dict."""
    rows = metafunc.module.rows(
        metafunc.config.getoption("--device"), metafunc.config.getoption("--quick")
    )
    names = list(rows[0])
    ids = [", ".join(str(v) for v in row.values()) for row in rows]
    metafunc.parametrize(names, [tuple(row.values()) for row in rows], ids=ids)
