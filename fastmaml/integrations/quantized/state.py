"""What a checkpoint holds of a module with quantized layers: all but their bits."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from fastmaml.integrations.quantized.host import QuantizedHost, find_quantized

DIGEST = "quantized"
"""The key of the fingerprint of what was left out."""


def learned_state(module: nn.Module) -> dict[str, Any]:
    """``module.state_dict()``; of quantized layers, which are frozen, a fingerprint alone.

    The libraries' own forms of these weights do not all load into a model that is there.
    """
    state, host = dict(module.state_dict()), find_quantized(module)
    if host is None:
        return state
    bits = _bits(host, state)
    return {n: x for n, x in state.items() if n not in bits} | {DIGEST: _digest(host)}


def load_learned(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Load what `learned_state` gave into a module with the same quantized layers.

    Raises:
        RuntimeError: it does not fit, as of ``module.load_state_dict``, or the quantized layers
            are others; the module is then as it was.
    """
    state, host = dict(state), find_quantized(module)
    digest = state.pop(DIGEST, None)
    own = None if host is None else _digest(host)
    if digest != own:
        what = "none of the model's are" if own is None else "the model's are others, or none were"
        raise RuntimeError(f"it is of a model with quantized layers, and {what}")
    if host is None:
        module.load_state_dict(state)
        return
    now = module.state_dict()
    wanted = now.keys() - _bits(host, now)
    if state.keys() != wanted:
        missing, unexpected = sorted(wanted - state.keys()), sorted(state.keys() - wanted)
        raise RuntimeError(f"missing are {missing}, and not expected {unexpected}")
    module.load_state_dict(state, strict=False)


def _bits(host: QuantizedHost, state: Mapping[str, Any]) -> set[str]:
    """The names of all that quantized layers put there but their bias."""
    starts = tuple(f"{layer.name}." if layer.name else "" for layer in host.layers)
    return {n for n in state if n.startswith(starts) and n.rpartition(".")[2] != "bias"}


def _digest(host: QuantizedHost) -> str:
    """A fingerprint of names and of every byte."""
    found = hashlib.blake2b(digest_size=16)
    for name, x in host.constants({}).items():
        x = x.detach().cpu().contiguous()
        found.update(f"{name} {x.dtype} {list(x.shape)}".encode())
        found.update(ctypes.string_at(x.data_ptr(), x.nbytes))
    return found.hexdigest()
