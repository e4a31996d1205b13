"""`PrototypicalClassifier`: the class of the nearest mean."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

EPSILON = 1e-8


def compute_prototypes(support: Tensor, labels: Tensor) -> Tensor:
    """The mean embedding of every class, in the order of the labels: ``[classes, features]``.

    Args:
        support: ``[examples, features]``.
        labels: ``[examples]``.
    """
    found, position = labels.unique(return_inverse=True)
    sums = support.new_zeros(len(found), *support.shape[1:]).index_add(0, position, support)
    counts = position.bincount(minlength=len(found)).to(support.dtype)
    return sums / counts.view(-1, *[1] * (support.dim() - 1))


class PrototypicalClassifier(nn.Module):
    """Logits are the negative distances to the classes' mean embeddings (Snell et al. 2017).

    Args:
        support: embeddings ``[examples, features]`` to `fit_`, if any.
        labels: theirs, ``[examples]``.
        distance: "euclidean" (squared), "cosine" (minus the cosine), or a function of
            ``(prototypes [classes, features], queries [queries, features])`` that returns
            ``[queries, classes]``.
        normalize: whether embeddings and prototypes are scaled to length 1; always with "cosine".

    Raises:
        ValueError: an unknown `distance`.
    """

    def __init__(
        self,
        support: Tensor | None = None,
        labels: Tensor | None = None,
        distance: str | Callable[[Tensor, Tensor], Tensor] = "euclidean",
        normalize: bool = False,
    ) -> None:
        super().__init__()
        known = {"euclidean": self.euclidean_distance, "cosine": self.cosine_distance}
        if isinstance(distance, str) and distance not in known:
            raise ValueError(
                f"distance={distance!r}: choose 'euclidean' or 'cosine', or give a function of "
                "prototypes and queries."
            )
        self.distance = known[distance] if isinstance(distance, str) else distance
        self.scaled = normalize or distance == "cosine"
        self.prototypes: Tensor | None = None
        if support is not None and labels is not None:
            self.fit_(support, labels)

    def fit_(self, support: Tensor, labels: Tensor) -> Tensor:
        """Set and return the prototypes ``[classes, features]``, differentiable in `support`."""
        means = compute_prototypes(support, labels)
        self.prototypes = self.normalize(means) if self.scaled else means
        return self.prototypes

    @staticmethod
    def cosine_distance(prototypes: Tensor, queries: Tensor) -> Tensor:
        """Minus the scalar products ``[queries, classes]`` of embeddings of length 1."""
        return -(queries @ prototypes.t())

    @staticmethod
    def euclidean_distance(prototypes: Tensor, queries: Tensor) -> Tensor:
        """Squared distances ``[queries, classes]``."""
        return (queries.unsqueeze(1) - prototypes.unsqueeze(0)).square().sum(-1)

    @staticmethod
    def normalize(x: Tensor, epsilon: float = EPSILON) -> Tensor:
        """Rows of length 1 (of `epsilon` less where they are short)."""
        norms: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        return x / (norms + epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[queries, classes]`` of embeddings ``[queries, features]``.

        Raises:
            RuntimeError: there are no prototypes yet.
        """
        if self.prototypes is None:
            raise RuntimeError("there are no prototypes yet: call fit_(support, labels) first.")
        return -self.distance(self.prototypes, self.normalize(x) if self.scaled else x)
