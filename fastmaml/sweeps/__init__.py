"""`bench`: what a meta-step costs by gradient method, inner steps, tasks, backend and executor."""

from fastmaml.sweeps.bench import bench
from fastmaml.sweeps.budget import Fits, Limit
from fastmaml.sweeps.cells import Cell, Configuration
from fastmaml.sweeps.price import Price
from fastmaml.sweeps.sizes import bytes_of
from fastmaml.sweeps.sweep import Sweep

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
