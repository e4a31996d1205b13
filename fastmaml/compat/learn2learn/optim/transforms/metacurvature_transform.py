"""`MetaCurvatureTransform`: a learned matrix for every dimension of a gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MetaCurvatureTransform(nn.Module):
    """The transform of Meta-Curvature (Park and Oliva 2019) for one parameter.

    A bias is multiplied elementwise by ``mc``. A matrix G becomes ``mc_in @ G @ mc_out``. The
    weight ``[a, b, height, width]`` of a convolution is multiplied by ``mc_in`` over its first
    dimension, by ``mc_out`` over its second and by ``mc_f`` over its positions. All start as the
    identity.

    Args:
        param: whose gradients it is for.
        lr: a constant factor of the update.

    Raises:
        ValueError: a parameter with another number of dimensions than 1, 2 or 4.
    """

    def __init__(self, param: Tensor, lr: float = 1.0) -> None:
        super().__init__()
        self.lr = lr
        self.dim = param.dim()

        def identity(n: int) -> nn.Parameter:
            return nn.Parameter(torch.eye(n, dtype=param.dtype, device=param.device))

        if self.dim == 1:
            self.mc = nn.Parameter(torch.ones_like(param, requires_grad=False))
        elif self.dim in (2, 4):
            self.mc_in, self.mc_out = identity(param.shape[0]), identity(param.shape[1])
        else:
            raise ValueError(
                f"MetaCurvatureTransform has no matrices for a parameter of shape "
                f"{list(param.shape)}: it takes biases, matrices and weights of 2-d convolutions. "
                "Leave others out with a TransformDictionary."
            )
        if self.dim == 4:
            self.mc_f = identity(param.shape[2] * param.shape[3])

    def forward(self, grad: Tensor) -> Tensor:
        """The update, of the shape of `grad`."""
        if self.dim == 1:
            return self.lr * (self.mc * grad)
        if self.dim == 2:
            return self.lr * (self.mc_in @ grad @ self.mc_out)
        by_position = torch.einsum("pq,abq->pab", self.mc_f, grad.flatten(2))
        update = self.mc_in @ by_position @ self.mc_out
        return self.lr * update.permute(1, 2, 0).reshape(grad.shape)
