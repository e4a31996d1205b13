"""A kernel launch as a value: it can be run, timed, or compiled ahead of time."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch

import triton
from triton.runtime.errors import OutOfResources
from triton.runtime.interpreter import InterpretedFunction

from .tiles import Tile


@dataclass(frozen=True)
class Launch:
    """One launch of ``kernel`` over a one-dimensional grid of ``programs``."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]  # in the order of the kernel's parameters
    warps: int = 4
    stages: int = 1

    def run(self) -> None:
        """Enqueue on the current stream; an empty grid is nothing to do."""
        if self.programs:
            self.kernel[(self.programs,)](**self.arguments, **self.options)

    def compile(self) -> None:
        """For the current device, without running; most of it without Python's lock."""
        made = self.kernel.warmup(grid=(self.programs,), **self.arguments, **self.options)
        link = getattr(made, "_init_handles", None)  # the launcher, which a C compiler makes
        if link is not None:  # else the first run makes it
            with contextlib.suppress(OutOfResources):  # a run will say so
                link()

    @property
    def options(self) -> dict[str, int | bool]:
        """Of the compiler. Multiply-adds stay fused, whatever this Triton's default is."""
        return {
            "num_warps": self.warps,
            "num_stages": self.stages,
            "enable_fp_fusion": True,
        }


@dataclass(frozen=True)
class Product:
    """A family member's work as matrix products, from which its tile is chosen.

    ``tasks`` products of [m, k] by [k, n]; ``splittable`` where k may be cut into parts that are
    summed afterwards.
    """

    op: str
    tasks: int
    m: int
    n: int
    k: int
    dtype: torch.dtype
    precision: str
    device: torch.device
    splittable: bool = False


def grid(product: Product, tile: Tile, splits: int = 1) -> int:
    """Programs of ``tile`` over ``product``."""
    tiles = triton.cdiv(product.m, tile.m) * triton.cdiv(product.n, tile.n)
    return product.tasks * splits * tiles


def precision(dtype: torch.dtype) -> str:
    """How float32 operands are multiplied: "ieee", or "tf32" where PyTorch's switch allows it."""
    allowed = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allowed and dtype == torch.float32 else "ieee"


def interpreted(kernel: Any) -> bool:
    """Whether ``kernel`` runs under Triton's interpreter, which also takes CPU tensors."""
    return isinstance(kernel, InterpretedFunction)
