"""How the inner loop is differentiated: a value that one chooses."""

from fastmaml.gradients.base import GradientMethod
from fastmaml.gradients.checkpointed import Checkpointed
from fastmaml.gradients.mixed_mode import MixedMode
from fastmaml.gradients.reptile import Reptile
from fastmaml.gradients.unrolled import FirstOrder, Truncated, Unrolled

__all__ = [
    "Checkpointed",
    "FirstOrder",
    "GradientMethod",
    "MixedMode",
    "Reptile",
    "Truncated",
    "Unrolled",
]
