"""How the pure meta-step runs: eagerly, from a recording, or compiled by Inductor."""

from __future__ import annotations

from typing import Literal

import torch

from fastmaml import ops
from fastmaml.engine.guards.modes_around import modes_around
from fastmaml.engine.recording.captured import Captured
from fastmaml.engine.recording.inductor import compiled_by_inductor
from fastmaml.engine.step.meta_step import meta_step
from fastmaml.engine.step.program import Executor
from fastmaml.ops._load import Backend

ExecutorName = Literal["eager", "captured", "compiled"]

EXECUTORS: dict[ExecutorName, str] = {
    "eager": "available",
    "captured": "available (the default where a meta-step can be recorded)",
    "compiled": "available (Inductor, slow to begin)",
}
"""Whether each is there."""


def make_executor(name: ExecutorName | None, spot_checks: bool = True) -> Executor:
    """The executor of this name; None captures where that is possible."""
    if name == "eager":
        return meta_step
    if name == "compiled":
        return Captured(compiled_by_inductor, required=True, spot_checks=spot_checks)
    return Captured(required=name == "captured", spot_checks=spot_checks)


def evaluating(executor: ExecutorName | None) -> ExecutorName | None:
    """The executor that evaluates where this one trains: Inductor would take minutes for it."""
    return None if executor == "compiled" else executor


def lanes(executor: ExecutorName | None, device: torch.device) -> int:
    """How many chunks of tasks run from recordings at the same time; 0 where none is recorded."""
    if executor not in (None, "captured") or device.type != "cpu":
        return 0
    return torch.get_num_threads() if ops.parallel_region() else 1


def chosen_backend(
    asked: Backend | None, executor: ExecutorName | None, device: torch.device
) -> str:
    """The backend that runs on this device.

    Args:
        asked: the one asked for; None for the fastest there is.
        executor: the name of the executor, or None. Inductor makes its own kernels from the
            reference ops, and eager execution calls the ops' functions one by one, which costs more
            than small ones save: both get the reference unless another backend is asked for.
        device: where the model is.

    Raises:
        ValueError: that backend cannot run there; the message says why.
    """
    if executor == "compiled" and asked not in (None, "reference"):
        raise ValueError(
            f"backend={asked!r} with executor='compiled': Inductor makes its own kernels from the "
            "reference ops. Leave backend out, or use executor='captured'."
        )
    if asked is None and modes_around():
        return "reference"  # the user's modes are to see what the model calls
    if asked is None:
        return ops.default_backend(device) if executor in (None, "captured") else "reference"
    if asked != "reference" and device.type not in ops.kernels(asked).devices:
        raise ValueError(
            f"backend={asked!r} runs on {', '.join(sorted(ops.kernels(asked).devices))}, and the "
            f"model is on {device}: move the model, or leave backend out."
        )
    return asked
