"""How float32 is multiplied on a CUDA device: one rule for products and convolutions alike.

PyTorch has a switch for each and leaves convolutions at TF32, ten bits of mantissa, so that a
meta-gradient would be another one on each backend. In a meta-step TF32 is used where both switches
allow it (``torch.set_float32_matmul_precision("high")``), and nowhere else.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

import torch

_get, _set = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
KINDS = ("matmul", "conv")


def allows_tf32() -> bool:
    """Whether both of PyTorch's switches do."""
    return all(_get("cuda", kind) == "tf32" for kind in KINDS)


class OneRule:
    """A context in which the two switches say the same; they are the process's, as is this.

    While threads are in it, convolutions of others are exact to float32, too. The last to leave
    sets the switches back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._undo: list[Callable[[], object]] = []

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1 and torch.cuda.is_initialized() and not allows_tf32():
                self._undo = [_without(kind) for kind in KINDS if _get("cuda", kind) == "tf32"]

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                for undo in self._undo:
                    undo()
                self._undo = []


def _without(kind: str) -> Callable[[], object]:
    """Switch TF32 off; what switches it on again."""
    undo: Callable[[], object]
    if kind == "conv" and _older_switch_works():
        torch._C._set_cudnn_allow_tf32(False)
        undo = functools.partial(torch._C._set_cudnn_allow_tf32, True)
    else:
        _set("cuda", kind, "none")
        inherits = _get("cuda", kind) == "tf32"
        undo = functools.partial(_set, "cuda", kind, "none" if inherits else "tf32")
    if _get("cuda", kind) == "tf32":  # what stands above both switches says so
        _set("cuda", kind, "ieee")
    return undo


def _older_switch_works() -> bool:
    """Whether cuDNN's one switch of old can be read: not where the new ones were set apart.

    `torch.backends.cudnn.flags` reads it, which models use; so it must stay readable.
    """
    try:
        torch._C._get_cudnn_allow_tf32()
    except RuntimeError:
        return False
    return True


ONE_RULE = OneRule()
