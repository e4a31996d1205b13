"""`MetaCurvatureTransform`: a learned matrix for every dimension of a gradient."""

from __future__ import annotations

from torch import Tensor, nn

from fastmaml.rules.meta_curvature import along_modes, identities


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

        if self.dim not in (1, 2, 4):
            raise ValueError(
                f"MetaCurvatureTransform has no matrices for a parameter of shape "
                f"{list(param.shape)}: it takes biases, matrices and weights of 2-d convolutions. "
                "Leave others out with a TransformDictionary."
            )
        self._names = ("mc",) if self.dim == 1 else ("mc_in", "mc_out", "mc_f")[: self.dim // 2 + 1]
        for name, matrix in zip(self._names, identities(param.detach()), strict=True):
            setattr(self, name, nn.Parameter(matrix))

    def forward(self, grad: Tensor) -> Tensor:
        """The update, of the shape of `grad`."""
        matrices = [getattr(self, name) for name in self._names]
        return self.lr * along_modes(grad.unsqueeze(0), matrices).squeeze(0)
