"""`LightningPrototypicalNetworks`: the class of the nearest mean, for Lightning's `Trainer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fastmaml.compat.learn2learn.algorithms.lightning.lightning_episodic_module import (
    LightningEpisodicModule,
)
from fastmaml.compat.learn2learn.algorithms.lightning.tasks import split
from fastmaml.compat.learn2learn.nn.protonet import PrototypicalClassifier
from fastmaml.compat.learn2learn.utils.scripts import accuracy


class LightningPrototypicalNetworks(LightningEpisodicModule):
    """Prototypical Networks (Snell et al. 2017): queries are compared with the support's means.

    Args:
        features: the embedding. It sees a task's support and query in one batch.
        loss: ``loss(logits, labels)``; None for the mean cross-entropy.
        kwargs: any attribute, those of `LightningEpisodicModule` and the one below. What has no
            such name is ignored, so that a script can give all of its command line.

    Attributes:
        distance_metric: "euclidean" or "cosine", as in `nn.PrototypicalClassifier`.

    Raises:
        ValueError: an unknown distance; ``data_parallel=True`` with several GPUs.
    """

    distance_metric = "euclidean"

    _arguments = (*LightningEpisodicModule._arguments, "distance_metric")
    _flags = ("data_parallel",)

    def __init__(
        self, features: nn.Module, loss: Callable[..., Tensor] | None = None, **kwargs: Any
    ) -> None:
        super().__init__()
        self.loss = nn.CrossEntropyLoss() if loss is None else loss
        self._take(kwargs)
        self.features = features
        self.classifier = self._make_classifier()

    def _make_classifier(self) -> Any:
        return PrototypicalClassifier(distance=self.distance_metric)

    def _fit(self, support: Tensor, labels: Tensor, ways: int) -> None:
        self.classifier.fit_(support, labels)

    def meta_learn(
        self, batch: Any, batch_idx: int, ways: int, shots: int, queries: int
    ) -> tuple[Tensor, Tensor]:
        """Fit the classifier to `shots` examples of every class, and try it on the others.

        The task may lie in any order, and may have a first dimension of size 1.
        """
        self.features.train()
        data, labels = batch
        if labels.dim() == 2:
            data, labels = data.squeeze(0), labels.squeeze(0)
        order = labels.argsort()  # not stable, as in learn2learn: it decides what is the support
        embeddings, labels = self.features(data[order]), labels[order]
        support, support_labels, query, query_labels = split(
            embeddings, labels, ways, shots, queries
        )
        self._fit(support, support_labels, ways)
        logits = self.classifier(query)
        return self.loss(logits, query_labels), accuracy(logits, query_labels)
