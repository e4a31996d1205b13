"""The second half of a split product: partial sums are added in order, never atomically."""

# ruff: noqa: N803 (constants of a kernel are capitals)

from __future__ import annotations

import torch

import triton
import triton.language as tl

from .launch import Launch

BLOCK = 1024


@triton.jit
def fold_one(parts, out, size, splits, block, BLOCK: tl.constexpr):
    """out[i] = sum over s of parts[s, i], for the i of ``block``."""
    index = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < size
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for _ in range(0, splits):
        total += tl.load(parts + index, mask=mask, other=0.0)
        parts += size
    tl.store(out + index, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def fold_kernel(parts, out, size, blocks, bias_parts, bias, bias_size, splits, BLOCK: tl.constexpr):
    """out[i] = sum of parts[s, i]; programs from ``blocks`` on do the same for the bias."""
    program = tl.program_id(0)
    if program < blocks:
        fold_one(parts, out, size, splits, program, BLOCK)
    elif bias is not None:
        fold_one(bias_parts, bias, bias_size, splits, program - blocks, BLOCK)


def fold(
    parts: torch.Tensor,
    out: torch.Tensor,
    bias_parts: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> Launch:
    """``parts`` float32 [splits, ...] summed into ``out``, in memory order; likewise the bias."""
    size, extra = parts[0].numel(), 0 if bias_parts is None else bias_parts[0].numel()
    blocks = triton.cdiv(size, BLOCK)
    arguments = {
        "parts": parts,
        "out": out,
        "size": size,
        "blocks": blocks,
        "bias_parts": bias_parts,
        "bias": bias,
        "bias_size": extra,
        "splits": parts.shape[0],
        "BLOCK": BLOCK,
    }
    return Launch(fold_kernel, blocks + triton.cdiv(extra, BLOCK), arguments)
