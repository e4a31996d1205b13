"""Carries that wait on the CPU: `AdjointScan(offload=True)`.

The copies run on the device's current stream, between the kernels before and after them: what is
copied is whole, the device's memory is free for what comes next, and nothing has to wait for the
host, which never looks at the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


def away(tree: Any) -> Any:
    """The same tree with every tensor that takes memory of a device exchanged for a copy.

    Args:
        tree: of dicts, lists, tuples and tensors without a graph. Tensors on the CPU stay, as do
            views that repeat a smaller tensor, such as θ expanded over tasks: they take none.
    """
    return tree_map_only(Tensor, lambda x: _Away.of(x) if _takes_memory(x) else x, tree)


def back(tree: Any) -> Any:
    """What `away` was given: the same numbers on the same devices."""
    return tree_map_only(_Away, _Away.there, tree)


def _takes_memory(x: Tensor) -> bool:
    """Whether letting go of it frees memory of a device."""
    return x.device.type != "cpu" and x.numel() > 0 and 0 not in x.stride()


@final
@dataclass(frozen=True)
class _Away:
    """A tensor's numbers on the CPU, and where they belong."""

    numbers: Tensor
    device: torch.device

    @classmethod
    def of(cls, x: Tensor) -> _Away:
        """The copy: in pinned memory, which CUDA copies from and to by itself."""
        numbers = torch.empty_like(x, device="cpu", pin_memory=x.device.type == "cuda")
        return cls(numbers.copy_(x, non_blocking=True), x.device)

    def there(self) -> Tensor:
        """The tensor."""
        # A copy whose source is pinned is over before that memory is given to another tensor.
        return self.numbers.to(self.device, non_blocking=True)
