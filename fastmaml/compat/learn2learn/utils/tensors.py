"""Clones of lists of tensors, and the operator of DiCE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


def magic_box(x: Any) -> Any:
    """A tensor of ones whose derivative is that of `x`: exp(x − x̄) with x̄ constant.

    The MagicBox operator of Foerster et al. 2018 (DiCE, section 4), for derivatives of any order of
    expectations. What is no tensor is returned as it is.
    """
    return torch.exp(x - x.detach()) if isinstance(x, Tensor) else x


def clone_parameters(param_list: Iterable[Tensor]) -> list[Tensor]:
    """The clone of each tensor in `param_list`, connected to it by autograd."""
    return [p.clone() for p in param_list]


def clone_named_parameters(param_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The clone of each tensor in `param_dict`, by name, connected to it by autograd."""
    return {name: p.clone() for name, p in param_dict.items()}
