"""Compile what the timings need, several first calls at a time.

What they compile stays in Triton's cache; which tiles they prefer, measured side by side on one
GPU, does not: the timings measure again, each alone.
"""

from __future__ import annotations

import os
from typing import Any

from benchmarks.gpu_parts.answer import Answer
from benchmarks.gpu_parts.pool import Check, checked, processes


def main(answer: Answer) -> None:
    """Of every workload and family."""
    from benchmarks.gpu_parts.steps import FIRST, QUICK

    os.environ["FASTMAML_GPU_QUICK"] = str(int(answer.small))
    works = QUICK if answer.small else FIRST
    names = [f"{key}/{name}" for key in works for name in ("fastmaml", "fastmaml, first order")]
    names += [f"products/{mode}" for mode in ("float32", "tf32", "bfloat16")]
    names += [f"attention/{dtype}" for dtype in ("float32", "bfloat16")]
    checked(answer, "benchmarks.gpu_parts.kernels", names, processes(answer))


def checks(device: str) -> Check:
    """What a process of the pool calls for each name."""
    quick = os.environ["FASTMAML_GPU_QUICK"] == "1"

    def check(name: str) -> dict[str, Any]:
        what, _, which = name.partition("/")
        if what == "products":
            products(which, quick)
        elif what == "attention":
            attention(which, device, quick)
        else:
            step(what, which, device)
        return {}

    return check


def step(workload: str, name: str, device: str) -> None:
    """The first call of a contestant."""
    from benchmarks.gpu_parts.steps import built, setup_of
    from benchmarks.support.workloads import WORKLOADS, arrays

    work = WORKLOADS[workload]
    built(name, setup_of(work, device, "float32", arrays(work))).run()


def products(mode: str, small: bool) -> None:
    """Every member of the two families."""
    import torch

    from benchmarks.programs import triton_kernels

    if small:
        triton_kernels.tiny()
    dtype, precision = triton_kernels.MODES[mode]
    torch.backends.cuda.matmul.fp32_precision = precision
    for family in (triton_kernels.linears, triton_kernels.convolutions):
        for work in family(dtype):
            work.ours()


def attention(dtype: str, device: str, quick: bool) -> None:
    """Value and both derivatives."""
    import torch

    from benchmarks.gpu_parts.attention import BATCH, HEADS, SIZE, TASKS, twice
    from fastmaml import ops

    if device == "cpu" and dtype == "bfloat16":
        return  # Triton's interpreter multiplies it wrongly
    shape = (1, 1, 2, 16, 8) if quick else (TASKS, BATCH, HEADS, 512, SIZE)
    q, k, v, g, *h = (
        torch.randn(shape, device=device, dtype=getattr(torch, dtype)) for _ in range(7)
    )
    twice(lambda *x: ops.task_attention(*x, backend="triton"), [q, k, v], g, h)()
