"""PyTorch's own database of operators with sample inputs (`op_db`), as far as it is used here."""

from __future__ import annotations

import functools
import itertools
import random
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

LOOKED_AT, KEPT = 400, 48
"""Samples of an operator that are looked at, and of those that serve."""

LARGEST = 20000
"""Elements of a sample's tensors, at most."""


@functools.cache
def operators() -> dict[str, Any]:
    """Every operator of numbers that have derivatives, by its name and variant."""
    with warnings.catch_warnings():  # imported here, as it takes seconds
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    return {op.full_name: op for op in op_db if dtype_of(op) is not None}


def dtype_of(op: Any) -> torch.dtype | None:
    """float64, or complex128 where an operator takes only complex numbers."""
    dtypes = (torch.float64, torch.complex128)
    return next((d for d in dtypes if op.supports_dtype(d, "cpu")), None)


def samples(op: Any) -> Iterator[tuple[int, Any]]:
    """Numbered samples, neither empty nor large: the largest, the smallest, a middle one, ..."""
    torch.manual_seed(0)
    random.seed(0)
    differentiable = op.supports_autograd
    found = op.sample_inputs("cpu", dtype_of(op), requires_grad=differentiable)
    numbered = [
        (i, sample)
        for i, sample in enumerate(itertools.islice(found, LOOKED_AT))
        if _usable(sample, differentiable)
    ][:KEPT]
    numbered.sort(key=lambda pair: -_trainable(pair[1]))
    for place in _spread(len(numbered)):
        yield numbered[place]


def _usable(sample: Any, differentiable: bool) -> bool:
    tensors = [x for x in tree_leaves(parts(sample)) if isinstance(x, Tensor)]
    trainable = [x for x in tensors if x.requires_grad]
    small = all(0 < x.numel() <= LARGEST for x in tensors)
    return small and (bool(trainable) or not differentiable)


def _trainable(sample: Any) -> int:
    """How many numbers have a derivative."""
    tensors = tree_leaves(parts(sample))
    return sum(x.numel() for x in tensors if isinstance(x, Tensor) and x.requires_grad)


def draws(op: Any) -> bool:
    """Whether the operator is random; the database then seeds it, which fastmaml's draws ignore."""
    code = getattr(op.op, "__code__", None)
    return code is not None and "wrapper_set_seed" in code.co_names


def parts(sample: Any) -> tuple[Any, ...]:
    """What the operator is called with."""
    return sample.input, sample.args, sample.kwargs


def _spread(count: int) -> list[int]:
    """0, the last, the middle, the quarters, ...: all of them, far ones first."""
    places = [0, count - 1]
    step = count
    while step > 1:
        step = (step + 1) // 2
        places += range(step, count, step)
    return list(dict.fromkeys(p for p in places if 0 <= p < count))
