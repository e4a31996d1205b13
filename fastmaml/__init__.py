"""fastmaml: exact, fast, small-memory meta-gradients for any PyTorch module."""

from fastmaml import episodes, gradients, heads, losses, models, ops, rules
from fastmaml.config import LoopConfig, TrainConfig
from fastmaml.engine.buffers import forget_running_statistics
from fastmaml.engine.errors import MissingDerivative, NonFiniteLoss, StaleRecordingError
from fastmaml.episodes import Batch, Episodes, EpisodeSampler
from fastmaml.maml import MAML
from fastmaml.output import MetaOutput
from fastmaml.profiling import Report, profile
from fastmaml.sweeps import Sweep, bench
from fastmaml.trainer import MetaTrainer
from fastmaml.verification import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "MAML",
    "Batch",
    "EpisodeSampler",
    "Episodes",
    "LoopConfig",
    "MetaOutput",
    "MetaTrainer",
    "MissingDerivative",
    "NonFiniteLoss",
    "Report",
    "StaleRecordingError",
    "Sweep",
    "TrainConfig",
    "Verification",
    "bench",
    "episodes",
    "forget_running_statistics",
    "gradients",
    "heads",
    "losses",
    "models",
    "ops",
    "profile",
    "rules",
    "verify",
]
