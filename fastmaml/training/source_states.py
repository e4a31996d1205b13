"""What states of held-out episodes tell: whether they, and their data, are the same as before."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

DIGESTS = frozenset({"data", "fingerprint"})
"""What sources call the digest of their data in their states: 16 or 32 bytes."""


def digest(state: Any) -> str | None:
    """What tells a state from others; None where there is none."""
    if state is None:
        return None
    found = hashlib.blake2b(digest_size=16)
    _add(state, found)
    return found.hexdigest()


def _add(tree: Any, to: Any) -> None:
    if isinstance(tree, Tensor) and tree.layout is torch.strided:
        x = tree.detach().cpu().contiguous()
        to.update(f"{x.dtype} {list(x.shape)}".encode())
        to.update(ctypes.string_at(x.data_ptr(), x.nbytes))
    elif isinstance(tree, Mapping):
        for key, x in tree.items():
            to.update(f"{key!r}:".encode())
            _add(x, to)
    elif isinstance(tree, list | tuple):
        for x in tree:
            to.update(b",")
            _add(x, to)
    else:
        known = tree is None or isinstance(tree, bool | int | float | str | bytes)
        to.update((repr(tree) if known else type(tree).__qualname__).encode())


def data_of(state: Any, where: str = "") -> dict[str, Tensor]:
    """The digests of a source's data that its state has, also of sources within it.

    Args:
        state: of the source, as its ``state_dict`` gives it.
        where: the state lies in a larger one.
    """
    if not isinstance(state, Mapping):
        return {}
    found: dict[str, Tensor] = {}
    for key, x in state.items():
        if isinstance(x, Tensor):
            if key in DIGESTS and x.dtype == torch.uint8 and x.shape in ((16,), (32,)):
                found[f"{where}{key}"] = x
        else:
            found |= data_of(x, f"{where}{key}.")
    return found


def has_changed(saved: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> bool:
    """Whether data is other than it was, as far as both tell."""
    return any(name in now and not torch.equal(x, now[name].cpu()) for name, x in saved.items())
