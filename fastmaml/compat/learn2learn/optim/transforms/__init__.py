"""Modules that turn gradients into updates, and what makes them for a parameter."""

from fastmaml.compat.learn2learn.optim.transforms.kronecker_transform import KroneckerTransform
from fastmaml.compat.learn2learn.optim.transforms.metacurvature_transform import (
    MetaCurvatureTransform,
)
from fastmaml.compat.learn2learn.optim.transforms.module_transform import (
    ModuleTransform,
    ReshapedTransform,
)
from fastmaml.compat.learn2learn.optim.transforms.transform_dictionary import TransformDictionary

__all__ = [
    "KroneckerTransform",
    "MetaCurvatureTransform",
    "ModuleTransform",
    "ReshapedTransform",
    "TransformDictionary",
]
