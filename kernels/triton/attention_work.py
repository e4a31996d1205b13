"""One attention as the kernels see it: its tensors, its tiles, and launches over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

import triton

from .launch import Launch, precision


class Block(NamedTuple):
    """A program holds [rows, keys] of the probabilities."""

    rows: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Attention:
    """q [T, B, H, L, D], k [T, B, H, S, D], v [T, B, H, S, E], mask [T, B, H, L, S] or None.

    The last dimensions of q, k and v are dense. ``key`` [T] makes the dropout masks.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mask: torch.Tensor | None
    key: torch.Tensor | None
    causal: bool
    scale: float
    dropout: float

    def launch(self, kernel: Any, rows: bool, block: Block, **more: Any) -> Launch:
        """``kernel`` over tiles of rows, or of keys; it is given what it has parameters for."""
        tasks, batch, heads, length, width = self.q.shape
        keys, outputs = self.v.shape[3:]
        tiles = triton.cdiv(length, block.rows) if rows else triton.cdiv(keys, block.keys)
        known = {
            "q": self.q, "k": self.k, "v": self.v, "mask": self.mask, "key": self.key,
            "qs": self.q.stride(), "ks": self.k.stride(), "vs": self.v.stride(),
            "ms": strides(self.mask),
            "B": batch, "H": heads, "L": length, "S": keys, "tiles": tiles,
            "scale": self.scale,
            "threshold": min(int(self.dropout * 2**32), 2**32 - 1),
            "factor": factor(self.dropout, self.q.dtype),
            "D": width, "E": outputs,
            "CAUSAL": self.causal,
            "DROPOUT": self.dropout > 0,
            "PRECISION": precision(self.q.dtype),
            "BM": block.rows,
            "BN": block.keys,
            "BD": max(16, triton.next_power_of_2(width)),
            "BE": max(16, triton.next_power_of_2(outputs)),
            **more,
        }  # fmt: skip
        arguments = {name: known[name] for name in kernel.arg_names}
        programs = tasks * batch * heads * tiles
        return Launch(kernel, programs, arguments, block.warps, block.stages)


def strides(x: torch.Tensor | None) -> tuple[int, ...]:
    """Of a tensor that may be missing."""
    return (0,) * 5 if x is None else x.stride()


def factor(dropout: float, dtype: torch.dtype) -> float:
    """What the kept probabilities are multiplied by, rounded as a mask of ``dtype`` holds it."""
    return 0.0 if dropout >= 1 else torch.tensor(1 / (1 - dropout), dtype=dtype).item()


# Of the larger tiles, those whose kernels spill no registers and need at most 99 KB of shared
# memory, up to a head size. On the FMA units a thread holds whole rows of its operands, of the
# head's size each, which leaves room for small ones only.
HALF = {
    "forward": {64: Block(128, 64, 8, 2), 128: Block(64, 32, 4, 2)},
    "backward": {32: Block(64, 64, 4, 2), 64: Block(64, 32, 4, 2), 128: Block(64, 32, 8, 2)},
    "second": {64: Block(32, 32, 4, 2), 128: Block(32, 32, 8, 2)},
}
TF32 = {
    "forward": {64: Block(64, 32, 4, 2), 128: Block(64, 32, 8, 1)},
    "backward": {32: Block(64, 32, 8, 2), 64: Block(64, 32, 4, 2), 128: Block(32, 32, 4, 2)},
    "second": {32: Block(32, 32, 8, 2), 64: Block(32, 32, 4, 2), 128: Block(32, 16, 4, 2)},
}
FMA = {
    "forward": {64: Block(32, 32, 4, 1), 128: Block(32, 32, 8, 1)},
    "backward": {64: Block(32, 32, 8, 1), 128: Block(16, 16, 8, 1)},
    "second": {32: Block(32, 16, 8, 1), 128: Block(16, 16, 8, 1)},
}


def block(derivative: str, work: Attention) -> Block:
    """For "forward", "backward" or "second" of ``work``."""
    dtype = work.q.dtype
    tiles = HALF if dtype.itemsize == 2 else TF32 if precision(dtype) == "tf32" else FMA
    width = max(work.q.shape[4], work.v.shape[4])
    return next(tile for most, tile in tiles[derivative].items() if width <= most)
