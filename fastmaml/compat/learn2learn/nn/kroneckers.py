"""Linear and recurrent layers whose matrices are Kronecker products (Jose et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def kronecker_addmm(
    mat1: Tensor,
    mat2: Tensor,
    mat3: Tensor,
    bias: Tensor | None = None,
    alpha: float | Tensor = 1.0,
    beta: float = 1.0,
) -> Tensor:
    """``alpha * mat1 @ mat3 @ mat2 + beta * bias``, of the shape of `mat3` where it fits.

    With vec() for the columns one after another, that is alpha·(mat2^T ⊗ mat1)·vec(mat3) +
    beta·vec(bias), without the large matrix.

    Args:
        mat1: ``[..., n, n]``.
        mat2: ``[..., m, m]``.
        mat3: ``[..., n, m]``.
        bias: what broadcasts to the product; None for none.
        alpha: the factor of the product.
        beta: the factor of `bias`.
    """
    product = (mat1 @ mat3 @ mat2) * alpha
    return product if bias is None else torch.add(product, bias, alpha=beta)


class KroneckerLinear(nn.Module):
    """Y = L X R + B for matrices X ``[..., n, m]``: a linear map of n·m numbers, R^T ⊗ L.

    It has n² + m² weights (and n·m biases) where a full matrix has n²·m². It starts as the
    identity. A vector ``[n * m]`` is taken as the columns of X one after another.

    Args:
        n: size of L, the parameter ``left``.
        m: size of R, the parameter ``right``.
        bias: whether there is a B, the parameter ``bias``.
        psd: use L^T L and R^T R instead of L and R, so that the map is positive semi-definite.
        device: where the parameters lie and the product is computed; None for where the module is.
            The result is on the device of the input.
    """

    def __init__(
        self,
        n: int,
        m: int,
        bias: bool = True,
        psd: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.eye(n, device=device))
        self.right = nn.Parameter(torch.eye(m, device=device))
        self.bias = nn.Parameter(torch.zeros(n, m, device=device)) if bias else None
        self.psd = psd
        self.device = device

    def forward(self, x: Tensor) -> Tensor:
        """The product, of the shape of `x`.

        Raises:
            ValueError: `x` is neither ``[..., n, m]`` nor ``[n * m]``.
        """
        n, m = len(self.left), len(self.right)
        if x.shape[-2:] != (n, m) and x.shape != (n * m,):
            raise ValueError(
                f"KroneckerLinear(n={n}, m={m}) takes a tensor [..., {n}, {m}] or a vector "
                f"[{n * m}], not {list(x.shape)}."
            )
        left: Tensor = self.left
        right: Tensor = self.right
        if self.psd:
            left, right = left.t() @ left, right.t() @ right
        matrix = x.view(m, n).t() if x.dim() == 1 else x
        y = left @ (matrix if self.device is None else matrix.to(self.device)) @ right
        if self.bias is not None:
            y = y + self.bias
        return (y.t().flatten() if x.dim() == 1 else y).to(x.device)


class KroneckerRNN(nn.Module):
    """One step of a recurrent network of `KroneckerLinear`: h' = σ(W_h x + U_h h), y = W_y h'.

    Args:
        n, m, bias: as in `KroneckerLinear`.
        sigma: the activation; None for tanh.
    """

    def __init__(
        self, n: int, m: int, bias: bool = True, sigma: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.W_h = KroneckerLinear(n, m, bias=bias)
        self.U_h = KroneckerLinear(n, m, bias=bias)
        self.W_y = KroneckerLinear(n, m, bias=bias)
        self.sigma = nn.Tanh() if sigma is None else sigma

    def forward(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The output and the new hidden state, of the shape of `x`."""
        new = self.sigma(self.W_h(x) + self.U_h(hidden))
        return self.W_y(new), new


class KroneckerLSTM(nn.Module):
    """One step of an LSTM whose eight matrices are `KroneckerLinear`.

    Args:
        n, m, bias: as in `KroneckerLinear`.
        sigma: the activation of the gates; None for the logistic function.
    """

    def __init__(
        self, n: int, m: int, bias: bool = True, sigma: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        for gate in "ifgo":
            self.add_module(f"W_i{gate}", KroneckerLinear(n, m, bias=bias))
            self.add_module(f"W_h{gate}", KroneckerLinear(n, m, bias=bias))
        self.sigma = nn.Sigmoid() if sigma is None else sigma
        self.tanh = nn.Tanh()

    def forward(
        self, x: Tensor, hidden: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The output h', and the new state (h', c'), of the shape of `x`."""
        h, c = hidden
        i, f, g, o = (
            self.get_submodule(f"W_i{gate}")(x) + self.get_submodule(f"W_h{gate}")(h)
            for gate in "ifgo"
        )
        c = self.sigma(f) * c + self.sigma(i) * self.tanh(g)
        h = self.sigma(o) * self.tanh(c)
        return h, (h, c)
