"""The networks of the papers, as plain `torch.nn` modules with ``features`` and ``classifier``."""

from fastmaml.models.conv4 import conv4
from fastmaml.models.mlp import mlp
from fastmaml.models.resnet12 import resnet12

__all__ = ["conv4", "mlp", "resnet12"]
