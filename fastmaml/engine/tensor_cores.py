"""How float32 is multiplied on a CUDA device: one rule for products and convolutions alike.

PyTorch has a switch for each and leaves convolutions at TF32, ten bits of mantissa, so that a
meta-gradient would be another one on each backend. In a meta-step TF32 is used where both switches
allow it (``torch.set_float32_matmul_precision("high")``), and nowhere else.
"""

from __future__ import annotations

import threading

import torch

_get, _set = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
KINDS = ("matmul", "conv")
ALL = (*KINDS, "rnn")
"""PyTorch's older switch of cuDNN raises where that for its recurrent layers differs."""


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
        self._before: dict[str, str] = {}

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1 and torch.cuda.is_initialized() and not allows_tf32():
                self._before = {k: v for k in ALL if (v := _get("cuda", k)) == "tf32"}
                for kind in self._before:
                    _set("cuda", kind, "ieee")

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                before, self._before = self._before, {}
                for kind, value in before.items():
                    _set("cuda", kind, value)


ONE_RULE = OneRule()
