"""Where a tensor's numbers lie: sparse tensors, subclasses and stand-ins for zero have no memory of
their own, and asking them for it raises.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fastmaml.engine.base import functorch

_BY_ROW = ("crow_indices", "col_indices", "values")
_BY_COLUMN = ("ccol_indices", "row_indices", "values")
COMPRESSED = {
    torch.sparse_csr: _BY_ROW,
    torch.sparse_bsr: _BY_ROW,
    torch.sparse_csc: _BY_COLUMN,
    torch.sparse_bsc: _BY_COLUMN,
}
_SPARSE = {torch.sparse_coo: ("_indices", "_values"), **COMPRESSED}


def address(x: Tensor) -> int:
    """Of its first element; 0 where it has no memory of its own."""
    return x.data_ptr() if torch._C._has_storage(x) else 0


def has_memory(x: Tensor) -> bool:
    """Whether its numbers lie in memory of its own, if it has any."""
    return not is_traceable_wrapper_subclass(functorch.unwrapped(x))


def made_of(x: Tensor) -> list[Tensor]:
    """What it consists of: itself, or the tensors of a sparse one or of a subclass that tells."""
    x = functorch.unwrapped(x)
    if x.layout in _SPARSE:
        x = x.detach()
        return [getattr(x, name)() for name in _SPARSE[x.layout]]
    if is_traceable_wrapper_subclass(x):
        names = x.__tensor_flatten__()[0]
        return [part for name in names for part in made_of(getattr(x, name))]
    return [x]


def parts(x: Tensor) -> list[Tensor]:
    """The tensors in whose memory its numbers lie: itself, or what it is made of.

    None of a stand-in for zero, nor of a subclass that does not tell what it is made of.
    """
    return [part for part in made_of(x) if address(part)]


def size(x: Tensor) -> int:
    """Bytes of all its numbers."""
    return sum(part.nbytes for part in parts(x))
