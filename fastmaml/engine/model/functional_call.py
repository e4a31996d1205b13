"""A module called with other tensors in the places of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def functional(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """``model(*args, **kwargs)`` with these parameters and buffers; others are the model's own.

    `torch.func.functional_call` leaves its tensors behind in a sub-module that is registered under
    two names, as it exchanges it twice: here every place is named once.

    Args:
        model: not changed.
        tensors: by the names of ``named_parameters()`` and ``named_buffers()``, tied ones once.
        args, kwargs: of the call.
    """
    places: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    made: list[tuple[nn.Module, str, Any]] = []
    for prefix, owner in model.named_modules():
        for leaf, own in (*owner._parameters.items(), *owner._buffers.items()):
            if own is not None:
                name = f"{prefix}.{leaf}" if prefix else leaf
                known = first.setdefault(id(own), name)
                if known in tensors:
                    places[name] = tensors[known]
        for hook in owner._forward_pre_hooks.values():
            if (weight := _made_by(hook)) in owner.__dict__:
                made.append((owner, weight, owner.__dict__[weight]))
    try:
        return functional_call(model, places, tuple(args), dict(kwargs or {}), tie_weights=False)
    finally:
        for owner, weight, before in made:  # else a tensor of a vmap that is over
            owner.__dict__[weight] = before


def _made_by(hook: Any) -> str:
    """The attribute that a hook of pruning, or of weight or spectral norm, makes at every call."""
    if not type(hook).__module__.startswith("torch.nn.utils."):
        return ""
    return getattr(hook, "_tensor_name", getattr(hook, "name", ""))
