"""fastmaml: exact, fast, small-memory meta-gradients for any PyTorch module."""

from fastmaml import episodes, gradients, models, rules
from fastmaml.engine.errors import NonFiniteLoss
from fastmaml.episodes.batch import Batch, Episodes
from fastmaml.maml import MAML
from fastmaml.output import MetaOutput

__version__ = "0.1.0"

__all__ = [
    "MAML",
    "Batch",
    "Episodes",
    "MetaOutput",
    "NonFiniteLoss",
    "episodes",
    "gradients",
    "models",
    "rules",
]
