"""`SVClassifier`: a linear support vector machine that autograd can look through."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastmaml.compat.learn2learn.nn.quadratic import solve

EPSILON = 1e-8


class SVClassifier(nn.Module):
    """The multi-class support vector machine of MetaOptNet (Lee et al. 2019, section 3.2).

    Fitting solves the dual problem over one coefficient for every example and class,

        min ½ αᵀ(K ⊗ I + I) α − Yᵀα   with   α ≤ C·Y,   Σ_k α_nk = 0,

    in which K holds the scalar products of the support embeddings and Y their one-hot labels, in
    float64. Logits are Σ_n α_nk <support_n, query>. They have first derivatives in the support and
    query embeddings (of the solution, by the implicit function theorem), and no second ones.

    Args:
        support: embeddings ``[examples, features]`` to `fit_`, if any.
        labels: theirs, ``[examples]``, from 0 to ways − 1.
        ways: the number of classes; None for that of the different labels.
        normalize: whether embeddings are scaled to length 1.
        C_reg: C.
        max_iters: at most so many steps of the interior-point method.
    """

    def __init__(
        self,
        support: Tensor | None = None,
        labels: Tensor | None = None,
        ways: int | None = None,
        normalize: bool = False,
        C_reg: float = 0.1,  # noqa: N803  # the interface's name
        max_iters: int = 15,
    ) -> None:
        super().__init__()
        self.C_reg = C_reg
        self.max_iters = max_iters
        self._normalize = normalize
        self.support: Tensor | None = None
        self.coefficients: Tensor | None = None
        if support is not None and labels is not None:
            self.fit_(support, labels, ways)

    def fit_(
        self,
        support: Tensor,
        labels: Tensor,
        ways: int | None = None,
        C_reg: float | None = None,  # noqa: N803
        max_iters: int | None = None,
    ) -> None:
        """Solve the dual problem for the given embeddings; arguments as for the class.

        Cost: of the order of (examples·ways)³ a step.
        """
        support = self.normalize(support) if self._normalize else support
        ways = len(labels.unique()) if ways is None else ways
        limit = self.C_reg if C_reg is None else C_reg
        wide = support.double()
        kernel = torch.kron(wide @ wide.t(), torch.eye(ways, device=support.device).double())
        one_hot = nn.functional.one_hot(labels.long(), ways).double().flatten()
        alpha = solve(
            kernel + torch.eye(len(one_hot), device=support.device).double(),
            -one_hot,
            limit * one_hot,
            groups=len(support),
            steps=self.max_iters if max_iters is None else max_iters,
        )
        self.support = support
        self.coefficients = alpha.view(len(support), ways).to(support.dtype)

    @staticmethod
    def normalize(x: Tensor, epsilon: float = EPSILON) -> Tensor:
        """Rows of length 1 (of `epsilon` less where they are short)."""
        norms: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        return x / (norms + epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[queries, ways]`` of embeddings ``[queries, features]``.

        Raises:
            RuntimeError: nothing was fitted yet.
        """
        if self.support is None or self.coefficients is None:
            raise RuntimeError("nothing was fitted yet: call fit_(support, labels) first.")
        x = self.normalize(x) if self._normalize else x
        return x @ self.support.t() @ self.coefficients
