"""learn2learn's `gym`, over gymnasium: ``pip install "fastmaml[rl]"``.

Public scripts run with ``import gymnasium as gym`` in place of ``import gym``.
"""

try:
    import gymnasium as _gymnasium  # noqa: F401  # asked for before anything that needs it
except ImportError as error:
    raise ImportError(
        f'learn2learn\'s gym needs gymnasium ({error}): pip install "fastmaml[rl]"'
    ) from error

from fastmaml.compat.learn2learn.gym import envs
from fastmaml.compat.learn2learn.gym.async_vec_env import AsyncVectorEnv
from fastmaml.compat.learn2learn.gym.envs import MetaEnv

__all__ = ["AsyncVectorEnv", "MetaEnv", "envs"]
