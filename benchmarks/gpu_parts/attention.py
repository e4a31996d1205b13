"""Attention with its second derivative, beside the math SDPA, which alone in PyTorch has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import grad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu_parts.answer import Answer
from benchmarks.gpu_parts.timing import Peak, in_turns
from fastmaml import ops

TASKS, BATCH, HEADS, SIZE = 2, 1, 12, 64
LENGTHS = (512, 1024, 2048, 4096)
CLOSE = {"float32": 1e-4, "bfloat16": 4e-2}  # relative, over all second derivatives
Run = Callable[[], list[Tensor]]


def main(answer: Answer) -> None:
    """By length, in the two dtypes that are used; the last two lengths tell how memory grows."""
    torch.manual_seed(0)
    # Else PyTorch's math in bfloat16 multiplies in float32, and would be no rival.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    lengths = (16, 32) if answer.small else LENGTHS
    for dtype in ("float32", "bfloat16"):
        if answer.device == "cpu" and dtype == "bfloat16":
            continue  # Triton's interpreter multiplies it wrongly
        peaks: dict[int, float | None] = {}
        for length in lengths:
            what = f"{length} tokens, {dtype}"
            if (answer.left > 4 or answer.small) and answer.begins(what):
                with answer.guarding(what):
                    peaks[length] = measured(answer, length, dtype)
        longest = max(peaks, default=0)
        long, half = peaks.get(longest), peaks.get(longest // 2)
        if long and half:
            answer.say(f"{dtype}: twice the length, {long / half:.2f}x the memory")


def twice(attend: Callable[..., Tensor], given: list[Tensor], g: Tensor, h: list[Tensor]) -> Run:
    """The gradient, and a product of its Jacobian with vectors: both derivatives of a meta-step.

    Args:
        attend: of queries, keys and values.
        given: these.
        g: what the outputs' gradient is.
        h: the vectors, in the shapes of `given`.
    """

    def run() -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in given]
        cotangent = g.detach().requires_grad_()
        first = grad(attend(*leaves), leaves, cotangent, create_graph=True)
        return list(grad(first, [*leaves, cotangent], h))

    return run


def math(*given: Tensor) -> Tensor:
    flat = [x.flatten(0, 1) for x in given]
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(*flat).unflatten(0, given[0].shape[:2])


def off_by(found: list[Tensor], exact: list[Tensor]) -> float:
    """The norm of the difference, as a share of the norm."""
    pairs = zip(found, exact, strict=True)
    apart = sum(float((x.double() - y).square().sum()) for x, y in pairs)
    return float((apart / sum(float(y.square().sum()) for y in exact)) ** 0.5)


def measured(answer: Answer, length: int, dtype: str) -> float | None:
    """A row; the peak of memory of ours, in MB."""
    shape = (TASKS, BATCH, HEADS, length, SIZE) if not answer.small else (1, 1, 2, length, 8)
    kind = getattr(torch, dtype)
    given = [torch.randn(shape, device=answer.device, dtype=kind) for _ in range(3)]
    g, *h = (torch.randn_like(given[0]) for _ in range(4))

    def ours(*x: Tensor) -> Tensor:
        return ops.task_attention(*x, backend="triton")

    runs = {n: twice(f, given, g, h) for n, f in {"fastmaml": ours, "math SDPA": math}.items()}
    wide = [x.double() for x in given]
    exact = twice(math, wide, g.double(), [x.double() for x in h])()
    error = off_by(runs["fastmaml"](), exact)
    del wide, exact
    row: dict[str, Any] = {"length": length, "dtype": dtype, "shape": list(shape), "error": error}
    if not error <= CLOSE[dtype]:
        answer.row(**row)
        answer.fail(f"{length} tokens in {dtype}: off by {error:.1e}")
        return None
    row["mb"] = {}
    for name, run in runs.items():
        with Peak(answer.device) as peak:
            run()
        row["mb"][name] = peak.mb
    row["microseconds"] = times = in_turns(runs, answer.device, 2 if answer.small else 8)
    ratio = times["math SDPA"]["median"] / times["fastmaml"]["median"]
    answer.row(**row, faster=round(ratio, 2))
    answer.say(
        f"{length} tokens, {dtype}: {times['fastmaml']['median'] / 1e3:.2f} ms, {ratio:.1f}x "
        f"faster than math SDPA; {row['mb']['fastmaml']} against {row['mb']['math SDPA']} MB"
    )
    return row["mb"]["fastmaml"]
