"""fastmaml: exact, fast, small-memory meta-gradients for any PyTorch module."""

from fastmaml import episodes, frozen, gradients, heads, losses, models, ops, rules
from fastmaml._version import __version__
from fastmaml.engine.base.errors import MissingDerivative, NonFiniteLoss, StaleRecordingError
from fastmaml.engine.model.buffers import forget_running_statistics
from fastmaml.episodes import Batch, Episodes, EpisodeSampler
from fastmaml.maml import MAML, MetaOutput, mamlpp
from fastmaml.measure.bench import Sweep, bench
from fastmaml.measure.profile import Report, profile
from fastmaml.measure.verify import Verification, verify
from fastmaml.training.config import LoopConfig, TrainConfig
from fastmaml.training.trainer import MetaTrainer

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
    "__version__",
    "bench",
    "episodes",
    "forget_running_statistics",
    "frozen",
    "gradients",
    "heads",
    "losses",
    "mamlpp",
    "models",
    "ops",
    "profile",
    "rules",
    "verify",
]
