"""Tile shapes, and a model of their speed that picks one without measuring."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from .launch import Product


class Tile(NamedTuple):
    """A program computes [m, n] of a product, k terms at a time."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


# On the FMA units a long k only costs registers; tensor cores want 128 bytes of it, and four warps
# with m >= 64 for Hopper's wgmma. Small tiles are for a task's few examples and classes, and for
# the nine terms of a first convolution, whose gathered addresses would fill the registers.
FMA = (
    Tile(128, 64, 16, 8, 3),
    Tile(64, 64, 16, 4, 3),
    Tile(64, 32, 16, 4, 3),
    Tile(32, 64, 16, 4, 3),
    Tile(32, 32, 16, 4, 3),
    Tile(64, 16, 32, 4, 3),
    Tile(16, 64, 32, 4, 3),
    Tile(16, 16, 32, 2, 3),
)
TF32 = (
    Tile(128, 128, 32, 8, 3),
    Tile(128, 64, 32, 4, 4),
    Tile(64, 128, 32, 4, 4),
    Tile(64, 64, 32, 4, 4),
    Tile(64, 32, 32, 4, 4),
    Tile(32, 64, 32, 4, 4),
    Tile(32, 32, 32, 4, 4),
    Tile(128, 64, 16, 8, 3),
    Tile(64, 64, 16, 4, 3),
    Tile(64, 16, 32, 4, 3),
    Tile(16, 64, 32, 4, 3),
    Tile(16, 16, 64, 2, 3),
)
HALF = (
    Tile(128, 128, 64, 8, 3),
    Tile(128, 64, 64, 4, 4),
    Tile(64, 128, 64, 4, 4),
    Tile(64, 64, 64, 4, 4),
    Tile(64, 32, 64, 4, 4),
    Tile(32, 64, 64, 4, 4),
    Tile(32, 32, 64, 4, 4),
    Tile(128, 64, 16, 8, 3),
    Tile(64, 64, 16, 4, 3),
    Tile(64, 16, 64, 4, 3),
    Tile(16, 64, 64, 4, 3),
    Tile(16, 16, 64, 2, 3),
)

# Of one multiprocessor: multiply-adds a cycle, bytes a cycle from the L2 cache and from shared
# memory (where half are broadcast), and the cycles that a program spends outside its loop, on each
# of its steps, and on summing the parts of a split product, a launch more. Ratios matter here.
FMA_RATE, TF32_RATE, HALF_RATE = 128, 1024, 2048
L2, SHARED = 32, 256
PROGRAM, STEP, FOLD = 1500, 50, 3000
MOST_SPLITS = 32


def candidates(product: Product) -> tuple[Tile, ...]:
    """The tiles for ``product``, by its model the fastest first."""
    tiles = HALF if product.dtype.itemsize == 2 else TF32 if product.precision == "tf32" else FMA
    return tuple(sorted(tiles, key=lambda tile: cycles(product, tile)))


def splits(product: Product, tile: Tile) -> int:
    """Into how many parts k is cut, so that few programs still fill the device."""
    if not product.splittable:
        return 1
    programs = product.tasks * -(-product.m // tile.m) * -(-product.n // tile.n)
    room = multiprocessors(product.device) // max(programs, 1)
    return max(1, min(room, product.k // (8 * tile.k), MOST_SPLITS))


def cycles(product: Product, tile: Tile) -> float:
    """A modelled time: waves of programs, each bound by its arithmetic or by its operands."""
    size = product.dtype.itemsize
    term = (tile.m + tile.n) * size / L2
    if size == 2 or product.precision == "tf32":
        term = max(term, tile.m * tile.n / (HALF_RATE if size == 2 else TF32_RATE))
    else:  # each thread multiplies a square of its own, whose sides it reads from shared memory
        threads = 32 * tile.warps
        sides = 2 * (tile.m * tile.n / threads) ** 0.5
        term = max(term, tile.m * tile.n / FMA_RATE, threads * sides * size / SHARED)
    parts = splits(product, tile)
    programs = product.tasks * parts * -(-product.m // tile.m) * -(-product.n // tile.n)
    waves = -(-programs // multiprocessors(product.device))
    steps = -(-product.k // (parts * tile.k))
    fold = FOLD if parts > 1 else 0
    return waves * (steps * (tile.k * term + STEP) + PROGRAM) + fold


@cache
def multiprocessors(device: torch.device) -> int:
    """Of ``device``; those of an H100 where there is none, as when compiling ahead of time."""
    if device.type != "cuda":
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count
