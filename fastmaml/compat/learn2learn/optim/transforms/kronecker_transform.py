"""`KroneckerTransform`: a transform of gradients whose matrix is a Kronecker product."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from fastmaml.compat.learn2learn.optim.transforms.module_transform import ReshapedTransform
from fastmaml.rules.kfo import factor_sizes


class KroneckerTransform:
    """Makes a module of a Kronecker product for each parameter (Arnold et al. 2019).

    A weight ``[n, m]`` is taken as it is, a bias ``[n]`` as ``[n, 1]``, and a convolution's weight
    ``[out, in, height, width]`` as `out` matrices ``[in, height * width]``.

    Args:
        kronecker_cls: ``kronecker_cls(n=, m=, bias=, psd=)`` makes the module, as `KroneckerLinear`
            does; it takes ``[matrices, n, m]``.
        bias: whether it has one.
        psd: whether its matrix is forced to be positive semi-definite.
    """

    def __init__(
        self, kronecker_cls: Callable[..., nn.Module], bias: bool = False, psd: bool = True
    ) -> None:
        self.kronecker_cls = kronecker_cls
        self.bias = bias
        self.psd = psd

    def __call__(self, param: Tensor) -> ReshapedTransform:
        """The transform for `param`.

        Raises:
            ValueError: a parameter with another number of dimensions than 1, 2 or 4.
        """
        shape = param.shape
        if len(shape) not in (1, 2, 4):
            raise ValueError(
                f"KroneckerTransform has no factors for a parameter of shape {list(shape)}: it "
                "takes biases, matrices and weights of 2-d convolutions. Leave others out with a "
                "TransformDictionary."
            )
        n, m = factor_sizes(shape)
        transform = self.kronecker_cls(n=n, m=m, bias=self.bias, psd=self.psd)
        return ReshapedTransform(transform, (-1, n, m))
