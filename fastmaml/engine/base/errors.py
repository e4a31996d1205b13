"""What goes wrong while a meta-step runs."""

from __future__ import annotations


class NonFiniteLoss(ArithmeticError):  # noqa: N818  # it says what happened
    """A loss or the meta-gradient is NaN or infinite.

    Attributes:
        step: the inner step whose support loss was the first not to be finite; the number of inner
            steps for the query loss; None where every loss is finite and only a gradient is not.
        tasks: the tasks concerned, counted from 0 within the meta-batch.

    Its message says what to do about it. No gradient has been set when it is raised.
    """

    def __init__(self, message: str, step: int | None, tasks: list[int]) -> None:
        super().__init__(message)
        self.step = step
        self.tasks = tasks


class MissingDerivative(NotImplementedError):  # noqa: N818  # it says what is missing
    """PyTorch has no derivative that a gradient method needs, or a wrong one.

    The message names the operation, where that is known, and the methods that can do without.
    """


class StaleRecordingError(RuntimeError):
    """A spot check found that a recording does not give what the model gives now.

    The message names the parameter that is furthest off, and by how much. It is raised at calls 2,
    4, 8, ... of a recording, unless ``MAML(spot_checks=False)``.
    """
