"""`LightningANIL`: ANIL for Lightning's `Trainer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastmaml.compat.learn2learn.algorithms.lightning.lightning_episodic_module import (
    LightningEpisodicModule,
)
from fastmaml.compat.learn2learn.algorithms.lightning.lightning_maml import LightningMAML
from fastmaml.compat.learn2learn.algorithms.lightning.tasks import split
from fastmaml.compat.learn2learn.algorithms.maml import MAML
from fastmaml.compat.learn2learn.utils.scripts import accuracy


class LightningANIL(LightningEpisodicModule):
    """ANIL (Raghu et al. 2020): features are meta-learned, and only the last layer adapts.

    Args:
        features: the module whose output the classifier is given. It sees a task's support and
            query in one batch.
        classifier: the module that adapts; `self.classifier` is the `MAML` around it.
        loss: ``loss(output, labels)``; None for the mean cross-entropy.
        kwargs: as for `LightningMAML`.

    Raises:
        ValueError: `test_ways` is not `train_ways`; ``data_parallel=True`` with several GPUs.
    """

    adaptation_steps = LightningMAML.adaptation_steps
    adaptation_lr = LightningMAML.adaptation_lr

    _arguments = LightningMAML._arguments
    _flags = LightningMAML._flags

    def __init__(
        self,
        features: nn.Module,
        classifier: nn.Module,
        loss: Callable[..., Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.loss = nn.CrossEntropyLoss() if loss is None else loss
        self._take(kwargs)
        self._need_equal_ways()
        self.features = features
        self.classifier = MAML(classifier, lr=self.adaptation_lr)

    def meta_learn(
        self, batch: Any, batch_idx: int, ways: int, shots: int, queries: int
    ) -> tuple[Tensor, Tensor]:
        """As for `LightningMAML`, of the features of all examples.

        Cost: one pass through `features`, and `adaptation_steps` inner steps of the classifier.
        """
        self.features.train()
        data, labels = batch
        data = self.features(data)
        support, support_labels, query, query_labels = split(data, labels, ways, shots, queries)
        with torch.enable_grad():
            learner = self.classifier.clone()
            learner.train()
            for _ in range(self.adaptation_steps):
                learner.adapt(self.loss(learner(support), support_labels))
            predictions = learner(query)
        return self.loss(predictions, query_labels), accuracy(predictions, query_labels)
