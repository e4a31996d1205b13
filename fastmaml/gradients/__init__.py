"""How the inner loop is differentiated: a value that one chooses.

Each is a frozen dataclass. "A gradient" is one backward pass over a support set; "a copy" is one of
the parameters that adapt, with the rule's state, of the tasks that run at a time.
"""

from fastmaml.gradients.base import GradientMethod
from fastmaml.gradients.checkpointed import Checkpointed
from fastmaml.gradients.implicit import Implicit
from fastmaml.gradients.mixed_mode import MixedMode
from fastmaml.gradients.reptile import Reptile
from fastmaml.gradients.unrolled import FirstOrder, Truncated, Unrolled

__all__ = [
    "Checkpointed",
    "FirstOrder",
    "GradientMethod",
    "Implicit",
    "MixedMode",
    "Reptile",
    "Truncated",
    "Unrolled",
]
