"""Seeds of tasks, and the keys of their random draws.

A dropout mask must be fresh for every task and inner step, and the same again when a step is run
again for its derivative, whether tasks run batched, in chunks or in a loop. So it is not drawn from
a generator's stream: it is a hash of a key (`ops.dropout_mask`), and a traced meta-step takes its
randomness as an ordinary input.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import torch
from torch import Tensor

from fastmaml.engine.base import functorch
from fastmaml.ops.dropout_mask import mixed

_SEEDS = 2**32


def task_seeds(tasks: int, device: torch.device) -> Tensor:
    """``[tasks]`` int64 seeds, drawn from torch's global CPU generator (`torch.manual_seed`)."""
    drawn = torch.randint(_SEEDS, (tasks,))
    # Blocking, the copy would wait for all that the device has been given to do.
    return drawn if device.type == "cpu" else drawn.to(device, non_blocking=True)


def step_keys(seeds: Tensor, step: int, query: bool) -> Tensor:
    """``[tasks]`` keys of one forward pass: of the support set at `step`, or of the query set."""
    return mixed(seeds + mixed(seeds + 2 * step + int(query))) << 20


def python_seed(key: Tensor, function: str) -> int:
    """The key as a number, for functions that draw from a generator.

    Raises:
        RuntimeError: under vmap, where every task has its own key and none has a value.
    """
    if functorch.is_batchedtensor(key):
        raise RuntimeError(
            f"the model calls torch's {function}, whose numbers vmap cannot draw again for each "
            "task (dropout can be)"
        )
    # The user's code reads no value by this.
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        return int(mixed(key))


def foreign_state() -> tuple[Any, ...]:
    """The state of Python's and numpy's global generators, whose draws no key decides."""
    numpy = sys.modules.get("numpy")  # never imported here: torch alone is needed
    if numpy is None:
        return (random.getstate(),)
    name, words, *rest = numpy.random.get_state()
    return random.getstate(), name, words.tobytes(), *rest
