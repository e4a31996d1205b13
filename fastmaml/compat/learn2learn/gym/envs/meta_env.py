"""`MetaEnv`: an environment that has tasks."""

from __future__ import annotations

from typing import Any

import gymnasium


class MetaEnv(gymnasium.Env[Any, Any]):
    """What environments of learn2learn derive from; tasks are dicts of what tells them apart.

    Args:
        task: the first one; None to draw it.
    """

    def __init__(self, task: Any = None) -> None:
        self.set_task(self.sample_tasks(1)[0] if task is None else task)

    def sample_tasks(self, num_tasks: int) -> list[Any]:
        """So many tasks."""
        raise NotImplementedError(f"{type(self).__name__} draws no tasks: define sample_tasks.")

    def set_task(self, task: Any) -> None:
        """Go on in that task, from the next reset."""
        self._task = task

    def get_task(self) -> Any:
        """The task that was set last."""
        return self._task
