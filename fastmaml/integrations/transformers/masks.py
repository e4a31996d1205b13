"""Attention masks of Hugging Face transformers that are made without a look at their values."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_inside: ContextVar[bool] = ContextVar("inside a meta-step", default=False)
_lock = threading.Lock()
_usual: dict[str, Callable[..., Any]] = {}
_entered = 0


@contextlib.contextmanager
def value_free_masks() -> Iterator[None]:
    """A context in which the masks of transformers' `sdpa` and `eager` attention are ours.

    Only for the thread that is inside: others that make masks meanwhile get transformers' own.
    """
    from transformers import AttentionMaskInterface

    global _entered
    with _lock:
        if not _entered:
            for name, ours in _OURS.items():
                usual = AttentionMaskInterface()[name]
                if of_transformers(usual):  # a user's own stays
                    _usual[name] = usual
                    AttentionMaskInterface.register(name, _chosen(ours, usual))
        _entered += 1
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)
        with _lock:
            _entered -= 1
            if not _entered:
                for name in list(_usual):
                    AttentionMaskInterface.register(name, _usual.pop(name))


def of_transformers(function: Any) -> bool:
    """Whether transformers has it, not a user who registered or put it in the place of one."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__module__", "").partition(".")[0] == "transformers"


def _chosen(ours: Callable[..., Any], usual: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: (ours if _inside.get() else usual)(*args, **kwargs)


def boolean_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    **rest: Any,
) -> Tensor | None:
    """Where attention looks, True for the keys that count: ``[examples, 1, 1 or length, length]``.

    As transformers' own for `sdpa`, but whether there is a mask never depends on its values, and a
    mask that is the same for all queries stays one row.
    """
    from transformers import masking_utils

    square = q_length == kv_length and q_offset == 0 and rest.get("local_size") is None
    both_ways = mask_function is masking_utils.bidirectional_mask_function and kv_offset == 0
    if attention_mask is None and both_ways and allow_is_bidirectional_skip:
        return None
    causal = mask_function is masking_utils.causal_mask_function
    if attention_mask is None and causal and allow_is_causal_skip and square:
        return None
    if both_ways and attention_mask is not None and attention_mask.shape[-1] == kv_length:
        return attention_mask[:, None, None, :].bool()
    return masking_utils.sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        q_offset,
        kv_offset,
        mask_function or masking_utils.causal_mask_function,
        attention_mask,
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False,
        **rest,
    )


def added_mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Tensor | None:
    """What eager attention adds to its scores: as transformers' own, likewise."""
    kwargs["allow_is_causal_skip"] = False
    mask = boolean_mask(*args, **kwargs)
    if mask is None:
        return None
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


_OURS: dict[str, Callable[..., Any]] = {"sdpa": boolean_mask, "eager": added_mask}
