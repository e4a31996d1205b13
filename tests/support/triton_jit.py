"""Triton's compiler and launcher within a recording, without a GPU; run by test_triton.py.

A driver that stands in for CUDA's compiles for sm_90 and launches nothing, so that no result means
anything (fresh memory is NaN); but everything in Python runs as on a GPU: caches, threads, files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from problems import PROBLEMS, RULES
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from fastmaml import kernels
from fastmaml.kernels import checks, tuning
from fastmaml.kernels.launch import Launch, Product
from fastmaml.kernels.tiles import Tile, candidates
from fastmaml.ops import _load

LAUNCHED: list[str] = []


class Loads:
    def load_binary(self, name: str, *_: Any) -> tuple[int, ...]:
        return 1, 2, 32, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232_448, "multiprocessor_count": 132, "warpSize": 32}


class Launches:
    def __init__(self, source: Any, metadata: Any) -> None:
        self.name = metadata["name"] if isinstance(metadata, dict) else metadata.name

    def __call__(self, *_: Any) -> None:
        LAUNCHED.append(self.name)


class Driver(DriverBase):
    utils, launcher_cls = Loads(), Launches

    def __init__(self) -> None:
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: 0

    @staticmethod
    def is_active() -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind

    def get_benchmarker(self) -> None: ...

    def get_empty_cache_for_benchmark(self) -> None: ...


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(checks, "interpreted", lambda kernel: True)  # CPU tensors will do
    monkeypatch.setattr(tuning, "choose", compiled_together)
    triton.runtime.driver.set_active(Driver())
    torch.use_deterministic_algorithms(True)
    LAUNCHED.clear()
    yield
    torch.use_deterministic_algorithms(False)


def compiled_together(product: Product, plan: Callable[[Tile], list[Launch]]) -> Tile:
    """As `tuning.choose` where a product is new, but for the measurement."""
    tiles = candidates(product)[: tuning.MEASURED]
    tuning.compile_all([launch for tile in tiles for launch in plan(tile)])
    return tiles[0]


def test_a_meta_step_is_recorded_while_its_kernels_compile(
    driver: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpp = _load.kernels("cpp")
    own = {op: getattr(kernels, op) for op in _load._RAW_OPS if hasattr(kernels, op)}
    found = _load.Kernels("triton", cpp.devices, cpp.dtypes, {**cpp.raw_ops, **own})
    monkeypatch.setitem(_load._FINDERS, "triton", lambda: found)
    _load._found.cache_clear()
    problem = next(p for p in PROBLEMS if p.name == "mlp")
    maml = problem.maml(
        RULES["sgd"](), executor="captured", backend="triton", check_finite=False,
        spot_checks=False,
    ).float()  # fmt: skip
    episodes = problem.episodes.to("cpu", torch.float32)
    maml(episodes).loss.backward()
    before = len(LAUNCHED)
    assert before, "no kernel was launched"
    maml(episodes).loss.backward()
    assert len(LAUNCHED) > before, "a replay launches kernels"
