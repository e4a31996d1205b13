"""The gradient methods by name, for configurations and the command line."""

from __future__ import annotations

from typing import Literal, get_args

from fastmaml.gradients.base import GradientMethod
from fastmaml.gradients.checkpointed import Checkpointed
from fastmaml.gradients.implicit import Implicit
from fastmaml.gradients.mixed_mode import MixedMode
from fastmaml.gradients.reptile import Reptile
from fastmaml.gradients.unrolled import FirstOrder, Truncated, Unrolled

MethodName = Literal[
    "unrolled", "checkpointed", "mixed-mode", "first-order", "truncated", "reptile", "implicit"
]

METHOD_NAMES: tuple[MethodName, ...] = get_args(MethodName)

NUMBERED: dict[str, str] = {
    "checkpointed": "segments",
    "mixed-mode": "segments",
    "truncated": "last",
}
"""Those with a number, and what it is called."""

OFFLOADING: tuple[MethodName, ...] = ("checkpointed", "mixed-mode")
"""Those that can keep inner steps on the CPU."""


def named(name: MethodName, number: int | None = None, offload: bool = False) -> GradientMethod:
    """The method of this name.

    Args:
        name: one of `METHOD_NAMES`.
        number: of segments of `Checkpointed` and `MixedMode` (None: every step is kept), or of
            differentiated steps of `Truncated` (None: 1); the others have none.
        offload: whether `Checkpointed` or `MixedMode` keeps inner steps on the CPU.

    Raises:
        ValueError: there is no such method, or it has no number, or keeps nothing on the CPU.
    """
    if offload and name not in OFFLOADING:
        raise ValueError(f"offload with gradient {name}: only {' and '.join(OFFLOADING)} have it.")
    if number is not None and name not in NUMBERED:
        raise ValueError(f"{name} takes no number; {', '.join(NUMBERED)} do.")
    match name:
        case "unrolled":
            return Unrolled()
        case "checkpointed":
            return Checkpointed(number, offload)
        case "mixed-mode":
            return MixedMode(number, offload)
        case "first-order":
            return FirstOrder()
        case "truncated":
            return Truncated(1 if number is None else number)
        case "reptile":
            return Reptile()
        case "implicit":
            return Implicit()
    raise ValueError(f"{name!r} is no gradient method: choose from {', '.join(METHOD_NAMES)}.")


def name_of(method: GradientMethod) -> tuple[MethodName, int | None, bool]:
    """What `named` makes this method of.

    Raises:
        ValueError: it is none of these methods.
    """
    for name in METHOD_NAMES:
        if type(named(name)) is type(method):
            number = getattr(method, NUMBERED[name]) if name in NUMBERED else None
            return name, number, name in OFFLOADING and getattr(method, "offload", False)
    raise ValueError(f"{method!r} has no name: those that have are {', '.join(METHOD_NAMES)}.")
