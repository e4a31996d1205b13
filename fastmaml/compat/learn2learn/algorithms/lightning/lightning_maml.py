"""`LightningMAML`: MAML for Lightning's `Trainer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastmaml.compat.learn2learn.algorithms.lightning.lightning_episodic_module import (
    LightningEpisodicModule,
)
from fastmaml.compat.learn2learn.algorithms.lightning.tasks import split
from fastmaml.compat.learn2learn.algorithms.maml import MAML
from fastmaml.compat.learn2learn.utils.scripts import accuracy


class LightningMAML(LightningEpisodicModule):
    """MAML (Finn et al. 2017) of second order, one task after another.

    Args:
        model: the module to meta-train; `self.model` is the `MAML` around it.
        loss: ``loss(output, labels)``; None for the mean cross-entropy.
        kwargs: any attribute, those of `LightningEpisodicModule` and the two below. What has no
            such name is ignored, so that a script can give all of its command line.

    Attributes:
        adaptation_steps: inner steps.
        adaptation_lr: their learning rate.

    Raises:
        ValueError: `test_ways` is not `train_ways`; ``data_parallel=True`` with several GPUs.
    """

    adaptation_steps = 1
    adaptation_lr = 0.1

    _arguments = (*LightningEpisodicModule._arguments, "adaptation_steps", "adaptation_lr")
    _flags = ("data_parallel",)

    def __init__(
        self, model: nn.Module, loss: Callable[..., Tensor] | None = None, **kwargs: Any
    ) -> None:
        super().__init__()
        self.loss = nn.CrossEntropyLoss() if loss is None else loss
        self._take(kwargs)
        self._need_equal_ways()
        self.model = MAML(model, lr=self.adaptation_lr)

    def meta_learn(
        self, batch: Any, batch_idx: int, ways: int, shots: int, queries: int
    ) -> tuple[Tensor, Tensor]:
        """Adapt to the first `shots` examples of every class; how well the others are told apart.

        Cost: `adaptation_steps` inner steps, of first order where gradients are disabled.
        """
        data, labels = batch
        support, support_labels, query, query_labels = split(data, labels, ways, shots, queries)
        # Nobody asks for a meta-gradient there, and the adapted parameters are the same.
        first_order = None if torch.is_grad_enabled() else True
        with torch.enable_grad():
            learner = self.model.clone(first_order=first_order)
            learner.train()
            for _ in range(self.adaptation_steps):
                learner.adapt(self.loss(learner(support), support_labels))
            predictions = learner(query)
        return self.loss(predictions, query_labels), accuracy(predictions, query_labels)
