"""An optimizer's hyper-parameters as tensors to learn, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmaml.compat.higher.optim.base import Override
from fastmaml.compat.higher.tree import Device
from fastmaml.compat.higher.utils import flatten, mapped


def get_trainable_opt_params(
    opt: torch.optim.Optimizer, device: Device = None
) -> dict[str, list[Any]]:
    """An ``override`` in which every numeric hyper-parameter of every group is a leaf to learn.

    Numbers become scalar tensors of torch's default dtype, and tuples of numbers (``betas``) tuples
    of such. Switches (``nesterov``, ``amsgrad``) and what is not numeric are left out.

    Args:
        opt: the optimizer that the values are taken from.
        device: where the tensors go.
    """
    override: dict[str, list[Any]] = {}
    for group in opt.param_groups:
        for name, value in group.items():
            leaves = [] if name == "params" else flatten(value)
            if leaves and all(_is_number(x) for x in leaves):
                override.setdefault(name, []).append(mapped(value, lambda x: _leaf(x, device)))
    return override


def apply_trainable_opt_params(opt: torch.optim.Optimizer, override: Override) -> None:
    """Write learned hyper-parameters into an optimizer: numbers as floats, tensors in place.

    Args:
        opt: the optimizer; it changes.
        override: as for a differentiable optimizer.

    Raises:
        ValueError: `override` does not have one value or one a group, or names what is not there.
    """
    for name, values in override.items():
        if len(values) not in (1, len(opt.param_groups)):
            raise ValueError(
                f"override[{name!r}] has {len(values)} values: give one for all parameter groups, "
                f"or one for each of the {len(opt.param_groups)}."
            )
        for i, group in enumerate(opt.param_groups):
            if name not in group or name == "params":
                raise ValueError(f"override[{name!r}]: the optimizer has no such hyper-parameter.")
            group[name] = _applied(name, values[0 if len(values) == 1 else i], group[name])


def _applied(name: str, new: Any, old: Any) -> Any:
    if isinstance(old, Tensor):
        with torch.no_grad():
            return old.copy_(torch.as_tensor(new))
    if isinstance(old, tuple | list):
        if len(new) != len(old):
            raise ValueError(f"override[{name!r}] has {len(new)} parts for {len(old)}.")
        return type(old)(_applied(name, n, o) for n, o in zip(new, old, strict=True))
    value = new.item() if isinstance(new, Tensor) else new
    if isinstance(old, bool):
        return bool(value)
    # What was learned in the place of an integer (lr=1) is not rounded to one.
    return int(value) if isinstance(old, int) and value == int(value) else float(value)


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float | Tensor) and not isinstance(x, bool)


def _leaf(x: Any, device: Device) -> Tensor:
    if isinstance(x, Tensor):
        leaf = x.detach().clone()
        return (leaf if device is None else leaf.to(device)).requires_grad_()
    return torch.tensor(float(x), device=device, requires_grad=True)
