"""A frozen weight of which every rank of a group has a share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from fastmaml.frozen.kept import Kept

# Its older name warns where there is the newer one.
_gather: Callable[..., Any] = (
    getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
)

_ALIGNED = 16
"""Bytes: shares are multiples of this, so that a weight of any dtype begins at one."""


@final
class Shared(Kept):
    """Each rank has an equal part of the bytes; all of them together gather the whole.

    Every rank has to ask for the same weights in the same order. Before each one they tell each
    other which they ask for, so that ranks that do not go together raise: what is gathered is the
    weight, or nothing is.

    Args:
        name: of the weight in its model.
        number: of the weight among those of the group, the same on every rank.
        weight: ``[rows, columns]``, the same on every rank; the own share is copied.
        group: of the ranks, for nothing else.
        device: where the share is kept, and the weight gathered.
    """

    def __init__(
        self,
        name: str,
        number: int,
        weight: Tensor,
        group: distributed.ProcessGroup,
        device: torch.device,
    ) -> None:
        self.name, self.shape, self.dtype = name, weight.shape, weight.dtype
        self.number, self.group = torch.tensor([number], device=device), group
        content = weight.detach().contiguous().view(-1).view(torch.uint8)
        self.bytes = content.numel()
        part = math.ceil(self.bytes / group.size() / _ALIGNED) * _ALIGNED
        own = content[group.rank() * part :][:part]
        self.share = torch.zeros(part, dtype=torch.uint8, device=device)
        self.share[: len(own)] = own.to(device)
        self.device = self.share.device  # with its index

    def whole(self, device: torch.device) -> Tensor:
        """Gathered from all ranks, which wait for each other.

        Raises:
            RuntimeError: another rank asks for another weight; or it is asked for elsewhere.
        """
        if device != self.device:
            raise RuntimeError(
                f"{self.name} is gathered on {self.device}, and its layer runs on {device}: give "
                f"frozen.shard(model, {str(device)!r})."
            )
        asked = self._gathered(self.number).tolist()
        if len(set(asked)) > 1:
            raise RuntimeError(
                f"rank {self.group.rank()} asks for the frozen weight {self.name}, and the ranks "
                f"for those of numbers {asked}: they do not run the same meta-step. Give every "
                "rank as many tasks, of the same shapes (the same meta-batch, sliced), and "
                "gradient= and tasks_chunk= to the MAML, which else chooses by each rank's memory."
            )
        return self._gathered(self.share)[: self.bytes].view(self.dtype).view(self.shape)

    def _gathered(self, own: Tensor) -> Tensor:
        found = own.new_empty(self.group.size() * len(own))
        _gather(found, own, group=self.group)
        return found

    def rows(self, numbers: Tensor) -> Tensor:
        """Of the whole table."""
        return F.embedding(numbers, self.whole(numbers.device))

    def state(self) -> None:
        """None: a rank that saves alone would wait for the others for good."""

    def like(self, weight: Tensor, copy: bool) -> Shared:
        """A copy of the own share of another weight."""
        weight, number = weight.detach().to(self.dtype), int(self.number)
        return Shared(self.name, number, weight, self.group, self.device)

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{self.name} is shared by the ranks of a process group, and cannot be pickled: save "
            "state_dict(), in which shared weights are not, and shard the model anew."
        )
