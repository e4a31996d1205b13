"""Random masks that are a pure function of a key.

A dropout mask must be fresh for every task and inner step, and the same again when a step is run
again for its derivative, whether tasks run batched, in chunks or in a loop. So it is not drawn from
a generator's stream: element i is kept where a hash of (key, i) falls in the right part of its
range. A traced meta-step then takes its randomness as an ordinary input.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_STRIDE = 0x9E3779B1  # the golden ratio's bits: spreads neighbouring indices over the range


def task_seeds(tasks: int, device: torch.device) -> Tensor:
    """``[tasks]`` int64 seeds, drawn from torch's global CPU generator (`torch.manual_seed`)."""
    return torch.randint(_MASK + 1, (tasks,)).to(device)


def step_keys(seeds: Tensor, step: int, query: bool) -> Tensor:
    """``[tasks]`` keys of one forward pass: of the support set at `step`, or of the query set."""
    return _hash(seeds + _hash(seeds + 2 * step + int(query))) << 20


def dropout_mask(shape: list[int], p: float, key: Tensor, like: Tensor) -> Tensor:
    """A mask of `shape` in `like`'s dtype: 0 with probability `p`, else 1/(1-p).

    Args:
        shape: the mask's shape for one task.
        p: the probability of dropping, resolved to 2^-32.
        key: int64 scalar; equal keys give equal masks.
        like: gives the dtype and device.
    """
    size = 1
    for n in shape:
        size *= n
    index = torch.arange(size, device=like.device)
    bits = _hash(index * _STRIDE + _hash(key))
    keep = bits >= int(p * (_MASK + 1))
    scale = 0.0 if p >= 1 else 1 / (1 - p)
    return (keep.to(like.dtype) * scale).view(shape)


def python_seed(key: Tensor, function: str) -> int:
    """The key as a number, for functions that draw from a generator.

    Raises:
        RuntimeError: under vmap, where every task has its own key and none has a value.
    """
    if torch._C._functorch.is_batchedtensor(key):
        raise RuntimeError(
            f"the model calls torch's {function}, whose numbers vmap cannot draw again for each "
            "task (dropout can be)"
        )
    return int(_hash(key))


def _hash(x: Tensor) -> Tensor:
    """Thirty-two well mixed bits of an int64 tensor (an xor-shift-multiply finaliser)."""
    x = (x ^ (x >> 32)) & _MASK
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)
