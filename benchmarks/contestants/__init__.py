"""Who takes part in the timing of meta-steps.

Each contestant is a module here with ``build(name, setup)``, and runs in a worker process of its
own. Nothing here imports torch: JAX's worker has none.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.support.workloads import Workload

BOTH = ("cpu", "cuda")
LOOP, LOOP_FIRST = "hand-written loop", "hand-written loop, first order"


@dataclass(frozen=True)
class Contestant:
    """A way to compute the meta-gradient.

    Attributes:
        module: the module of this package that builds it.
        order: 1 for first order, 2 for exact.
        devices: where it runs.
        elsewhere: why on no other.
        peers: the environment that benchmarks/peers/install.sh makes for it: "torch", "jax", or
            "" for this program's own Python.
        slow: its first call may take minutes; it takes part with ``--slow`` only.
    """

    module: str
    order: int = 2
    devices: tuple[str, ...] = BOTH
    elsewhere: str = ""
    peers: str = ""
    slow: bool = False

    def python(self, peers: Path | None, own: str) -> str | None:
        """The Python that runs it; None where that environment was not made."""
        if not self.peers or (peers is None and (self.peers == "torch" or has_jax())):
            return own
        path = peers / self.peers / "bin" / "python" if peers else None
        return str(path) if path and path.exists() else None


def has_jax() -> bool:
    """Whether this program's own Python has JAX, as on a machine with a GPU."""
    return importlib.util.find_spec("jax") is not None


CONTESTANTS = {
    LOOP: Contestant("loops"),
    "learn2learn": Contestant("loops", peers="torch"),
    "higher": Contestant("loops", peers="torch"),
    "TorchOpt": Contestant("loops", peers="torch"),
    "torch.func vmap": Contestant("transforms"),
    "torch.compile of vmap": Contestant("transforms", slow=True),
    "CUDA graph of vmap": Contestant("transforms", devices=("cuda",), elsewhere="needs a GPU"),
    "JAX jit of vmap": Contestant("jax_jit", peers="jax"),
    "JAX jit of lax.map": Contestant("jax_jit", peers="jax"),
    "fastmaml.compat.learn2learn": Contestant("loops"),
    "fastmaml.compat.higher": Contestant("loops"),
    "fastmaml per_task": Contestant("own"),
    "fastmaml": Contestant("own"),
    "fastmaml captured, reference ops": Contestant("own"),
    "fastmaml eager, reference ops": Contestant("own"),
    "fastmaml, cuda kernels": Contestant("own", devices=("cuda",), elsewhere="needs a GPU"),
    "fastmaml compiled": Contestant("own", slow=True),
    LOOP_FIRST: Contestant("loops", order=1),
    "fastmaml, first order": Contestant("own", order=1),
}


@dataclass(frozen=True)
class Setup:
    """What a contestant is given: float arrays are of the dtype already."""

    work: Workload
    weights: Mapping[str, Any]
    episodes: Mapping[str, Any]
    device: str
    dtype: str
    tf32: bool


class Built(NamedTuple):
    """A contestant, ready.

    Attributes:
        run: one meta-step; returns when the device has the gradient.
        arrays: of what `run` returned, the gradient as NumPy arrays by parameter, in the shapes of
            torch.
        versions: of the packages that it stands on.
    """

    run: Callable[[], Any]
    arrays: Callable[[Any], dict[str, Any]]
    versions: dict[str, str]
