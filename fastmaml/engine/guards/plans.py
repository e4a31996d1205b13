"""Plans that were made, each as long as what it depends on is as it was."""

from __future__ import annotations

import functools
from collections import OrderedDict
from dataclasses import fields, is_dataclass
from typing import Any, Generic, Protocol, TypeVar, final

import torch
from torch.utils import _device

from fastmaml.engine.base.tensor_cores import allows_tf32
from fastmaml.engine.guards.dependencies import Dependencies
from fastmaml.engine.guards.guards import PLAIN
from fastmaml.engine.guards.sight import root

MAX_PLANS = 256
"""The plans that are kept, of all kinds of calls together; the oldest one goes. Those for data of
other sizes (`other_sizes`) have little of their own."""

MAX_MISSES = 8
"""After so many calls in a row for which a plan had to be made anew, a former one has to do."""

RETRY_INTERVAL = 64
"""Of such calls each one with this number plans anew: what changed may have come to rest."""


P = TypeVar("P", bound="Depending")


class Depending(Protocol):
    """A plan.

    Attributes:
        depends: on what.
        restless: what it had of `Dependencies.restless` when it was made.
    """

    @property
    def depends(self) -> Dependencies: ...  # noqa: D102

    @property
    def restless(self) -> str: ...  # noqa: D102

    def worn_out(self: P) -> P | None:
        """What runs eagerly, and watched, where settings change with every call; None if nothing
        but another plan will do.
        """


@final
class Plans(Generic[P]):
    """The plans of a `MAML`; the one that was not used for longest goes first.

    There can be several of one kind: a setting may change to and fro. A copy (`copy.deepcopy`,
    pickling) begins empty.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[Any, P] = OrderedDict()
        self._variants: dict[Any, list[int]] = {}
        self._missed: dict[Any, int] = {}

    def __reduce__(self) -> Any:
        return Plans, ()

    def __len__(self) -> int:
        return len(self._kept)

    def values(self) -> list[P]:
        """All of them, the one that was used last at the end."""
        return list(self._kept.values())

    def find(self, key: Any, call: Any) -> P | None:
        """A plan of this kind that holds.

        Args:
            key: of the kind.
            call: see `Guards.hold`.
        """
        for number in reversed(self._variants.get(key, ())):
            plan = self._kept[key, number]
            if plan.restless == plan.depends.restless and plan.depends.hold(call):
                self._kept.move_to_end((key, number))
                self._missed.pop(key, None)
                return plan
        missed = self._missed[key] = self._missed.get(key, 0) + 1
        if missed <= MAX_MISSES or missed % RETRY_INTERVAL == 0 or key not in self._variants:
            return None
        return self._kept[key, self._variants[key][-1]].worn_out()

    def keep(self, key: Any, plan: P) -> P:
        """Keep one, which is returned."""
        variants = self._variants.setdefault(key, [])
        number = variants[-1] + 1 if variants else 0
        variants.append(number)
        self._kept[key, number] = plan
        while len(self._kept) > MAX_PLANS:
            (other, gone), _ = self._kept.popitem(last=False)
            self._variants[other].remove(gone)
            if not self._variants[other]:
                del self._variants[other]
                self._missed.pop(other, None)
        return plan


@final
class Identity:
    """Stands for one object, which it keeps alive, in a key."""

    __slots__ = ("of",)

    def __init__(self, of: Any) -> None:
        self.of = of

    def __eq__(self, other: object) -> bool:
        return type(other) is Identity and other.of is self.of

    def __hash__(self) -> int:
        return id(self.of)


def key_of(x: Any) -> Any:
    """What stands for a setting in a key: our own dataclasses count by value, others by identity.

    Two of a user's own may have equal fields, or say that they are equal, and do different things.
    """
    kind: Any = type(x)
    if kind in PLAIN or kind is float:
        return kind, repr(x)  # -0.0 is not 0.0, nor is True 1
    if kind is tuple:
        return kind, *map(key_of, x)
    names = _own_fields(kind)
    return Identity(x) if names is None else (kind, *[key_of(getattr(x, n)) for n in names])


@functools.lru_cache(maxsize=512)
def _own_fields(kind: type) -> tuple[str, ...] | None:
    """The names of the fields of one of our own dataclasses; None of any other class."""
    if is_dataclass(kind) and root(kind.__module__) == "fastmaml":
        return tuple(f.name for f in fields(kind))
    return None


def environment(device: str) -> tuple[Any, ...]:
    """PyTorch's own settings that decide about results."""
    return (
        torch.is_autocast_enabled(device),
        torch.get_autocast_dtype(device),
        torch.get_default_dtype(),
        _device.CURRENT_DEVICE,  # as torch.get_default_device() says, in a fraction of its time
        torch.are_deterministic_algorithms_enabled(),
        device == "cuda" and (allows_tf32(), *_of_libraries()),
    )


def _of_libraries() -> tuple[Any, ...]:
    """By which kernels are chosen, those in a CUDA graph for as long as it lives."""
    cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
    return (
        cudnn.enabled,
        cudnn.deterministic,
        cuda.matmul.allow_fp16_accumulation,
        cuda.matmul.allow_fp16_reduced_precision_reduction,
        cuda.matmul.allow_bf16_reduced_precision_reduction,
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        cuda.fp16_bf16_reduction_math_sdp_allowed(),
    )
