"""Differentiable, learnable optimisation."""

from fastmaml.compat.learn2learn.optim import transforms, update_rules
from fastmaml.compat.learn2learn.optim.learnable_optimizer import LearnableOptimizer
from fastmaml.compat.learn2learn.optim.parameter_update import ParameterUpdate
from fastmaml.compat.learn2learn.optim.transforms import (
    KroneckerTransform,
    MetaCurvatureTransform,
    ModuleTransform,
    ReshapedTransform,
    TransformDictionary,
)
from fastmaml.compat.learn2learn.optim.update_rules import DifferentiableSGD

__all__ = [
    "DifferentiableSGD",
    "KroneckerTransform",
    "LearnableOptimizer",
    "MetaCurvatureTransform",
    "ModuleTransform",
    "ParameterUpdate",
    "ReshapedTransform",
    "TransformDictionary",
    "transforms",
    "update_rules",
]
