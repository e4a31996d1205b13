"""A frozen weight of which every rank of a group has a share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn, final

import torch
from torch import Tensor, distributed

from fastmaml.frozen.kept import Kept

# Its older name warns where there is the newer one.
_gather: Callable[..., Any] = (
    getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
)

_TAG = 16
"""Bytes after each share that say which weight it is of; so many, as shares are then aligned."""

_FIRST = 0x66726F7A656E
"""The number of the first weight: none that is found where weights are zero."""


@final
class Shared(Kept):
    """Each rank has an equal part of the bytes; all of them together gather the whole.

    Every rank has to ask for the same weights in the same order. With its part each one sends which
    weight it asks for, so that ranks that do not go together raise: what is gathered is the weight,
    or nothing is.

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
        self.number, self.group = number, group
        self.tag = _FIRST + number
        ranks, rank = group.size(), group.rank()
        content = weight.detach().contiguous().view(-1).view(torch.uint8)
        self.bytes = content.numel()
        part = math.ceil(self.bytes / ranks / _TAG) * _TAG
        self.share = torch.zeros(part + _TAG, dtype=torch.uint8, device=device)
        self.device = self.share.device  # with its index
        own = content[rank * part : (rank + 1) * part]
        self.share[: len(own)] = own.to(device)
        self.share[part : part + 8] = torch.tensor([self.tag]).view(torch.uint8).to(device)

    def whole(self, device: torch.device) -> Tensor:
        """Gathered from all ranks, which wait for each other.

        Raises:
            RuntimeError: another rank asks for another weight; or it is asked for elsewhere.
        """
        if device != self.device:
            raise RuntimeError(
                f"{self.name} is gathered on {self.device}, and its layer runs on {device}: give "
                f"frozen.shard(model, device={str(device)!r})."
            )
        found = torch.empty(self.group.size(), len(self.share), dtype=torch.uint8, device=device)
        _gather(found.view(-1), self.share, group=self.group)
        asked = found[:, -_TAG : 8 - _TAG].contiguous().view(torch.int64).flatten().tolist()
        if any(tag != self.tag for tag in asked):
            self._apart([tag - _FIRST for tag in asked])
        content = found[:, :-_TAG].flatten()[: self.bytes]
        return content.view(self.dtype).view(self.shape)

    def _apart(self, asked: list[int]) -> NoReturn:
        raise RuntimeError(
            f"rank {self.group.rank()} asks for the frozen weight {self.name} (number "
            f"{self.number}), and the ranks together for {asked}: they do not run the same "
            "meta-step. Give every rank as many tasks, of the same shapes (pad to one length), and "
            "gradient= and tasks_chunk= to the MAML, which else chooses by each rank's memory."
        )

    def rows(self, numbers: Tensor) -> Tensor:
        """Of the whole table."""
        return self.whole(numbers.device)[numbers]

    def state(self) -> None:
        """None: a rank that saves alone would wait for the others for good."""

    def like(self, weight: Tensor) -> Shared:
        """The own share of another weight."""
        weight = weight.detach().to(self.dtype)
        return Shared(self.name, self.number, weight, self.group, self.device)

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{self.name} is shared by the ranks of a process group, and cannot be pickled: save "
            "state_dict(), in which shared weights are not, and shard the model anew."
        )
