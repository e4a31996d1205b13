"""Where a frozen weight lies: in the host's memory, or in shares on all ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NoReturn, final

import torch
from torch import Tensor
from torch.nn import functional as F


class Kept(ABC):
    """A frozen weight that is elsewhere. Nothing here ever writes to it.

    Attributes:
        name: of the weight in its model.
        shape, dtype: of the whole weight.
    """

    name: str
    shape: torch.Size
    dtype: torch.dtype

    @abstractmethod
    def whole(self, device: torch.device) -> Tensor:
        """The weight, on this device. Whoever asks lets it go before the next one is asked for."""

    @abstractmethod
    def rows(self, numbers: Tensor) -> Tensor:
        """``weight[numbers]``, on the device of the numbers: of any shape, and in range."""

    @abstractmethod
    def state(self) -> Tensor | None:
        """The weight for a `state_dict`; None where it is not to be had without other ranks."""

    @abstractmethod
    def like(self, weight: Tensor, copy: bool) -> Kept:
        """Another weight of this shape, kept in this way.

        Args:
            weight: of any dtype, which becomes this one's.
            copy: whether its memory stays the giver's; else it is kept itself where it can be.
        """

    @final
    def require_rows(self, numbers: Tensor) -> None:
        """Raise IndexError where one of these numbers is of no row, as `torch.nn.Embedding` does.

        Indexing would count negative ones from the end.
        """
        if not numbers.numel():
            return
        least, most = (int(x) for x in torch.stack(torch.aminmax(numbers)).tolist())
        if least < 0 or most >= self.shape[0]:
            wrong = least if least < 0 else most
            raise IndexError(
                f"index out of range: {self.name} has the rows 0 to {self.shape[0] - 1}, and row "
                f"{wrong} is looked up."
            )

    def __deepcopy__(self, memo: Any) -> Kept:
        return self  # as nothing writes to it, copies of a model have it in common


@final
class OnHost(Kept):
    """In the host's memory.

    Args:
        name: of the weight in its model.
        weight: ``[rows, columns]``, detached; moved to the CPU unless it is there.
        pinned: whether its memory is locked, which makes copies to a GPU several times as fast.
    """

    def __init__(self, name: str, weight: Tensor, pinned: bool) -> None:
        self.name, self.shape, self.dtype, self.pinned = name, weight.shape, weight.dtype, pinned
        weight = weight.detach().to("cpu")
        self.weight = weight.pin_memory() if pinned else weight

    def whole(self, device: torch.device) -> Tensor:
        """One copy from the host; on the CPU the weight itself."""
        return self.weight.to(device, non_blocking=self.pinned)

    def rows(self, numbers: Tensor) -> Tensor:
        """Looked up on the host, so that no table is copied."""
        return F.embedding(numbers.to("cpu"), self.weight).to(numbers.device)

    def state(self) -> Tensor:
        """The weight itself."""
        return self.weight

    def like(self, weight: Tensor, copy: bool) -> OnHost:
        """Another weight, of the same dtype, on the host."""
        return OnHost(self.name, weight.detach().to("cpu", self.dtype, copy=copy), self.pinned)


@final
class Holder:
    """What the layers that have a weight in common hold in common: where it is kept now.

    Loading puts another weight in its place, for all of them. A deep copy of the model has a holder
    of its own, with the same weight until one of both loads another; a clone (`MAML.clone`) has the
    model's, as it has its buffers.

    Attributes:
        kept: the weight.
    """

    def __init__(self, kept: Kept) -> None:
        self.kept = kept


class Away(Tensor):
    """Stands for a weight that is elsewhere: it has its shape, dtype and device, and no numbers.

    Libraries ask layers for these. Whatever else is done with it raises, for a write would be lost.
    """

    stands_for: str

    @staticmethod
    def of(kept: Kept, device: torch.device) -> Away:
        """The stand-in for such a weight, of a layer that runs on this device."""
        found: Away = torch.Tensor._make_wrapper_subclass(
            Away, kept.shape, dtype=kept.dtype, device=device
        )
        found.stands_for = kept.name
        return found

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What is asked of it, or an error."""
        if func in _ABOUT:
            return super().__torch_function__(func, types, args, kwargs)
        _refuse(args)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Nothing can be computed with it."""
        _refuse(args)


_ABOUT = {
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout")),
    *(getattr(Tensor, name).__get__ for name in ("requires_grad", "is_leaf", "is_cuda", "grad")),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.is_complex),
    Tensor.element_size,
}


def _refuse(args: Any) -> NoReturn:
    name = next((x.stands_for for x in args if isinstance(x, Away)), "a weight")
    raise RuntimeError(
        f"{name} lies elsewhere (fastmaml.frozen) and comes to its layer only while that runs: "
        "it can be neither read nor written here. Change, merge or read the weights of a model "
        "before frozen.offload or frozen.shard, or load them into a model of its own."
    )
