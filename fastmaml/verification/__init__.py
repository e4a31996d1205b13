"""`verify`: the meta-gradient of a `MAML` beside that of a loop of one's own."""

from fastmaml.verification.result import Difference, Verification
from fastmaml.verification.verify import verify

__all__ = ["Difference", "Verification", "verify"]
