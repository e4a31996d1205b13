"""The parts of `benchmarks/gpu.py`, in their order; each runs in a process of its own.

Nothing here imports torch: the first part makes the environment that has it.
"""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """A module of this package with a ``main(answer)``.

    Attributes:
        name: of the module.
        box: seconds that it may take.
        what: it does, in a few words.
    """

    name: str
    box: float
    what: str


PARTS = (
    Part("build", 90, "an environment, and the native module for this GPU"),
    Part("smoke", 60, "every raw op against its definition"),
    Part("exactness", 50, "meta-gradients: eager and captured, every backend, against the CPU"),
    Part("graphs", 25, "captures, streams and TF32's switches: what no CPU can tell"),
    Part("kernels", 45, "compiles what the timings need, on all cores"),
    Part("steps", 95, "the six meta-steps beside a loop, vmap and its CUDA graph"),
    Part("jax", 35, "the same in JAX"),
    Part("update", 15, "inner_update's bandwidth beside a copy's"),
    Part("products", 35, "linear and convolution beside cuBLAS and cuDNN"),
    Part("attention", 25, "attention's second derivative beside the math SDPA's"),
    Part("memory", 15, "peak memory against the number of inner steps"),
    Part("tests", 10_000, "all tests that need a GPU, as many as there is time for"),
)
