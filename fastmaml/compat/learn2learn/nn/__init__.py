"""Modules that meta-learning scripts often use."""

from fastmaml.compat.learn2learn.nn import metalayers
from fastmaml.compat.learn2learn.nn.kroneckers import (
    KroneckerLinear,
    KroneckerLSTM,
    KroneckerRNN,
    kronecker_addmm,
)
from fastmaml.compat.learn2learn.nn.metalayers import MetaLayer, MetaModule, ParameterTransform
from fastmaml.compat.learn2learn.nn.metaoptnet import SVClassifier
from fastmaml.compat.learn2learn.nn.misc import Flatten, Lambda, Scale, freeze, unfreeze
from fastmaml.compat.learn2learn.nn.protonet import PrototypicalClassifier

__all__ = [
    "Flatten",
    "KroneckerLSTM",
    "KroneckerLinear",
    "KroneckerRNN",
    "Lambda",
    "MetaLayer",
    "MetaModule",
    "ParameterTransform",
    "PrototypicalClassifier",
    "SVClassifier",
    "Scale",
    "freeze",
    "kronecker_addmm",
    "metalayers",
    "unfreeze",
]
