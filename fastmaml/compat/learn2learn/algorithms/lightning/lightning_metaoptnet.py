"""`LightningMetaOptNet`: a support vector machine as the last layer, for Lightning's `Trainer`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastmaml.compat.learn2learn.algorithms.lightning.lightning_episodic_module import (
    LightningEpisodicModule,
)
from fastmaml.compat.learn2learn.algorithms.lightning.lightning_protonet import (
    LightningPrototypicalNetworks,
)
from fastmaml.compat.learn2learn.nn.metaoptnet import SVClassifier


class LightningMetaOptNet(LightningPrototypicalNetworks):
    """MetaOptNet (Lee et al. 2019): a linear support vector machine is fitted to every support.

    Args:
        features: the embedding. It sees a task's support and query in one batch.
        loss: ``loss(logits, labels)``; None for the mean cross-entropy.
        kwargs: any attribute, those of `LightningEpisodicModule` and the two below. What has no
            such name is ignored.

    Attributes:
        svm_C_reg: the machine's C.
        svm_max_iters: at most so many steps of its solver.

    Raises:
        ValueError: ``data_parallel=True`` with several GPUs.
    """

    svm_C_reg = 0.1  # noqa: N815  # the interface's name
    svm_max_iters = 15

    _arguments = (*LightningEpisodicModule._arguments, "svm_C_reg", "svm_max_iters")

    def _make_classifier(self) -> Any:
        return SVClassifier(C_reg=self.svm_C_reg, max_iters=self.svm_max_iters)

    def _fit(self, support: Tensor, labels: Tensor, ways: int) -> None:
        self.classifier.fit_(support, labels, ways=ways)
