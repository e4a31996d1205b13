"""Environments whose tasks and trajectories step together."""

from fastmaml.rl.environments.base import Environment, Step
from fastmaml.rl.environments.gymnasium import Gymnasium
from fastmaml.rl.environments.locomotion import AntDir, AntVel, CheetahDir, CheetahVel
from fastmaml.rl.environments.points import Corners, Navigation
from fastmaml.rl.environments.tables import Bandits, TabularMDP

__all__ = [
    "AntDir",
    "AntVel",
    "Bandits",
    "CheetahDir",
    "CheetahVel",
    "Corners",
    "Environment",
    "Gymnasium",
    "Navigation",
    "Step",
    "TabularMDP",
]
