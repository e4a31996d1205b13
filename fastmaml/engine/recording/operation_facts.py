"""What operations of PyTorch's do besides computing, as far as a recording has to know."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from fastmaml.engine.derivatives.value_reads import OWN


class Facts(NamedTuple):
    """What the recorder asks at each call of an operation.

    Attributes:
        seeded: it may draw random numbers.
        list_in_place: it writes to lists of tensors.
        has_derivative: of its own, so that PyTorch need not look at what it does.
        other_memory: it changes what memory a tensor has.
        other_view: it changes the shape of a tensor in its place.
        shape_of_values: the shape of its result depends on values.
        writes: to what it is given.
    """

    seeded: bool
    list_in_place: bool
    has_derivative: bool
    other_memory: bool
    other_view: bool
    shape_of_values: bool
    writes: bool


@functools.cache
def about(func: Any) -> Facts:
    """Of an operation."""
    writes = func._schema.is_mutable
    return Facts(
        seeded=torch.Tag.nondeterministic_seeded in func.tags,
        list_in_place=writes and func._opname.startswith("_foreach_"),
        has_derivative=_has_derivative(func),
        other_memory=func._opname in ("resize_", "set_"),
        other_view=torch.Tag.inplace_view in func.tags,
        shape_of_values=torch.Tag.dynamic_output_shape in func.tags,
        writes=writes,
    )


def _has_derivative(func: Any) -> bool:
    """Whether PyTorch has one for the operation itself, and need not look at what it does."""
    if func.namespace in OWN:
        return True
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    keys = ("Autograd", "AutogradCPU", "AutogradCUDA", "CompositeImplicitAutograd")
    return any(has(func.name(), key) for key in keys)


def draws(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call of a `seeded` one draws.

    Attention and recurrent kernels are such for a dropout that is mostly off.
    """
    names = [a.name for a in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return not any(name in given and given[name] == 0 for name in ("dropout_p", "dropout"))
