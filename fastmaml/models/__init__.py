"""The networks of the papers, as plain `torch.nn` modules with ``features`` and ``classifier``.

And `PerStep`, for modules that have parameters of their own for each inner step (MAML++);
`WithContext` and `FiLM` give a network context parameters (CAVIA).
"""

from fastmaml.models.context import FiLM, WithContext
from fastmaml.models.conv4 import conv4
from fastmaml.models.mlp import mlp
from fastmaml.models.per_step import PerStep, at_inner_step
from fastmaml.models.per_step_norms import (
    PerStepBatchNorm1d,
    PerStepBatchNorm2d,
    per_step_batch_norm,
)
from fastmaml.models.resnet12 import resnet12

__all__ = [
    "FiLM",
    "PerStep",
    "PerStepBatchNorm1d",
    "PerStepBatchNorm2d",
    "WithContext",
    "at_inner_step",
    "conv4",
    "mlp",
    "per_step_batch_norm",
    "resnet12",
]
