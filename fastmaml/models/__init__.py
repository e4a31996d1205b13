"""The networks of the papers, as plain `torch.nn` modules with ``features`` and ``classifier``.

`WithContext` and `FiLM` give a network context parameters (CAVIA).
"""

from fastmaml.models.context import FiLM, WithContext
from fastmaml.models.conv4 import conv4
from fastmaml.models.mlp import mlp
from fastmaml.models.resnet12 import resnet12

__all__ = ["FiLM", "WithContext", "conv4", "mlp", "resnet12"]
