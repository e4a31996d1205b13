"""`Classifier`: features, then a classifier."""

from __future__ import annotations

from torch import Tensor, nn


class Classifier(nn.Module):
    """Logits are ``classifier(features(x))``."""

    features: nn.Module
    classifier: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[examples, classes]``."""
        logits: Tensor = self.classifier(self.features(x))
        return logits
