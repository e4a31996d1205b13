"""A `torch.distributions.Distribution` as a tree of tensors, so that a task can return one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform
from torch.utils._pytree import register_pytree_node

_PLAIN = (bool, int, float, str, type(None), torch.Size, torch.dtype, torch.device)


class _Place(NamedTuple):
    """Where a tensor was: its number, and its rank."""

    number: int
    rank: int


@final
class _Frame:
    """A distribution without its tensors."""

    def __init__(self, kind: type[Distribution], attributes: dict[str, Any]) -> None:
        self.kind, self.attributes = kind, attributes
        self._largest = max(self._places(), key=lambda place: place.rank, default=None)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Frame):
            return False
        return (self.kind, self.attributes) == (other.kind, other.attributes)

    def __hash__(self) -> int:
        return hash((self.kind, tuple(self.attributes)))

    def filled(self, tensors: list[Tensor]) -> Distribution:
        """The distribution of other tensors, of which each element is one as before."""
        made = self.kind.__new__(self.kind)
        for name, value in self.attributes.items():
            made.__dict__[name] = _filled(value, tensors)
        place = self._largest
        if place is not None:
            x, event = tensors[place.number], place.rank - len(made._batch_shape)
            made._batch_shape = x.shape[: x.ndim - event]
        return made

    def _places(self) -> list[_Place]:
        found: list[_Place] = []
        for value in self.attributes.values():
            if isinstance(value, _Place):
                found.append(value)
            elif isinstance(value, _Frame):
                found += value._places()
        return found


def _filled(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, _Place):
        return tensors[value.number]
    return value.filled(tensors) if isinstance(value, _Frame) else value


@final
class Parts:
    """A distribution taken apart: a node of PyTorch's trees, whose leaves are its tensors.

    Args:
        tensors: of the distribution and of those in it.
        frame: the rest.
    """

    def __init__(self, tensors: list[Tensor], frame: _Frame) -> None:
        self.tensors, self._frame = tensors, frame

    @classmethod
    def of(cls, distribution: Distribution) -> Parts:
        """Those of a distribution, but for attributes that its class names as `left_out`.

        Raises:
            TypeError: it keeps something that is neither tensor, number nor distribution.
        """
        tensors: list[Tensor] = []
        return cls(tensors, _frame(distribution, tensors))

    def distribution(self) -> Distribution:
        """Put together again, of batches as large as the tensors are."""
        return self._frame.filled(self.tensors)

    def like(self, tensors: Sequence[Tensor]) -> Parts:
        """The same with other tensors."""
        return Parts(list(tensors), self._frame)

    def map(self, function: Callable[[Tensor], Tensor]) -> Parts:
        """The same with `function` applied to every tensor."""
        return Parts([function(x) for x in self.tensors], self._frame)

    def stacked(self, others: Sequence[Parts], dim: int) -> Parts:
        """These and those of the same kind, along a new dimension of the batch."""
        every = zip(*(parts.tensors for parts in (self, *others)), strict=True)
        return Parts([torch.stack(xs, dim) for xs in every], self._frame)


def _frame(distribution: Distribution, tensors: list[Tensor]) -> _Frame:
    attributes: dict[str, Any] = {}
    left_out = getattr(type(distribution), "left_out", ())
    for name, value in vars(distribution).items():
        if name in left_out:
            continue
        if isinstance(value, Tensor):
            value = _of_the_batch(distribution, name, value)
            known = (i for i, x in enumerate(tensors) if x is value)
            attributes[name] = _Place(next(known, len(tensors)), value.ndim)
            if attributes[name].number == len(tensors):
                tensors.append(value)
        elif isinstance(value, Distribution):
            attributes[name] = _frame(value, tensors)
        elif isinstance(value, _PLAIN) or _without_tensors(value):
            attributes[name] = value
        else:
            raise TypeError(
                f"a {type(distribution).__name__} keeps a {type(value).__name__} as {name!r}, "
                "which cannot be told apart by tasks: return one of tensors and distributions."
            )
    return _Frame(type(distribution), attributes)


_EVENT_RANKS = {
    "_unbroadcasted_scale_tril": 2,
    "_unbroadcasted_cov_factor": 2,
    "_unbroadcasted_cov_diag": 1,
    "_capacitance_tril": 2,
}
"""Of what PyTorch's multivariate normal distributions keep smaller than their batch."""


def _of_the_batch(distribution: Distribution, name: str, x: Tensor) -> Tensor:
    """A tensor with all dimensions of the batch in front, as one for each task will have them.

    Raises:
        TypeError: it has others, so that it is not known which of them are the batch's.
    """
    batch = distribution.batch_shape
    if name in _EVENT_RANKS:
        return x.expand(*batch, *x.shape[-_EVENT_RANKS[name] :])
    if x.shape[: len(batch)] != batch:
        raise TypeError(
            f"a {type(distribution).__name__} of batch {list(batch)} keeps {name!r} of shape "
            f"{list(x.shape)}: expand it to the batch ({list(batch)} in front) when the "
            "distribution is made, so that tasks can be told apart."
        )
    return x


def _without_tensors(value: Any) -> bool:
    """Whether these are transforms that hold none, such as `TanhTransform`."""
    if not isinstance(value, list | tuple) or not all(isinstance(x, Transform) for x in value):
        return False
    return not any(isinstance(v, Tensor | Distribution) for x in value for v in vars(x).values())


register_pytree_node(
    Parts,
    lambda parts: (parts.tensors, parts._frame),
    lambda tensors, frame: Parts(list(tensors), frame),
    serialized_type_name="fastmaml.DistributionParts",
)
