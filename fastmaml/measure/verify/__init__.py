"""`verify`: the meta-gradient of a `MAML` beside that of a loop of one's own."""

from fastmaml.measure.verify.result import Difference, Verification
from fastmaml.measure.verify.verify import verify

__all__ = ["Difference", "Verification", "verify"]
