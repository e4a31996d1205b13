"""The contract on another device: the meta-gradient is the CPU's."""

from __future__ import annotations

import pytest
import torch
from problems import EXACT, OFFLOADED, RULES, Problem, meta_gradient, relative

from fastmaml import ops

RULES_THERE = ("sgd", "adam", "lslr")


def paths(device: str) -> list[tuple[str, str]]:
    """Executors and backends of a device; Triton's kernels run on a CPU when interpreted."""
    own = "cuda" if device == "cuda" else "cpp"
    backends = ("reference", own, "triton")
    return [(executor, backend) for executor in ("eager", "captured") for backend in backends]


CLOSE = {torch.float64: 1e-9, torch.float32: 1e-4}


def assert_like_the_cpu(
    problem: Problem,
    rule: str,
    method: str,
    path: tuple[str, str],
    device: str,
    dtype: torch.dtype = torch.float64,
) -> None:
    """Replayed with other weights too: a recording reads them live.

    In float32, in which Triton has kernels of its own for all, beside float64 on the CPU.
    """
    executor, backend = path
    status = ops.status()[backend]
    if not status.startswith("available"):
        pytest.skip(f"{backend}: {status}")
    gradient = {**EXACT, **OFFLOADED}[method]
    options = {"gradient": gradient, "executor": executor, "backend": backend}
    here = problem.maml(RULES[rule](), gradient=gradient, executor="eager")
    there = problem.maml(RULES[rule](), **options).to(device, dtype)
    on_device = problem.episodes.to(device, dtype)
    if executor == "captured" and gradient.on(torch.device(device)).unrecordable:
        with pytest.raises(RuntimeError, match="copies what it keeps to the CPU and back"):
            there(on_device)
        return
    for _ in range(2):
        expected = meta_gradient(here, problem.episodes)
        found = meta_gradient(there, on_device)
        assert relative(found.cpu().double(), expected) < CLOSE[dtype]
        with torch.no_grad():
            for a, b in zip(here.parameters(), there.parameters(), strict=True):
                b.copy_(a.mul_(1.01))
