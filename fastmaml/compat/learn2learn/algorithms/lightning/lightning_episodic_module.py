"""`LightningEpisodicModule`: the steps of training, validation and testing on tasks."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastmaml.compat.learn2learn._lightning import check_guess, pl
from fastmaml.compat.learn2learn.algorithms.lightning.tasks import can_record, recordable


class LightningEpisodicModule(pl.LightningModule):
    """A `LightningModule` that meta-learns from batches of one task each.

    A class of its own has `meta_learn`. Logged are ``train_loss``, ``train_accuracy``,
    ``valid_loss``, ``valid_accuracy``, ``test_loss`` and ``test_accuracy``, means over the tasks of
    an epoch. Trainers with ``accumulate_grad_batches=n`` average the meta-gradients of n tasks.
    Validation and testing adapt, in the trainer's inference mode as well.

    Attributes:
        train_ways: classes of a training task.
        train_shots: its support examples a class.
        train_queries: its query examples a class.
        test_ways: classes of a task for validation or testing.
        test_shots: its support examples a class.
        test_queries: its query examples a class.
        lr: the learning rate of Adam, for all parameters.
        scheduler_step: so many epochs later it is multiplied by `scheduler_decay`.
        scheduler_decay: a factor.

    Raises:
        ImportError: the script uses the other one of Lightning's two packages.
    """

    train_ways = 5
    train_shots = 1
    train_queries = 1
    test_ways = 5
    test_shots = 1
    test_queries = 1
    lr = 0.001
    scheduler_step = 20
    scheduler_decay = 1.0

    _arguments: ClassVar[tuple[str, ...]] = (
        "train_ways",
        "train_shots",
        "train_queries",
        "test_ways",
        "test_shots",
        "test_queries",
        "lr",
        "scheduler_step",
        "scheduler_decay",
    )
    """Attributes that the command line, the constructors and checkpoints have."""
    _flags: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        check_guess()
        super().__init__(*args, **kwargs)

    def _take(self, given: Mapping[str, Any]) -> None:
        """Keep the hyper-parameters that this class knows, and save them with checkpoints."""
        values = {name: given.get(name, getattr(self, name)) for name in self._arguments}
        for name, value in values.items():
            setattr(self, name, value)
        self.save_hyperparameters(values)
        if given.get("data_parallel") and torch.cuda.device_count() > 1:
            raise ValueError(
                "data_parallel=True: torch.nn.DataParallel does not see what is adapted. Give the "
                'Trainer devices= and strategy="ddp".'
            )

    def _need_equal_ways(self) -> None:
        if self.train_ways != self.test_ways:
            raise ValueError(
                f"train_ways={self.train_ways} and test_ways={self.test_ways}: the last layer of "
                f"{type(self).__name__} has as many outputs in training as in testing."
            )

    @classmethod
    def add_model_specific_args(cls, parent_parser: ArgumentParser) -> ArgumentParser:
        """A parser with the arguments of `parent_parser` and an option for each attribute."""
        parser = ArgumentParser(parents=[parent_parser], conflict_handler="resolve")
        for name in cls._arguments:
            default = getattr(cls, name)
            parser.add_argument(f"--{name}", type=type(default), default=default)
        for name in cls._flags:
            parser.add_argument(f"--{name}", action="store_true")
        return parser

    def meta_learn(
        self, batch: Any, batch_idx: int, ways: int, shots: int, queries: int
    ) -> tuple[Tensor, Tensor]:
        """The query loss and accuracy of a task after adaptation, two scalars.

        Args:
            batch: the task, ``(data, labels)``.
            batch_idx: its number.
            ways, shots, queries: classes, and support and query examples of each.

        Raises:
            NotImplementedError: by this class.
        """
        raise NotImplementedError(f"{type(self).__name__} has no meta_learn.")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The query loss of a training task."""
        return self._step("train", batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> float:
        """The query loss of a task for validation."""
        return self._step("valid", batch, batch_idx).item()

    def test_step(self, batch: Any, batch_idx: int) -> float:
        """The query loss of a task for testing."""
        return self._step("test", batch, batch_idx).item()

    def _measure(self, kind: str, batch: Any, batch_idx: int) -> tuple[Tensor, Tensor]:
        """`meta_learn` with the sizes of the class, in inference mode as well.

        Args:
            kind: "train", "valid" or "test".
            batch: the task.
            batch_idx: its number.
        """
        size = "train" if kind == "train" else "test"
        sizes = [getattr(self, f"{size}_{name}") for name in ("ways", "shots", "queries")]
        with can_record():
            return self.meta_learn(recordable(batch), batch_idx, *sizes)

    def _step(self, kind: str, batch: Any, batch_idx: int) -> Tensor:
        loss, accuracy = self._measure(kind, batch, batch_idx)
        self.log(f"{kind}_loss", loss.item(), on_step=False, on_epoch=True)
        self.log(f"{kind}_accuracy", accuracy.item(), on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> tuple[list[Any], list[Any]]:
        """Adam with the rate `lr`, and the rate's decay."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        scheduler = torch.optim.lr_scheduler.StepLR(
            optimizer, step_size=self.scheduler_step, gamma=self.scheduler_decay
        )
        return [optimizer], [scheduler]
