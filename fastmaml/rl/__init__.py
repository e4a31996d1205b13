"""Policies that adapt in one or a few gradient steps.

``import fastmaml.rl`` needs torch alone; environments of others need what they are made of.
"""

from fastmaml.rl import environments
from fastmaml.rl.advantages import GAE, Baseline, LinearBaseline, ZeroBaseline
from fastmaml.rl.environments import (
    Bandits,
    Corners,
    Environment,
    Gymnasium,
    Navigation,
    TabularMDP,
)
from fastmaml.rl.learner import MetaPolicy
from fastmaml.rl.outer import PPO, VPG, Outer
from fastmaml.rl.policies import CategoricalPolicy, GaussianPolicy
from fastmaml.rl.sampler import sample
from fastmaml.rl.surrogates import LVC, LoadedDiCE, LogProb, Surrogate
from fastmaml.rl.trajectories import Trajectories
from fastmaml.rl.trpo import TRPO

__all__ = [
    "GAE",
    "LVC",
    "PPO",
    "TRPO",
    "VPG",
    "Bandits",
    "Baseline",
    "CategoricalPolicy",
    "Corners",
    "Environment",
    "GaussianPolicy",
    "Gymnasium",
    "LinearBaseline",
    "LoadedDiCE",
    "LogProb",
    "MetaPolicy",
    "Navigation",
    "Outer",
    "Surrogate",
    "TabularMDP",
    "Trajectories",
    "ZeroBaseline",
    "environments",
    "sample",
]
