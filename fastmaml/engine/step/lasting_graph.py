"""Tells whoever counts what a graph keeps of what a checkpointed layer keeps after all."""

from __future__ import annotations

import weakref
from typing import Any, final

import torch
from torch import Tensor


@final
class LastingGraph:
    """A context of a graph of which most is gone at its end; hooks on saved tensors see the rest.

    Without it `engine.memory.saved_bytes` would count each activation of a layer that runs again.
    """

    def __init__(self) -> None:
        self.saved: list[weakref.ref[Tensor]] = []
        self.hooks: Any = None

    def __enter__(self) -> None:
        self.outer = torch._C._autograd._top_saved_tensors_default_hooks(False)
        if self.outer is not None:
            self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x)
            self.hooks.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self.hooks is None:
            return
        self.hooks.__exit__(*error)
        with torch._C.DisableTorchFunction():
            for x in (ref() for ref in self.saved):
                if x is not None:
                    self.outer[0](x)

    def _pack(self, x: Tensor) -> Tensor:
        kept = x.detach()  # a node that keeps its own result would keep itself alive, for good
        self.saved.append(weakref.ref(kept))
        return kept
