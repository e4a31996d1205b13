"""learn2learn's environments, which gymnasium.make knows by their names once this is imported."""

from gymnasium.envs.registration import register as _register
from gymnasium.envs.registration import registry as _registry

from fastmaml.compat.learn2learn.gym.envs import metaworld as metaworld
from fastmaml.compat.learn2learn.gym.envs.meta_env import MetaEnv
from fastmaml.compat.learn2learn.gym.envs.particles import Particles2DEnv

__all__ = ["MetaEnv", "Particles2DEnv"]

for _name, _file, _steps in (
    ("Particles2D", "particles", 100),
    ("HalfCheetahForwardBackward", "mujoco", 100),
    ("AntForwardBackward", "mujoco", 100),
    ("AntDirection", "mujoco", 100),
    ("HumanoidForwardBackward", "mujoco", 200),
    ("HumanoidDirection", "mujoco", 200),
):
    # The real learn2learn registers with the old gym; a name that gymnasium has is somebody's own.
    if f"{_name}-v1" not in _registry:
        _register(
            f"{_name}-v1",
            entry_point=f"{__name__}.{_file}:{_name}Env",
            max_episode_steps=_steps,
            disable_env_checker=True,
        )
