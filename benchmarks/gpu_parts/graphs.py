"""Captures, streams, generators and TF32's switches on the device: few tests, which tell much."""

from __future__ import annotations

from benchmarks.gpu_parts.answer import Answer
from benchmarks.gpu_parts.pool import processes
from benchmarks.gpu_parts.tests import GRAPHS, run


def main(answer: Answer) -> None:
    """On a CPU the stand-in for graphs besides, and what needs no GPU."""
    names = GRAPHS if answer.device == "cuda" else ("engine/recording/test_cuda_graphs", *GRAPHS)
    which = ["-m", "gpu" if answer.device == "cuda" else "not gpu"]
    run(answer, [*which, *(f"tests/{name}.py" for name in names)], min(4, processes(answer)))
