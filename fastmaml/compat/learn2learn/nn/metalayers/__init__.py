"""Modules whose layers are replaced, or whose parameters pass through learned transforms."""

from fastmaml.compat.learn2learn.nn.metalayers.meta_layer import MetaLayer
from fastmaml.compat.learn2learn.nn.metalayers.metamodule import MetaModule
from fastmaml.compat.learn2learn.nn.metalayers.parameter_transform import ParameterTransform

__all__ = ["MetaLayer", "MetaModule", "ParameterTransform"]
