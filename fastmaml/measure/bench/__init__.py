"""`bench`: what a meta-step costs by gradient method, inner steps, tasks, backend and executor."""

from fastmaml.measure.bench.bench import bench
from fastmaml.measure.bench.budget import Fits, Limit
from fastmaml.measure.bench.cells import Cell, Configuration
from fastmaml.measure.bench.price import Price
from fastmaml.measure.bench.sizes import bytes_of
from fastmaml.measure.bench.sweep import Sweep

__all__ = [
    "Cell",
    "Configuration",
    "Fits",
    "Limit",
    "Price",
    "Sweep",
    "bench",
    "bytes_of",
]
