"""Task sets for Lightning's `Trainer`, and two callbacks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Protocol

import torch

from fastmaml.compat.learn2learn._lightning import pl
from fastmaml.compat.learn2learn.algorithms.lightning import LightningEpisodicModule

__all__ = ["EpisodicBatcher", "NoLeaveProgressBar", "TrackTestAccuracyCallback"]


class Tasks(Protocol):
    """What tasks are drawn from, as a `Taskset` is."""

    def sample(self) -> Any:
        """A task."""


class Epochifier:
    """An iterable of so many new tasks, whenever it is begun.

    Args:
        tasks: what they are drawn from.
        length: their number.
    """

    def __init__(self, tasks: Tasks, length: int) -> None:
        self.tasks = tasks
        self.length = length

    def __getitem__(self, index: int) -> Any:
        return self.tasks.sample()

    def __iter__(self) -> Iterator[Any]:
        return (self.tasks.sample() for _ in range(self.length))

    def __len__(self) -> int:
        return self.length


class EpisodicBatcher(pl.LightningDataModule):
    """Task sets as a `LightningDataModule` whose every batch is a task.

    Args:
        train_tasks: a `data.Taskset`, or whatever has ``sample()``.
        validation_tasks: the same; None for `train_tasks`.
        test_tasks: the same; None for `validation_tasks`.
        epoch_length: how many tasks an epoch draws, also in validation and testing.
    """

    def __init__(
        self,
        train_tasks: Tasks,
        validation_tasks: Tasks | None = None,
        test_tasks: Tasks | None = None,
        epoch_length: int = 1,
    ) -> None:
        super().__init__()
        self.train_tasks = train_tasks
        self.validation_tasks = train_tasks if validation_tasks is None else validation_tasks
        self.test_tasks = self.validation_tasks if test_tasks is None else test_tasks
        self.epoch_length = epoch_length

    @staticmethod
    def epochify(taskset: Tasks, epoch_length: int) -> Epochifier:
        """An iterable of `epoch_length` tasks of `taskset`."""
        return Epochifier(taskset, epoch_length)

    def train_dataloader(self) -> Epochifier:
        """Training tasks."""
        return self.epochify(self.train_tasks, self.epoch_length)

    def val_dataloader(self) -> Epochifier:
        """Tasks for validation."""
        return self.epochify(self.validation_tasks, self.epoch_length)

    def test_dataloader(self) -> Epochifier:
        """Tasks for testing."""
        return self.epochify(self.test_tasks, self.epoch_length)


class NoLeaveProgressBar(pl.callbacks.TQDMProgressBar):
    """A progress bar that is gone after testing.

    Args:
        refresh_rate, process_position, leave: as for Lightning's `TQDMProgressBar`.
    """

    def init_test_tqdm(self) -> Any:
        """The bar of testing."""
        bar = super().init_test_tqdm()
        bar.leave = False
        return bar


class TrackTestAccuracyCallback(pl.callbacks.Callback):
    """Tests after every validation of a fit.

    ``test_loss`` and ``test_accuracy``, means over the tasks of the data module's test data, are
    sent to the loggers and stand in ``trainer.callback_metrics``.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """See to it that there is something to test.

        Raises:
            TypeError: the module is no `LightningEpisodicModule`, or there is no data module.
        """
        if not isinstance(pl_module, LightningEpisodicModule) or trainer.datamodule is None:
            raise TypeError(
                "TrackTestAccuracyCallback tests a LightningEpisodicModule on the test tasks of a "
                f"data module; it was given {type(pl_module).__name__} and datamodule="
                f"{trainer.datamodule!r}. Call trainer.fit(module, datamodule=EpisodicBatcher(...))"
            )

    def on_validation_end(self, trainer: Any, pl_module: LightningEpisodicModule) -> None:
        """Test on as many tasks as the trainer's `limit_test_batches` says."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        tasks = trainer.datamodule.test_dataloader()
        limit = trainer.limit_test_batches
        limit = limit if isinstance(limit, int) else int(limit * len(tasks))
        found = torch.stack(
            [
                torch.stack(pl_module._measure("test", on_device(pl_module, task), i))
                for i, task in enumerate(islice(tasks, limit))
            ]
        )
        loss, accuracy = found.float().mean(0)
        trainer.callback_metrics.update({"test_loss": loss, "test_accuracy": accuracy})
        numbers = {"test_loss": loss.item(), "test_accuracy": accuracy.item()}
        for logger in trainer.loggers:
            logger.log_metrics({**numbers, "epoch": trainer.current_epoch}, trainer.global_step)


def on_device(module: Any, batch: Any) -> Any:
    """The batch where the module is."""
    return module.transfer_batch_to_device(batch, module.device, 0)
