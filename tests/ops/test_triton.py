"""The Triton kernels without a GPU: interpreted, and compiled ahead of time."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys

import pytest
from places import ROOT

triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def run(*command: str, **environment: str) -> str:
    """Its output; a failure shows it. One thread, as the tensors are small."""
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    child = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=settings, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stdout[-8000:] + child.stderr[-4000:]
    return child.stdout


@triton
@pytest.mark.parametrize("file", ["triton_interpreted", "triton_attention"])
def test_interpreted_kernels_equal_their_definitions(
    file: str, pytestconfig: pytest.Config
) -> None:
    every = ["--all"] if pytestconfig.getoption("--all") else []
    output = run("-m", "pytest", *every, f"tests/support/{file}.py", TRITON_INTERPRET="1")
    summary = re.search(r"(\d+) passed(, \d+ deselected)? in", output)
    assert summary is not None, output[-2000:]
    most = 180 if file == "triton_attention" else 70
    assert int(summary[1]) > (most if every else 20)


@pytest.mark.slow
@triton
def test_meta_steps_are_recorded_while_kernels_compile() -> None:
    """Triton's files and threads are not the model's."""
    output = run(
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "tests/support/triton_jit.py",
        TRITON_INTERPRET="0",
    )
    assert "1 passed" in output


@triton
def test_default_tiles_compile_for_sm_90_without_spills() -> None:
    """But for a few bytes by the compiler of Triton 3.6, which lie in the nearest cache."""
    old = importlib.metadata.version("triton").startswith("3.6.")
    asked = ["--arch", "90", "--default", "--check", "64" if old else "0"]
    output = run("-m", "benchmarks.programs.triton_resources", *asked)
    kernels = {"gemm_kernel", "gather_kernel", "wgrad_kernel", "fold_kernel"}
    kernels |= {"forward_kernel", "queries_kernel", "keys_kernel", "tangents_kernel"}
    kernels |= {"second_queries_kernel", "second_keys_kernel"}
    kernels |= {"embedding_kernel", "embedding_grad_kernel"}
    assert kernels == set(re.findall(r"kernel=(\w+)", output))
    assert "0 default tiles spill more than" in output


def test_without_triton_the_import_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.split(".")[:2] == ["fastmaml", "kernels"]]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ImportError, match="pip install triton"):
        importlib.import_module("fastmaml.kernels")
