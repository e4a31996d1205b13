"""Meta-World's names in learn2learn, which say what to use in their place."""

from typing import Any, NoReturn

_WAY = (
    "learn2learn's wrappers of Meta-World are of its first releases, which are gone. "
    "Today's `metaworld` makes gymnasium environments: give one to "
    "fastmaml.rl.Gymnasium(make, sample_task=..., set_task=lambda env, task: env.set_task(task)), "
    "or derive one from fastmaml.compat.learn2learn.gym.MetaEnv for AsyncVectorEnv."
)


class _Gone:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.get_train_tasks()

    @classmethod
    def get_train_tasks(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises NotImplementedError with the way out."""
        raise NotImplementedError(f"{cls.__name__}: {_WAY}")

    get_test_tasks = from_task = get_train_tasks


class MetaWorldML1(_Gone):
    """Raises NotImplementedError."""


class MetaWorldML10(_Gone):
    """Raises NotImplementedError."""


class MetaWorldML45(_Gone):
    """Raises NotImplementedError."""
